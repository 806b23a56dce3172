"""``report.html`` of the quantize action: what a model lost, and what it gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fiducial.deploy.quantize.comparison import Measured, largest_move, lost_points
from fiducial.metric_table import MetricTable
from fiducial.report import Cell, Html, Page, Tile, facts, note, number, table, tiles

__all__ = ["ONE_POINT", "conclusions", "write_report"]

ONE_POINT = 1.0
"""Points of the main metric whose loss is worth a warning."""
_WANTED_SPEED = 1.3


def conclusions(metrics: MetricTable, before: Measured, after: Measured) -> tuple[list[str], list[str]]:
    """What must not be overlooked: warnings, and remarks that are none."""
    warnings, remarks = [], []
    name = metrics.main.replace("{stage}", "test")
    if before.kpis is None or after.kpis is None:
        why = "quantize.compare is false, or no labelled test data are there"
        remarks.append(f"Not evaluated ({why}): what the model loses was measured on its outputs alone.")
    else:
        lost = lost_points(metrics, before.kpis, after.kpis)
        if name in lost and lost[name][1] > ONE_POINT:
            warnings.append(
                f"{name} lost {lost[name][1]:.2f} points. Leave sensitive layers out (quantize.skip_names: first and "
                "last ones, attention), give more calibration data, or another algorithm."
            )
    speed = before.seconds / after.seconds
    if speed < _WANTED_SPEED:
        remarks.append(f"{_speed(speed)} before in {after.runtime} on this machine. {_why(after)}")
    if after.bytes > 0.9 * before.bytes:
        remarks.append("The file is hardly smaller: its weights are stored as they were, with the scales beside them.")
    return warnings, remarks


def write_report(
    path: Path,
    metrics: MetricTable,
    before: Measured,
    after: Measured,
    said: Mapping[str, object],
    warnings: Sequence[str],
    remarks: Sequence[str],
) -> None:
    """Write the page."""
    page = Page("Quantization", f"{before.path.name} → {after.path.name}")
    speed = before.seconds / after.seconds
    top = [
        Tile("Speed", f"{speed:.2f} ×", "one item at a time, same machine", tone="good" if speed > 1 else ""),
        Tile("Size", f"{after.bytes / before.bytes:.0%}", f"{_mb(before.bytes)} → {_mb(after.bytes)}"),
    ]
    name = metrics.main.replace("{stage}", "test")
    lost = lost_points(metrics, before.kpis, after.kpis) if before.kpis and after.kpis else {}
    if name in lost:
        points = lost[name][1]
        tone = "bad" if points > ONE_POINT else "good"
        top.insert(
            0, Tile(f"{name}, lost", f"{round(points, 2) + 0.0:.2f} points", "of 100; negative is gained", tone=tone)
        )
    notes: list[Html] = [note(text, tone="bad") for text in warnings] + [note(text) for text in remarks]
    page.add("Summary", tiles(top), *notes)
    if before.kpis and after.kpis:
        rows: list[list[str | float | Cell | None]] = [
            [kpi, Cell(number(before.kpis[kpi]), None), Cell(number(after.kpis[kpi]), None), points]  # type: ignore[arg-type]
            for kpi, (_, points) in sorted(lost.items(), key=lambda entry: (entry[0] != name, entry[0]))
        ]
        page.add("Metrics", table(["Metric", "Before", "After", "Points lost"], rows), intro="On the test data.")
    moved = largest_move(before.outputs, after.outputs)
    page.add(
        "Outputs",
        table(["Output", "Largest difference, of its range"], [[out, f"{share:.2%}"] for out, share in moved.items()]),
        intro="On real items, where the dataset is there; else on random numbers.",
    )
    runs = [
        [label, model.runtime, f"{model.seconds * 1e3:.2f}", _mb(model.bytes)]
        for label, model in (("before", before), ("after", after))
    ]
    page.add("Speed and size", table(["Model", "Runs in", "Milliseconds, one item", "Size"], runs))
    page.add("How", facts(said))
    page.write(path)


def _speed(ratio: float) -> str:
    return f"Only {ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times slower than"


def _why(after: Measured) -> str:
    if after.runtime == "torch":
        return (
            "Torch multiplies with floating-point numbers again (torchao saves memory, ModelOpt tells what a graph "
            "with 8-bit numbers will lose): for speed, quantize an ONNX file with openvino or modelopt.onnx."
        )
    if after.runtime == "openvino":
        return (
            "A CPU without VNNI or AMX gains little from 8-bit numbers. Weights alone (quantize.mode=weight_only_ptq) "
            "save memory on any: they are multiplied as floating-point numbers again."
        )
    return (
        "onnxruntime's 8-bit numbers gain little on a CPU, and nothing without VNNI or AMX; OpenVINO and TensorRT do."
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
