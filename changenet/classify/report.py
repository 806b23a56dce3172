"""``report.html`` of a classify evaluation: how good it is, which margin to choose, and the rows it got most wrong."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from changenet.classify.heat_map import difference_heat_map
from changenet.classify.margin_script import MARGIN_SCRIPT
from changenet.classify.metrics import (
    CONFIDENCE,
    ClassifyReport,
    Rates,
    Threshold,
    ranked,
    suggest_margin,
    threshold_table,
)
from fiducial.errors import UserError
from fiducial.report import (
    Cell,
    Cursor,
    Dot,
    Html,
    Line,
    Page,
    Picture,
    Tile,
    columns,
    copy_line,
    data_uri,
    facts,
    gallery,
    histogram,
    line_chart,
    note,
    number,
    percent,
    rate,
    table,
    tag,
    tiles,
)

__all__ = ["worst_rows", "write_report"]

LoadPair = Callable[[int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]

_MAX_WORST = 24
_MAX_THRESHOLDS = 24
_RECALL_PRESETS = {"Miss no defect": 1.0, "Find 99.9 %": 0.999, "Find 99 %": 0.99, "Find 95 %": 0.95}


def write_report(
    path: Path,
    *,
    report: ClassifyReport,
    score: Tensor,
    label: Tensor,
    margin: float,
    rows: Sequence[Mapping[str, str]],
    load_pair: LoadPair,
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    facts_of_run: Mapping[str, object] | None = None,
    title: str = "Visual inspection report",
    subtitle: str = "",
    num_worst: int = _MAX_WORST,
) -> None:
    """Write one self-contained page.

    ``score`` ``(N,)`` and ``label`` ``(N,)`` (0 PASS, 1 defect) are what ``report`` was made from at ``margin``.
    ``rows[i]`` holds what to print below row ``i``'s pictures, in order; its ``object_name``, if any, heads the card.
    ``load_pair(i)`` returns row ``i``'s test and golden image, uint8 RGB ``(H, W, 3)``; it is asked for the
    ``num_worst`` (at most 24) worst rows only, and a row that it cannot read (UserError, OSError) is shown as such.
    ``curves`` maps chart titles to named lines ``(x, y)``, such as the losses per epoch.
    """
    score, label = score.detach().cpu().float(), label.detach().cpu().long()
    page = Page(title, subtitle)
    page.add("Result", *_result(report, score, label))
    page.add("Choose the margin", *_margin(report, score, label, margin), intro=_MARGIN_INTRO)
    page.add("Thresholds", _thresholds(score, label), intro=_THRESHOLD_INTRO)
    if report.groups:
        page.add("Component types", _groups(report), intro=_GROUP_INTRO)
    for heading, worst, intro in _worst_by_class(score, label, min(num_worst, _MAX_WORST)):
        cards = [_card(i, score, label, margin, rows[i], load_pair) for i in worst]
        page.add(heading, gallery(cards), intro=intro)
    if curves:
        charts = [
            line_chart(name, [Line(series, x, y) for series, (x, y) in lines.items()], x_label="epoch")
            for name, lines in curves.items()
        ]
        page.add("Training", columns(*charts))
    run = {"margin": margin, **(facts_of_run or {})}
    page.add("Run", columns(facts(run), facts(report.kpis("test"))), intro=_RUN_INTRO)
    scores = {name: _packed(score[label == value]) for name, value in (("good", 0), ("bad", 1))}
    page.add_data("margin-data", {**scores, "margin": margin}).add_script(MARGIN_SCRIPT).write(path)


def worst_rows(score: Tensor, label: Tensor, num: int) -> tuple[list[int], list[int]]:
    """Rows that are wrong or nearest to it: defects from the lowest score up, good rows from the highest down.

    At most ``num`` together; each class gets half, and what the other cannot fill.
    """
    order = score.argsort(stable=True)
    defects: list[int] = order[label[order] == 1].tolist()
    good: list[int] = order[label[order] == 0].flip(0).tolist()
    num_defects = min(len(defects), max(num // 2, num - len(good)))
    return defects[:num_defects], good[: num - num_defects]


_MARGIN_INTRO = (
    "A pair fails when its score is above the margin. Move the slider, type a value or drag in the histogram; "
    "then paste the line below into the spec. The address of this page keeps the choice, to share it."
)
_THRESHOLD_INTRO = (
    "The margins worth choosing from: for each number of missed defects, the one with the fewest false alarms."
)
_GROUP_INTRO = (
    "At the margin of the run, with bootstrap intervals where the rows allow one. FPR: share of the good rows that "
    "fail; AP: average precision; FAR: FPR at the margin that misses no defect of the type. Click a heading to sort."
)

_RUN_INTRO = (
    "What was evaluated, and the metrics by the names in the logs. "
    "As in TAO, test_fpr and test_fnr are percent of all rows; test_true_fpr and test_true_fnr of their own class."
)

_TILES = {
    "Recall": "recall",
    "Precision": "precision",
    "F1": "f1",
    "AUROC": "auroc",
    "Average precision": "average_precision",
}
_GROUP_COLUMNS = {
    "recall": "recall",
    "FPR": "false_positive_rate",
    "precision": "precision",
    "F1": "f1",
    "AUROC": "auroc",
    "AP": "average_precision",
    "FAR": "far_at_recall_1000",
}


def _result(report: ClassifyReport, score: Tensor, label: Tensor) -> list[Html]:
    total = report.total
    num_good = total.fp + total.tn
    missed = f"{percent(total.false_negative_rate)} of {number(total.num_defects)} defects"
    alarms = f"{percent(total.false_positive_rate)} of {number(num_good)} good rows"
    numbers = [
        Tile("Missed defects", number(total.fn), missed, "bad" if total.fn else "good"),
        Tile("False alarms", number(total.fp), alarms),
        Tile("False alarms at recall 1.0", percent(total.far_at_recall_1000), "of the good rows, none missed"),
        *(_rate_tile(name, total, metric) for name, metric in _TILES.items()),
    ]
    return [note(_headline(report, score, label), tone="bad" if total.fn else "good"), tiles(numbers)]


def _rate_tile(name: str, total: Rates, metric: str) -> Tile:
    interval = _range(total, metric)
    return Tile(name, rate(getattr(total, metric)), f"{CONFIDENCE:.0%} interval {interval}" if interval else "")


def _headline(report: ClassifyReport, score: Tensor, label: Tensor) -> str:
    total = report.total
    margin = _shortest(score, report.margin)
    if total.num == 0:
        return "No rows were evaluated."
    if total.num_defects == 0:
        return f"No defects here. At margin {margin}, {number(total.fp)} of {_num(total.num, 'row')} fail."
    text = (
        f"At margin {margin} the model misses {number(total.fn)} of {_num(total.num_defects, 'defect')} "
        f"and raises {_num(total.fp, 'false alarm')} on {_num(total.fp + total.tn, 'good row')}."
    )
    safe = threshold_table(score, label)[0]
    threshold = _shortest(score, safe.threshold)
    if total.fn:
        text += f" To miss none, set {threshold}: {_num(safe.false_alarms, 'false alarm')}."
    elif safe.false_alarms < total.fp:
        text += f" At {threshold} it would still miss none, with {_num(safe.false_alarms, 'false alarm')}."
    return text


def _num(count: int, thing: str) -> str:
    return f"{number(count)} {thing}" if count == 1 else f"{number(count)} {thing}s"


def _margin(report: ClassifyReport, score: Tensor, label: Tensor, margin: float) -> list[Html]:
    total = report.total
    classes = {"PASS": score[label == 0].numpy(), "defect": score[label == 1].numpy()}
    bars = histogram(
        "Scores",
        classes,
        x_label="score",
        colours=("good", "bad"),
        cursors=[Cursor("margin-cursor", margin, "margin")],
        id="score-histogram",
    )
    charts = [bars, _decisions(total)]
    if 0 < total.num_defects < total.num:
        charts += _curves(total, ranked(score), label)
    return [_controls(score, label, margin), columns(*charts)]


def _controls(score: Tensor, label: Tensor, margin: float) -> Html:
    low, high = min([0.0, margin, *score.tolist()]), max([margin, *score.tolist()])
    bounds = {"min": low, "max": high, "step": (high - low) / 2000 or 1, "value": margin}
    slider = tag("input", type="range", id="margin-slider", aria_label="Margin", style="width:100%", **bounds)
    field = tag("input", type="number", id="margin-field", aria_label="Margin as a number", step="any", value=margin)
    presets = {f"As evaluated ({_shortest(score, margin)})": margin}
    if label.any():
        for name, recall in _RECALL_PRESETS.items():
            if (value := suggest_margin(score, label, recall)) not in presets.values():  # few defects: the same margin
                presets[name] = value
        presets["Best F1"] = _best(threshold_table(score, label)).threshold
    buttons = [tag("button", name, type="button", class_="plain", data_margin=value) for name, value in presets.items()]
    text = _shortest(score, margin)
    return tag(
        "div",
        tag("div", slider),
        tag("div", field, *buttons, class_="copyline"),
        copy_line("Spec, under model: classify:", f"eval_margin: {text}", id="margin-yaml"),
        copy_line("Or on the command line", f"model.classify.eval_margin={text}", id="margin-override"),
        class_="card",
    )


def _decisions(total: Rates) -> Html:
    numbers = [
        Tile("Missed defects", number(total.fn), percent(total.false_negative_rate), id="live-missed"),
        Tile("False alarms", number(total.fp), percent(total.false_positive_rate), id="live-alarms"),
        Tile("Precision", rate(total.precision), id="live-precision"),
        Tile("Recall", rate(total.recall), id="live-recall"),
        Tile("F1", rate(total.f1), id="live-f1"),
    ]
    counts = {name: tag("strong", number(getattr(total, name)), id=f"live-{name}") for name in ("tn", "fp", "fn", "tp")}
    matrix = table(
        ["truth", "called PASS", "called FAIL"],
        [
            ["PASS", counts["tn"], Html(counts["fp"] + tag("small", "false alarms"))],
            ["defect", Html(counts["fn"] + tag("small", "missed")), counts["tp"]],
        ],
    )
    caption = tag("h3", tag("span", "Decisions at this margin"))
    return Html(caption + tiles(numbers) + matrix)


def _curves(total: Rates, rank: Tensor, label: Tensor) -> list[Html]:
    fpr, tpr, _ = binary_roc(rank, label)
    precision, recall, _ = binary_precision_recall_curve(rank, label)
    unit: dict[str, Any] = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.0)}
    chance = Line("chance", [0, 1], [0, 1], "muted", dashed=True)
    base = total.num_defects / total.num
    always = Line("always FAIL", [0, 1], [base, base], "muted", dashed=True)
    fpr_here, recall_here = total.false_positive_rate or 0.0, total.recall or 0.0
    precision_here = 1.0 if total.precision is None else total.precision
    roc = line_chart(
        "ROC",
        [Line(f"AUROC {number(total.auroc)}", fpr.tolist(), tpr.tolist(), "c1"), chance],
        x_label="false-positive rate",
        y_label="recall",
        dots=[Dot("roc-dot", fpr_here, recall_here)],
        **unit,
    )
    pr = line_chart(
        "Precision and recall",
        [Line(f"AP {number(total.average_precision)}", recall.tolist(), precision.tolist(), "c1"), always],
        x_label="recall",
        y_label="precision",
        dots=[Dot("pr-dot", recall_here, precision_here)],
        **unit,
    )
    return [roc, pr]


def _thresholds(score: Tensor, label: Tensor) -> Html:
    rows = threshold_table(score, label)
    best = _best(rows) if rows else None
    header = ["margin", "missed defects", "false alarms", "precision", "recall", "F1", ""]
    cells: list[list[str | float | Cell | None]] = []
    for row in _some(rows, best):
        use = tag("button", "Use", type="button", class_="plain", data_margin=row.threshold)
        remark = tag("span", " best F1", class_="good") if row is best else Html("")
        rates = (Cell(rate(value), value) for value in (row.precision, row.recall, row.f1))
        margin = Cell(_shortest(score, row.threshold), row.threshold)
        cells.append([margin, row.missed_defects, row.false_alarms, *rates, tag("span", use, remark)])
    return table(header, cells)


def _some(rows: Sequence[Threshold], best: Threshold | None) -> list[Threshold]:
    """All rows if they are few; else the first ones, then ever fewer, the best and the last."""
    if len(rows) <= _MAX_THRESHOLDS:
        return list(rows)
    steps = np.geomspace(1, len(rows), _MAX_THRESHOLDS).round().astype(int) - 1
    return [row for i, row in enumerate(rows) if i in steps or row is best]


def _best(rows: Sequence[Threshold]) -> Threshold:
    return max(rows, key=lambda row: row.f1 or 0.0)


def _groups(report: ClassifyReport) -> Html:
    header = ["component type", "rows", "defects", "missed", "false alarms", *_GROUP_COLUMNS]
    return table(
        header,
        [
            [
                name,
                rates.num,
                rates.num_defects,
                rates.fn,
                rates.fp,
                *(_rate_cell(rates, metric) for metric in _GROUP_COLUMNS.values()),
            ]
            for name, rates in [("all rows", report.total), *report.groups.items()]
        ],
        sortable=True,
    )


def _rate_cell(rates: Rates, metric: str) -> Cell:
    value = getattr(rates, metric)
    return Cell(rate(value, 3), value, _range(rates, metric))


def _range(rates: Rates, metric: str) -> str:
    """The interval as text; nothing where resampling never changed the value: that is few rows, not certainty."""
    low, high = rates.intervals.get(metric, (0.0, 0.0))
    return f"{low:.3f}–{high:.3f}" if low < high else ""


def _worst_by_class(score: Tensor, label: Tensor, num: int) -> list[tuple[str, list[int], str]]:
    defects, good = worst_rows(score, label, num)
    sections = [
        ("Hardest defects", defects, "Defects with the lowest scores: the first to be missed when the margin rises."),
        ("Hardest good rows", good, "Good rows with the highest scores: the first false alarms when the margin falls."),
    ]
    return [section for section in sections if section[1]]


def _card(i: int, score: Tensor, label: Tensor, margin: float, row: Mapping[str, str], load_pair: LoadPair) -> Picture:
    fails, defect = bool(score[i] > margin), bool(label[i] == 1)
    badge = "right" if fails == defect else "missed defect" if defect else "false alarm"
    images, problem = {}, ""
    try:
        test, golden = load_pair(i)
        heat = difference_heat_map(test, golden)
        images = {"test": data_uri(test), "golden": data_uri(golden), "difference": data_uri(heat)}
    except (UserError, OSError) as error:
        problem = f"The images cannot be read: {error}"
    value = float(score[i])
    headline = row.get("object_name") or f"row {i + 1}"
    return Picture(
        headline=headline,
        images=images,
        facts={"score": number(value), **{name: text for name, text in row.items() if name != "object_name"}},
        badge=badge,
        tone="good" if fails == defect else "bad",
        problem=problem,
        data={"score": value, "label": int(label[i])},
    )


def _shortest(score: Tensor, margin: float) -> str:
    """``margin`` with as few digits (four at least) as decide every row as it does."""
    wanted = (score > margin).sum()
    texts = (f"{margin:.{digits}g}" for digits in range(4, 18))
    return next((text for text in texts if (score > float(text)).sum() == wanted), repr(margin))


def _packed(score: Tensor) -> str:
    """Sorted little-endian float32, base64: exact, and 5 characters a row."""
    values = score.sort().values.numpy().astype("<f4")
    return base64.b64encode(values.tobytes()).decode("ascii")
