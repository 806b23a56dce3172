"""``report.html`` of a segment evaluation: how much of the change was found, in pixels and objects, and where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from changenet.segment.counts import IGNORED, Counts, change_counts, class_counts
from changenet.segment.image_results import ImageResult
from changenet.segment.masks import OVERLAY_COLOURS, overlay
from changenet.segment.objects import MIN_IOU, ObjectCounts
from changenet.segment.rates import as_kpi
from changenet.segment.tiles import Window, windows
from fiducial.errors import UserError
from fiducial.report import (
    Cell,
    Html,
    Line,
    Page,
    Picture,
    Tile,
    columns,
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

__all__ = ["Views", "best_and_worst", "write_report"]

_MAX_IMAGES = 300  # in the table; the CSV has all
_THUMBNAIL = 360
_LOOK = 640  # pixels of the part that is shown of a large image
_RATES = {"IoU": "iou", "F1": "f1", "precision": "precision", "recall": "recall"}


@dataclass(frozen=True)
class Views:
    """One image to look at: uint8 RGB ``(H, W, 3)`` before and after, uint8 class numbers ``(H, W)`` (255: ignored)."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8]


LoadViews = Callable[[int], Views]


def write_report(
    path: Path,
    *,
    per_image: Sequence[ImageResult],
    load_views: LoadViews,
    class_names: Sequence[str] | None = None,
    class_colours: Sequence[tuple[int, int, int]] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    facts_of_run: Mapping[str, object] | None = None,
    title: str = "Change detection report",
    subtitle: str = "",
    num_shown: int = 12,
) -> None:
    """Write one self-contained page.

    All numbers are counted from ``per_image``. ``load_views(i)`` is asked for the ``num_shown`` images in the galleries
    only, half worst and half best; one that it cannot read (UserError, OSError) is shown as such. ``class_names`` and
    ``class_colours`` begin with no change. ``metrics`` are listed under the names in the logs. ``curves`` maps chart
    titles to named lines ``(x, y)``, such as the losses per epoch.
    """
    page = Page(title, subtitle)
    if not per_image:
        page.add("Result", note("No images were evaluated.", tone="bad")).write(path)
        return
    confusion_CC = np.sum([result.confusion for result in per_image], axis=0)
    names = list(class_names or _default_names(len(confusion_CC)))
    found = [result.objects for result in per_image if result.objects is not None]
    objects = sum(found, ObjectCounts()) if found else None
    page.add("Result", *_result(confusion_CC, objects, per_image))
    page.add("Classes", *_classes(confusion_CC, names, class_colours), _matrix(confusion_CC, names), intro=_CLASS_INTRO)
    if objects:
        page.add("Objects", _objects(objects), intro=_OBJECT_INTRO)
    page.add("Images", *_images(per_image), intro=_image_intro(per_image))
    best, worst = best_and_worst(per_image, num_shown)
    if worst:
        cards = [_card(per_image[i], i, load_views, names, good=False) for i in worst]
        page.add("Worst images", _legend(len(names)), gallery(cards, wide=True), intro=_WORST_INTRO)
    if best:
        cards = [_card(per_image[i], i, load_views, names, good=True) for i in best]
        page.add("Best images", _legend(len(names)), gallery(cards, wide=True), intro=_BEST_INTRO)
    if curves:
        charts = [
            line_chart(name, [Line(series, x, y) for series, (x, y) in lines.items()], x_label="epoch")
            for name, lines in curves.items()
        ]
        page.add("Training", columns(*charts))
    if metrics or facts_of_run:
        page.add("Run", columns(*(facts(items) for items in (facts_of_run, metrics) if items)), intro=_RUN_INTRO)
    page.write(path)


def best_and_worst(per_image: Sequence[ImageResult], num: int) -> tuple[list[int], list[int]]:
    """Images to show, ``num`` at most together, none twice: half worst, half best, either less where there are few.

    Worst are those with the largest share of wrong pixels. Best are the others with the highest F1; of equal ones,
    those with the most change.
    """
    wrong = [i for i, result in enumerate(per_image) if result.num_wrong]
    wrong.sort(key=lambda i: (-_wrong_share(per_image[i]), per_image[i].name))
    worst = wrong[: num // 2]
    found = [i for i, result in enumerate(per_image) if result.change.tp and i not in worst]
    found.sort(key=lambda i: (-(per_image[i].change.f1 or 0), -per_image[i].change.tp, per_image[i].name))
    return found[: num - num // 2], worst


_CLASS_INTRO = (
    "Over the pixels of all images. A row of the confusion matrix is a true class, in percent of its pixels; on the "
    "diagonal is what is right. Means over all classes are TAO's miou, mf1, mprecision and mrecall; a class that is "
    "absent counts 0."
)
_OBJECT_INTRO = (
    "Changed pixels that touch, by side or corner, are one object. Matched: a predicted and a true object share at "
    f"least {MIN_IOU} of what they cover together (IoU), each used once. Touched: at least one pixel of a true object "
    "was predicted, enough to be sent to the right place; false is then what touches no true object."
)
_WORST_INTRO = "The largest share of wrong pixels first. Of a large image, the part with the most of them is shown."
_BEST_INTRO = "The highest F1 of the change first. Of a large image, the part with the most change is shown."
_RUN_INTRO = "What was evaluated, and the metrics by the names in the logs."


def _default_names(num_classes: int) -> list[str]:
    return (
        ["no change", "change"] if num_classes == 2 else ["no change", *(f"class {k}" for k in range(1, num_classes))]
    )


def _result(
    confusion_CC: NDArray[np.int64], objects: ObjectCounts | None, per_image: Sequence[ImageResult]
) -> list[Html]:
    change, total = change_counts(confusion_CC), int(confusion_CC.sum())
    numbers = [
        Tile("F1 of the change", rate(change.f1), f"precision and recall together, {_num(len(per_image), 'image')}"),
        Tile("IoU of the change", rate(change.iou), "shared by truth and prediction, of what either marks"),
        Tile("Precision", rate(change.precision), f"of {_pixels(change.tp + change.fp)} marked"),
        Tile("Recall", rate(change.recall), f"of {_pixels(change.tp + change.fn)} changed"),
    ]
    if objects:
        strict = objects.rates
        hint = f"{number(objects.touched)} at least touched"
        numbers += [
            Tile("Objects found", f"{number(objects.matched)} of {number(objects.num_true)}", hint),
            Tile("False objects", number(objects.false), f"{number(objects.stray)} touch no true one"),
            Tile(
                "F1 of the objects",
                rate(strict.f1),
                f"precision {rate(strict.precision)}, recall {rate(strict.recall)}",
            ),
        ]
    right = int(np.trace(confusion_CC))
    numbers.append(Tile("Pixels right", percent(right / total if total else None), "unchanged ones included"))
    return [note(_headline(change, objects)), tiles(numbers)]


def _headline(change: Counts, objects: ObjectCounts | None) -> str:
    if change.tp + change.fn == 0:
        text = f"Nothing changed in these images; {_pixels(change.fp)} are marked all the same."
    else:
        text = f"The model finds {percent(change.recall)} of the changed area"
        marked = (
            f"{percent(change.precision)} of what it marks has changed" if change.tp + change.fp else "marks nothing"
        )
        text += f", and {marked}."
    if objects and objects.num_true:
        false = (
            "1 predicted object matches" if objects.false == 1 else f"{number(objects.false)} predicted objects match"
        )
        text += f" Of {_num(objects.num_true, 'changed object')} it finds {number(objects.matched)}"
        text += f" (and touches {number(objects.touched)}); {false} none."
    return text


def _classes(
    confusion_CC: NDArray[np.int64], names: Sequence[str], colours: Sequence[tuple[int, int, int]] | None
) -> list[Html]:
    rows: list[list[str | float | Cell | None]] = []
    counts = class_counts(confusion_CC)
    for k, (name, count) in enumerate(zip(names, counts, strict=True)):
        shown = tag("span", _swatch(colours[k]), name, style="white-space: nowrap") if colours else name
        rates = [Cell(rate(getattr(count, metric)), getattr(count, metric)) for metric in _RATES.values()]
        rows.append([shown, count.tp + count.fn, count.tp + count.fp, *rates])
    means = [float(np.mean([as_kpi(getattr(count, metric)) for count in counts])) for metric in _RATES.values()]
    rows.append(["mean of all classes", None, None, *(Cell(rate(mean), mean) for mean in means)])
    return [table(["class", "true pixels", "predicted pixels", *_RATES], rows)]


def _matrix(confusion_CC: NDArray[np.int64], names: Sequence[str]) -> Html:
    """Counts with their share of the row, washed in blue where right and in orange where wrong."""
    heads = [
        tag("th", text, scope="col", class_="num" if k else None)
        for k, text in enumerate(["true class ↓   called →", *names])
    ]
    rows = [
        tag("tr", tag("td", name), *(_matrix_cell(row, j, right=i == j) for j in range(len(names))))
        for i, (name, row) in enumerate(zip(names, confusion_CC, strict=True))
    ]
    grid = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("div", grid, class_="scroll")


def _matrix_cell(row_C: NDArray[np.int64], column: int, *, right: bool) -> Html:
    share = row_C[column] / row_C.sum() if row_C.sum() else None
    wash = (
        f"background: color-mix(in srgb, var(--{'good' if right else 'bad'}) {round(45 * (share or 0))}%, transparent)"
    )
    return tag("td", percent(share), tag("small", number(int(row_C[column]))), class_="num", style=wash)


def _objects(objects: ObjectCounts) -> Html:
    rates = objects.rates
    strict = [objects.matched, objects.missed, objects.false]
    lenient = [objects.touched, objects.num_true - objects.touched, objects.stray]
    num_predicted = objects.matched + objects.false
    lenient_rates = [_share(num_predicted - objects.stray, num_predicted), _share(objects.touched, objects.num_true)]
    return table(
        ["", "found", "missed", "false", "precision", "recall", "F1"],
        [
            [
                f"matched (IoU {MIN_IOU})",
                *strict,
                *(Cell(rate(v), v) for v in (rates.precision, rates.recall, rates.f1)),
            ],
            ["touched", *lenient, *(Cell(rate(v), v) for v in (*lenient_rates, _harmonic_mean(*lenient_rates)))],
        ],
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _harmonic_mean(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else 2 * a * b / (a + b) if a + b else 0.0


def _images(per_image: Sequence[ImageResult]) -> list[Html]:
    changed = [as_kpi(result.change.f1) for result in per_image if _has_change(result)]
    blocks = []
    if changed:
        bars = histogram(
            "F1 of the change, by image", {"images with change": changed}, bins=20, x_label="F1", y_label="% of images"
        )
        blocks.append(columns(bars, _image_facts(per_image)))
    header = ["image", "wrong", "missed", "false", *_RATES]
    with_objects = any(result.objects for result in per_image)
    header += ["objects", "found", "false objects"] if with_objects else []
    shown = sorted(per_image, key=_wrong_share, reverse=True)[:_MAX_IMAGES]
    blocks.append(table(header, [_image_row(result, with_objects) for result in shown], sortable=True))
    return blocks


def _image_row(result: ImageResult, with_objects: bool) -> list[str | float | Cell | None]:
    change, share = result.change, _wrong_share(result)
    rates = [Cell(rate(getattr(change, metric), 3), getattr(change, metric)) for metric in _RATES.values()]
    row: list[str | float | Cell | None] = [result.name, Cell(percent(share), share), change.fn, change.fp, *rates]
    if with_objects:
        objects = result.objects
        row += [objects.num_true, objects.matched, objects.false] if objects else [None, None, None]
    return row


def _image_facts(per_image: Sequence[ImageResult]) -> Html:
    with_change = [result for result in per_image if _has_change(result)]
    quiet = [result for result in per_image if not _has_change(result)]
    f1 = [as_kpi(result.change.f1) for result in with_change]
    return facts(
        {
            "images": len(per_image),
            "with change": len(with_change),
            "their median F1": rate(float(np.median(f1))),
            "of which F1 is below 0.5": sum(value < 0.5 for value in f1),
            "of which nothing is found": sum(not result.change.tp for result in with_change),
            "without change": len(quiet),
            "of which something is marked": sum(result.change.fp > 0 for result in quiet),
        }
    )


def _image_intro(per_image: Sequence[ImageResult]) -> str:
    text = "Missed and false in pixels; F1 is not defined where nothing changed and nothing is marked. "
    if len(per_image) > _MAX_IMAGES:
        text += (
            f"The {_MAX_IMAGES} of {number(len(per_image))} with the largest share of wrong pixels; the CSV has all. "
        )
    return text + "Click a heading to sort."


def _legend(num_classes: int) -> Html:
    kinds = {**OVERLAY_COLOURS, "ignored": (24, 24, 24)}
    if num_classes == 2:
        del kinds["other class"]
    keys = [tag("span", _swatch(colour), name) for name, colour in kinds.items()]
    return tag("div", *keys, class_="legend")


def _swatch(colour: tuple[int, int, int]) -> Html:
    red, green, blue = colour
    return tag("i", class_="key", style=f"color: rgb({red} {green} {blue}); box-shadow: 0 0 0 1px var(--rule)")


def _card(result: ImageResult, i: int, load_views: LoadViews, names: Sequence[str], *, good: bool) -> Picture:
    change, share = result.change, _wrong_share(result)
    about = {"F1": rate(change.f1), "missed": _pixels(change.fn), "false": _pixels(change.fp)}
    if result.objects:
        about["objects"] = f"{number(result.objects.matched)} of {number(result.objects.num_true)} found"
        about["objects"] += f", {number(result.objects.false)} false"
    images, problem = {}, ""
    try:
        views = load_views(i)
        window = _part_to_show(views, changed=good)
        rows, cols = window.slices
        height, width = views.truth.shape
        drawn = overlay(views.after[rows, cols], views.prediction[rows, cols], views.truth[rows, cols])
        pictures = {"before": views.before[rows, cols], "after": views.after[rows, cols], "result": drawn}
        images = {caption: data_uri(picture, max_side=_THUMBNAIL) for caption, picture in pictures.items()}
        if (window.height, window.width) != (height, width):
            about["shown"] = f"{window.width} × {window.height} pixels at row {window.top}, column {window.left}"
            about["shown"] += f" of {width} × {height}"
    except (UserError, OSError) as error:
        problem = f"The images cannot be read: {error}"
    badge = f"F1 {rate(change.f1, 3)}" if good else f"{percent(share)} wrong"
    return Picture(result.name, images, about, badge, "good" if good else "bad", problem)


def _part_to_show(views: Views, *, changed: bool) -> Window:
    """All of an image of moderate size; of a large one the window with the most change, or the most wrong pixels."""
    height, width = views.truth.shape
    if max(height, width) <= 1.5 * _LOOK:
        return Window(0, 0, height, width)
    known = views.truth != IGNORED
    wanted = known & ((views.truth > 0) if changed else (views.prediction != views.truth))
    best = max(windows(height, width, _LOOK, _LOOK // 2), key=lambda window: int(wanted[window.slices].sum()))
    return Window(best.top, best.left, min(_LOOK, height), min(_LOOK, width))


def _has_change(result: ImageResult) -> bool:
    return result.change.tp + result.change.fn > 0


def _wrong_share(result: ImageResult) -> float:
    return result.num_wrong / max(1, int(result.confusion.sum()))


def _pixels(count: int) -> str:
    return _num(count, "pixel")


def _num(count: int, thing: str) -> str:
    return f"{number(count)} {thing}" if count == 1 else f"{number(count)} {thing}s"
