"""The whole way once, on drawn circuit boards: data, check, train, evaluate, infer, export, evaluate the export.

Ends with where the report is, and how the model compares with the first thing a person would try: the mean absolute
difference of the two pictures after laying one over the other. Run it as ``make demo``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

import make_demo_data  # noqa: E402
from demo_baseline import auroc, scores_of  # noqa: E402

from changenet.__main__ import TASKS  # noqa: E402
from fiducial import cli  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the training")
    args = parser.parse_args()
    start = time.monotonic()
    data, results = args.folder / "data", args.folder / "results"
    for old in (data, results):
        shutil.rmtree(old, ignore_errors=True)
    make_demo_data.main(["classify", str(data), "--seed", str(args.seed)])

    settings = ["--config", "changenet/demo", "--map-path", f"demo={args.folder}", f"train.seed={args.seed}"]
    exported = results / "export" / "model.onnx"
    steps = [
        ["check", "train"],
        ["train"],
        ["evaluate"],
        ["inference"],
        ["export"],
        ["evaluate", f"evaluate.checkpoint={exported}", f"evaluate.results_dir={results / 'evaluate_onnx'}"],
    ]
    for step in steps:
        code = cli.main(TASKS, [*step, *settings], prog="changenet")
        if code:
            return code

    lights = ["SolderLight", "WhiteLight"]
    baseline = auroc(*scores_of(data / "test.csv", data / "images", lights))
    by_torch, by_onnx = (_auroc(results / name) for name in ("evaluate", "evaluate_onnx"))
    print(f"\nDone in {time.monotonic() - start:.0f} s. Report: {(results / 'evaluate' / 'report.html').resolve()}")
    print("AUROC on the test boards")
    print(f"  this model, torch        {by_torch:.3f}")
    print(f"  this model, onnxruntime  {by_onnx:.3f}")
    print(f"  difference of pictures   {baseline:.3f}   (mean absolute difference after registration)")
    return 0


def _auroc(folder: Path) -> float:
    return float(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["total"]["auroc"])


if __name__ == "__main__":
    sys.exit(main())
