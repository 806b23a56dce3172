"""The whole way once, on drawn data: data, check, train, evaluate, infer, export, evaluate the export.

``classify`` (``make demo``): circuit boards. Ends with where the report is, and how the model compares with the first
thing a person would try: the mean absolute difference of the two pictures after laying one over the other.
``segment`` (``make demo-segment``): aerial scenes, compared with the best threshold on the difference of the pictures.
``mal`` (``make demo-mal``): shapes with boxes, compared with the filled box and the ellipse that it encloses.
``mlrecog`` (``make demo-mlrecog``): digits, three of which are never trained on, compared with raw pixels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

import demo_baseline  # noqa: E402
import demo_segment_baseline  # noqa: E402
import make_demo_data  # noqa: E402

from fiducial import cli  # noqa: E402


def _baselines(module: str, *paths: Path) -> dict[str, float]:
    """Of a module that is imported late: it brings torch, whose threads the command line must prepare before."""
    found: dict[str, float] = importlib.import_module(module).baselines(*paths)
    return found


@dataclass(frozen=True)
class Demo:
    """One task's demo: its curated spec, and the number that is shown beside those of the baselines."""

    package: str
    config: str
    data: str
    results: str
    shown: str
    metric: Callable[[dict[str, Any]], float]
    baselines: Callable[[Path], Mapping[str, float]]
    """The number of each thing that one could do without a model."""
    held_back: tuple[str, ...] = ()
    """Overrides with which ``evaluate`` sees other data than validation; {data} stands for the folder of the data."""


DEMOS = {
    "classify": Demo(
        package="changenet",
        config="changenet/demo",
        data="data",
        results="results",
        shown="AUROC on the test boards",
        metric=lambda metrics: float(metrics["total"]["auroc"]),
        baselines=lambda data: {
            "mean absolute difference after registration": demo_baseline.auroc(
                *demo_baseline.scores_of(data / "test.csv", data / "images", ["SolderLight", "WhiteLight"])
            )
        },
    ),
    "segment": Demo(
        package="changenet",
        config="changenet/demo-segment",
        data="data-segment",
        results="results-segment",
        shown="F1 of the changed pixels in the test scenes",
        metric=lambda metrics: float(metrics["kpis"]["test_F1_1"]),
        baselines=lambda data: {
            "best threshold on the difference of the pictures": demo_segment_baseline.best_baseline(data)
        },
    ),
    "mal": Demo(
        package="mal",
        config="mal/demo",
        data="data-mal",
        results="results-mal",
        shown="mIoU of the masks in the test pictures",
        metric=lambda metrics: float(metrics["kpis"]["mIoU"]),
        baselines=lambda data: _baselines("demo_mal_baseline", data / "test.json"),
        held_back=("dataset.val_ann_path={data}/test.json",),
    ),
    "mlrecog": Demo(
        package="mlrecog",
        config="mlrecog/demo",
        data="data-mlrecog",
        results="results-mlrecog",
        shown="Precision at 1 of the digits that training never saw",
        metric=lambda metrics: float(metrics["kpis"]["test Precision at Rank 1"]),
        baselines=lambda data: _baselines(
            "demo_mlrecog_baseline", data / "unseen" / "reference", data / "unseen" / "query"
        ),
        held_back=tuple(f"dataset.val_dataset.{side}={{data}}/unseen/{side}" for side in ("reference", "query")),
    ),
}


RUNTIMES = {"torch": "evaluate", "onnxruntime": "evaluate_onnx"}
"""Of each runtime, the results folder of its evaluation."""


def run(task: str, folder: Path, seed: int) -> dict[str, float]:
    """Run a demo into ``folder``; the numbers of ``torch``, ``onnxruntime`` and the baselines. Raises: SystemExit."""
    demo = DEMOS[task]
    tasks = importlib.import_module(f"{demo.package}.__main__").TASKS
    data, results = folder / demo.data, folder / demo.results
    for old in (data, results):
        shutil.rmtree(old, ignore_errors=True)
    make_demo_data.main([task, str(data), "--seed", str(seed)])
    settings = ["--config", demo.config, "--map-path", f"demo={folder}", f"train.seed={seed}"]
    exported = results / "export" / "model.onnx"
    held_back = [override.format(data=data.resolve()) for override in demo.held_back]
    evaluate = ["evaluate", *held_back]
    for step in (
        ["check", "train"],
        ["train"],
        evaluate,
        ["inference", *(held_back if demo.package == "mlrecog" else [])],
        ["export"],
        [*evaluate, f"evaluate.checkpoint={exported}", f"evaluate.results_dir={results / 'evaluate_onnx'}"],
    ):
        code = cli.main(tasks, [*step, *settings], prog=demo.package)
        if code:
            raise SystemExit(code)
    numbers = {
        name: demo.metric(json.loads((results / where / "metrics.json").read_text(encoding="utf-8")))
        for name, where in RUNTIMES.items()
    }
    return {**numbers, **demo.baselines(data)}


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
    for name, number in numbers.items():
        said = f"this model, {name}" if name in RUNTIMES else f"without a model: {name}"
        print(f"  {number:.3f}  {said}")


if __name__ == "__main__":
    main()
