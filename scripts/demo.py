"""The whole way once, on drawn data: data, check, train, evaluate, infer, export, evaluate the export.

``classify`` (``make demo``): circuit boards. Ends with where the report is, and how the model compares with the first
thing a person would try: the mean absolute difference of the two pictures after laying one over the other.
``segment`` (``make demo-segment``): aerial scenes, compared with the best threshold on the difference of the pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]  # in this order: bench has a mal.py

import demo_baseline  # noqa: E402
import demo_segment_baseline  # noqa: E402
import make_demo_data  # noqa: E402

from changenet.__main__ import TASKS  # noqa: E402
from fiducial import cli  # noqa: E402


@dataclass(frozen=True)
class Demo:
    """One task's demo: its curated spec, and the number that is shown beside the baseline's."""

    config: str
    data: str
    results: str
    shown: str
    metric: Callable[[dict[str, Any]], float]
    baseline_name: str
    baseline: Callable[[Path], float]


DEMOS = {
    "classify": Demo(
        config="changenet/demo",
        data="data",
        results="results",
        shown="AUROC on the test boards",
        metric=lambda metrics: float(metrics["total"]["auroc"]),
        baseline_name="mean absolute difference after registration",
        baseline=lambda data: demo_baseline.auroc(
            *demo_baseline.scores_of(data / "test.csv", data / "images", ["SolderLight", "WhiteLight"])
        ),
    ),
    "segment": Demo(
        config="changenet/demo-segment",
        data="data-segment",
        results="results-segment",
        shown="F1 of the changed pixels in the test scenes",
        metric=lambda metrics: float(metrics["kpis"]["test_F1_1"]),
        baseline_name="best threshold on the difference of the pictures",
        baseline=lambda data: demo_segment_baseline.best_baseline(data),
    ),
}


def run(task: str, folder: Path, seed: int) -> dict[str, float]:
    """Run a demo into ``folder``; the numbers of ``torch``, ``onnxruntime`` and ``baseline``. Raises: SystemExit."""
    demo = DEMOS[task]
    data, results = folder / demo.data, folder / demo.results
    for old in (data, results):
        shutil.rmtree(old, ignore_errors=True)
    make_demo_data.main([task, str(data), "--seed", str(seed)])
    settings = ["--config", demo.config, "--map-path", f"demo={folder}", f"train.seed={seed}"]
    exported = results / "export" / "model.onnx"
    for step in (
        ["check", "train"],
        ["train"],
        ["evaluate"],
        ["inference"],
        ["export"],
        ["evaluate", f"evaluate.checkpoint={exported}", f"evaluate.results_dir={results / 'evaluate_onnx'}"],
    ):
        code = cli.main(TASKS, [*step, *settings], prog="changenet")
        if code:
            raise SystemExit(code)
    numbers = {
        name: demo.metric(json.loads((results / where / "metrics.json").read_text(encoding="utf-8")))
        for name, where in (("torch", "evaluate"), ("onnxruntime", "evaluate_onnx"))
    }
    return {**numbers, "baseline": demo.baseline(data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=DEMOS)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the training")
    args = parser.parse_args()
    start = time.monotonic()
    numbers = run(args.task, args.folder, args.seed)
    demo = DEMOS[args.task]
    print(f"\nDone in {time.monotonic() - start:.0f} s.")
    print(f"Report: {(args.folder / demo.results / 'evaluate' / 'report.html').resolve()}")
    print(demo.shown)
    print(f"  this model, torch        {numbers['torch']:.3f}")
    print(f"  this model, onnxruntime  {numbers['onnxruntime']:.3f}")
    print(f"  baseline                 {numbers['baseline']:.3f}   ({demo.baseline_name})")


if __name__ == "__main__":
    main()
