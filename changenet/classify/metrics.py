"""How good the PASS / FAIL decisions are: TAO's KPIs by TAO's definitions, and the usual rates beside them.

Everything takes ``score`` ``(N,)`` float and ``label`` ``(N,)`` int, 0 = PASS, 1 = defect. A row is called FAIL when
``score > margin``, compared in the dtype of ``score`` as TAO does.

Legend: N rows, U distinct scores (from high to low), R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_stat_scores

from changenet.classify.metric_names import METRICS
from fiducial.errors import MetricError
from fiducial.metric_table import Stage

__all__ = [
    "CONFIDENCE",
    "ClassifyReport",
    "Rates",
    "Threshold",
    "checked_margin",
    "classify_report",
    "false_alarm_rate",
    "ranked",
    "suggest_margin",
    "tao_counts",
    "threshold_table",
    "val_far",
]

CONFIDENCE = 0.95
"""Coverage of the bootstrap intervals."""

FAR_RECALLS = {"far_at_recall_1000": 1.0, "far_at_recall_999": 0.999, "far_at_recall_990": 0.99}

_CELLS_PER_CHUNK = 2**20  # resamples x distinct scores held at once: some 60 MB


@dataclass(frozen=True)
class Rates:
    """The metrics of one set of rows, as fractions 0..1. None: undefined, because a class or a decision is missing.

    ``intervals`` maps metric names to the two ends of their confidence interval; empty without a bootstrap.
    """

    num: int
    num_defects: int
    tp: int
    fp: int
    tn: int
    fn: int
    accuracy: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    average_precision: float | None
    far_at_recall_1000: float | None
    far_at_recall_999: float | None
    far_at_recall_990: float | None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def confusion_matrix(self) -> list[list[int]]:
        """Rows are the truth (PASS, defect), columns the decision (PASS, FAIL)."""
        return [[self.tn, self.fp], [self.fn, self.tp]]

    def plain(self) -> dict[str, Any]:
        """JSON types only."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        return {**vars(self), "confusion_matrix": self.confusion_matrix, "intervals": intervals}

    def kpis(self, stage: Stage) -> dict[str, float]:
        """These rows under the names of ``metric_names``, loss excepted. Where undefined NaN, for ``far*`` 100."""
        values = {
            **_tao_kpis(self.tp, self.fp, self.tn, self.fn),
            "far": _percent(self.far_at_recall_1000, missing=100.0),
            "far_999": _percent(self.far_at_recall_999, missing=100.0),
            "far_990": _percent(self.far_at_recall_990, missing=100.0),
            "true_fpr": _percent(self.false_positive_rate),
            "true_fnr": _percent(self.false_negative_rate),
            "precision": _or_nan(self.precision),
            "recall": _or_nan(self.recall),
            "f1": _or_nan(self.f1),
            "auroc": _or_nan(self.auroc),
            "ap": _or_nan(self.average_precision),
        }
        return {full: values[row.short] for full, row in METRICS.kpis(stage).items() if row.unit != "loss"}


@dataclass(frozen=True)
class ClassifyReport:
    """The metrics of all rows, and of each group of rows, at one margin."""

    margin: float
    total: Rates
    groups: Mapping[str, Rates] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON types only: what ``metrics.json`` holds."""
        groups = {name: rates.plain() for name, rates in self.groups.items()}
        return {"margin": self.margin, "confidence": CONFIDENCE, "total": self.total.plain(), "groups": groups}

    def kpis(self, stage: Stage, *, per_group: bool = False) -> dict[str, float]:
        """The metrics by the names of ``metric_names``; ``per_group`` adds ``<name>/<group>`` for each group."""
        kpis = self.total.kpis(stage)
        if per_group:
            for group, rates in self.groups.items():
                kpis |= {f"{name}/{group}": value for name, value in rates.kpis(stage).items()}
        return kpis


@dataclass(frozen=True)
class Threshold:
    """What one margin costs. ``precision`` and ``f1`` are None where nothing fails, ``recall`` without defects."""

    threshold: float
    missed_defects: int
    false_alarms: int
    precision: float | None
    recall: float | None
    f1: float | None


def tao_counts(score: Tensor, label: Tensor, margin: float) -> dict[str, float]:
    """TAO's four numbers of the AOI metrics (up to 7.0), in percent; all 0 without rows.

    ``false_alarm`` and ``false_negative`` are parts of ALL rows, ``defect_accuracy`` of the defects (0 without any).
    Raises: MetricError for unusable scores or labels.
    """
    kpis = _tao_kpis(*_counts(*_checked(score, label), margin))
    names = {"total_accuracy": "acc", "defect_accuracy": "defect_acc", "false_alarm": "fpr", "false_negative": "fnr"}
    return {name: kpis[short] for name, short in names.items()}


def false_alarm_rate(score: Tensor, label: Tensor, *, min_recall: float) -> float:
    """Least fraction (0..1) of good rows that fail when at least ``min_recall`` (0..1] of the defects must fail.

    A good row that ties with the last defect to be found is a false alarm: no threshold parts them. Counts rows, where
    torchmetrics' ``binary_specificity_at_sensitivity`` compares float32 rates.
    Raises: MetricError when either class is missing; ValueError when ``min_recall`` is outside (0, 1].
    """
    score, label = _checked(score, label)
    for value, name in ((1, "defect"), (0, "PASS")):
        if not (label == value).any():
            raise MetricError("label", f"no {name} samples", "a false-alarm rate needs good and defect rows")
    defects = score[label == 1].sort(descending=True).values
    last = defects[_num_to_find(len(defects), min_recall) - 1]
    return float((score[label == 0] >= last).double().mean())


def val_far(score: Tensor, label: Tensor) -> float:
    """TAO 7.1's ``val_far``: percent of good rows that fail when no defect may pass; 100 when a class is missing."""
    score, label = _checked(score, label)
    return _percent(_far_or_none(score, label, 1.0), missing=100.0)


def classify_report(
    score: Tensor,
    label: Tensor,
    margin: float,
    *,
    groups: Sequence[str] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> ClassifyReport:
    """Every metric at ``margin``, of all rows and of each group.

    ``groups`` names the group (component type) of each row. ``bootstrap`` is the number of resamples behind the
    percentile intervals (0: none); rows are drawn with replacement within their class, so that class sizes stay.
    Raises: MetricError for unusable scores, labels or groups.
    """
    score, label = _checked(score, label)
    if groups is not None and len(groups) != len(score):
        raise MetricError("groups", f"{len(groups)} names for {len(score)} scores", "give one group name per row")
    members: dict[str, list[int]] = {}
    for row, name in enumerate(groups or ()):
        members.setdefault(name, []).append(row)
    return ClassifyReport(
        margin,
        _rates(score, label, margin, bootstrap, seed),
        {name: _rates(score[rows], label[rows], margin, bootstrap, seed) for name, rows in sorted(members.items())},
    )


def threshold_table(score: Tensor, label: Tensor) -> list[Threshold]:
    """The margins worth choosing from: for each number of missed defects, the one with the fewest false alarms.

    From low to high; margins that miss more defects than another without saving a false alarm are left out. Each lies
    halfway between the lowest score that it fails and the highest that it passes (0 if there is none), in the dtype of
    the scores.
    """
    score, label = _checked(score, label)
    if len(score) == 0:
        return []
    values_U, tp_U, fp_U = _cumulated(score, label)
    num_defects = int(tp_U[-1])
    candidates = [(float(values_U[0]), 0, 0)]  # nothing fails
    candidates += zip(_below(values_U).tolist(), tp_U.tolist(), fp_U.tolist(), strict=True)

    kept: list[Threshold] = []
    for threshold, tp, fp in candidates:  # each fails more rows than the one before
        if kept and kept[-1].missed_defects == num_defects - tp:
            continue  # more false alarms, no defect more
        if kept and kept[-1].false_alarms == fp:
            kept.pop()  # the same false alarms, fewer missed
        fn = num_defects - tp
        precision, recall, f1 = _ratio(tp, tp + fp), _ratio(tp, num_defects), _ratio(2 * tp, 2 * tp + fp + fn)
        kept.append(Threshold(threshold, fn, fp, precision, recall, f1))
    return kept[::-1]


def suggest_margin(score: Tensor, label: Tensor, min_recall: float = 1.0) -> float:
    """The largest margin that still fails at least ``min_recall`` (0..1] of the defects.

    It lies just below the score of the last defect to be found: rounded down to the fewest digits, at least four, with
    which no good row fails that a larger margin would pass. Below 0 when that score is 0 or less.

    Raises: MetricError without defects; ValueError when ``min_recall`` is outside (0, 1].
    """
    score, label = _checked(score, label)
    if not label.any():
        raise MetricError("label", "no defect samples", "a margin cannot be chosen without defects")
    values_U, tp_U, _ = _cumulated(score, label)
    first = int((tp_U < _num_to_find(int(tp_U[-1]), min_recall)).sum())
    return _just_below(values_U, first)


def _just_below(values_U: Tensor, place: int) -> float:
    """The shortest decimal, of at least four digits, just below one of the distinct scores and not below the next."""
    value, next_lower = float(values_U[place]), float(values_U[place + 1]) if place + 1 < len(values_U) else -math.inf
    if value <= 0:
        return float(_below(values_U)[place])  # only margins that no spec should have are lower
    exact = Decimal(value)
    for digits in range(4, 18):
        step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
        above = exact.quantize(step, ROUND_CEILING)
        for margin in (float(above - step), float(above - 2 * step)):  # the first may round to the score itself
            if next_lower <= float(torch.tensor(margin, dtype=values_U.dtype)) < value:
                return margin
    return next_lower  # neighbouring floats have nothing between


def ranked(score: Tensor) -> Tensor:
    """Scores as ``(N,)`` float64 in 0..1 with the same order and ties.

    torchmetrics takes scores outside 0..1 for logits and puts them through a sigmoid, which ties large distances.
    """
    values_U, place_N = _descending(score)
    return 1 - place_N.double() / max(1, len(values_U) - 1)


def _checked(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Detached CPU tensors, halves widened; anything that would make a number meaningless is refused."""
    if score.dim() != 1 or score.shape != label.shape:
        found = f"score {tuple(score.shape)}, label {tuple(label.shape)}"
        raise MetricError("score, label", found, "give one score and one label per row")
    score, label = score.detach().cpu(), label.detach().cpu().long()
    score = score if score.dtype == torch.float64 else score.float()
    num_bad = int((~score.isfinite()).sum())
    if num_bad:
        found = f"{num_bad} of {len(score)} scores are NaN or infinite"
        raise MetricError("score", found, "check the checkpoint, the learning rate and the precision")
    if not ((label == 0) | (label == 1)).all():
        raise MetricError("label", f"values {sorted(set(label.tolist()))[:5]}", "labels are 0 (PASS) or 1 (defect)")
    return score, label


def checked_margin(margin: float) -> float:
    """``margin``. Raises: MetricError when it is NaN or, as float32, infinite: no score would be above it."""
    if not abs(margin) <= torch.finfo(torch.float32).max:
        raise MetricError("eval_margin", f"{margin!r}", "give a finite number: with this one every row would PASS")
    return margin


def _counts(score: Tensor, label: Tensor, margin: float) -> tuple[int, int, int, int]:
    """tp, fp, tn, fn."""
    checked_margin(margin)
    if len(score) == 0:
        return 0, 0, 0, 0
    tp, fp, tn, fn, _ = binary_stat_scores((score > margin).long(), label).tolist()
    return tp, fp, tn, fn


def _tao_kpis(tp: int, fp: int, tn: int, fn: int) -> dict[str, float]:
    # TAO-compat: a clean design would divide false alarms by the good rows and missed defects by the defects;
    # those stand beside these as true_fpr and true_fnr.
    num = tp + fp + tn + fn
    parts = {"acc": (tp + tn, num), "fpr": (fp, num), "fnr": (fn, num), "defect_acc": (tp, tp + fn)}
    return {name: _percent(_ratio(part, whole), missing=0.0) for name, (part, whole) in parts.items()}


def _rates(score: Tensor, label: Tensor, margin: float, bootstrap: int, seed: int) -> Rates:
    tp, fp, tn, fn = _counts(score, label, margin)
    num, num_defects = len(label), tp + fn
    both = 0 < num_defects < num
    point = {
        "accuracy": _ratio(tp + tn, num),
        "false_positive_rate": _ratio(fp, fp + tn),
        "false_negative_rate": _ratio(fn, num_defects),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, num_defects),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auroc": float(binary_auroc(ranked(score), label)) if both else None,
        "average_precision": float(binary_average_precision(ranked(score), label)) if both else None,
        **{name: _far_or_none(score, label, recall) for name, recall in FAR_RECALLS.items()},
    }
    ends = _intervals(score, label, margin, bootstrap, seed) if bootstrap and num else {}
    intervals = {name: ends[name] for name, value in point.items() if name in ends and value is not None}
    return Rates(num, num_defects, tp, fp, tn, fn, **point, intervals=intervals)


def _intervals(score: Tensor, label: Tensor, margin: float, num: int, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap, stratified by class; metrics undefined in every resample are left out."""
    values_U, rank_N = _descending(score)
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CELLS_PER_CHUNK // len(score))
    parts = []
    for start in range(0, num, chunk):
        size = min(chunk, num - start)
        tp_RU, fp_RU = (_resample(rank_N[label == value], len(values_U), size, generator) for value in (1, 0))
        parts.append(_resampled_metrics(tp_RU, fp_RU, int((values_U > margin).sum())))
    tail = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    ends = {name: torch.cat([part[name] for part in parts]).nanquantile(tail).tolist() for name in parts[0]}
    return {name: (low, high) for name, (low, high) in ends.items() if not math.isnan(low)}


def _resample(rank_n: Tensor, num_values: int, size: int, generator: torch.Generator) -> Tensor:
    """``(R, U)``: per resample of one class, how many of its rows have at least each distinct score."""
    count_RU = torch.zeros(size, num_values, dtype=torch.int32)
    if len(rank_n):
        drawn_Rn = rank_n[torch.randint(len(rank_n), (size, len(rank_n)), generator=generator)]
        count_RU.scatter_add_(1, drawn_Rn, torch.ones_like(drawn_Rn, dtype=torch.int32))
    return count_RU.cumsum(1, dtype=torch.int32)


def _resampled_metrics(tp_RU: Tensor, fp_RU: Tensor, num_failing: int) -> dict[str, Tensor]:
    """The metrics of ``Rates``, each ``(R,)`` float64, from cumulated counts; NaN where undefined.

    torchmetrics computes one resample at a time, which takes minutes for what this does in a second.
    ``num_failing``: how many of the distinct scores are above the margin.
    """
    tp_RU, fp_RU = (torch.nn.functional.pad(count, (1, 0)).double() for count in (tp_RU, fp_RU))
    defects_R, good_R = tp_RU[:, -1], fp_RU[:, -1]
    tp_R, fp_R = tp_RU[:, num_failing], fp_RU[:, num_failing]
    fn_R, tn_R = defects_R - tp_R, good_R - fp_R
    found_RU = tp_RU.diff(dim=1)
    precision_RU = tp_RU[:, 1:] / (tp_RU + fp_RU)[:, 1:].clamp(min=1)
    metrics = {
        "accuracy": (tp_R + tn_R) / (defects_R + good_R),
        "false_positive_rate": fp_R / good_R,
        "false_negative_rate": fn_R / defects_R,
        "precision": tp_R / (tp_R + fp_R),
        "recall": tp_R / defects_R,
        "f1": 2 * tp_R / (2 * tp_R + fp_R + fn_R),
        "auroc": torch.trapezoid(tp_RU, fp_RU, dim=1) / (defects_R * good_R),
        "average_precision": (found_RU * precision_RU).sum(1) / defects_R,
    }
    for name, recall in FAR_RECALLS.items():
        needed = _num_to_find(int(defects_R[0]), recall)  # class sizes are those of the data in every resample
        first_R1 = (tp_RU < needed).sum(1, keepdim=True).clamp(max=tp_RU.shape[1] - 1)
        metrics[name] = fp_RU.gather(1, first_R1).squeeze(1) / good_R
    return metrics


def _descending(score: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct scores from high to low, and the place of each row's score among them."""
    values, rank_N = torch.unique(score, return_inverse=True)
    return values.flip(0), len(values) - 1 - rank_N


def _cumulated(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores from high to low; how many defects, and how many good rows, score at least that."""
    values_U, rank_N = _descending(score)
    defects, good = (torch.bincount(rank_N[label == value], minlength=len(values_U)) for value in (1, 0))
    return values_U, defects.cumsum(0), good.cumsum(0)


def _below(values_U: Tensor) -> Tensor:
    """``(U,)``: margins that fail each distinct score and pass the next lower one (0 below the last if positive)."""
    floor = values_U[-1:].clamp(max=0) - (values_U[-1:] <= 0).to(values_U.dtype)
    lower_U = torch.cat([values_U[1:], floor])
    middle_U = lower_U + (values_U - lower_U) / 2
    return torch.where(middle_U < values_U, middle_U, lower_U)  # neighbouring floats have nothing between


def _far_or_none(score: Tensor, label: Tensor, min_recall: float) -> float | None:
    if len(torch.unique(label)) < 2:
        return None
    return false_alarm_rate(score, label, min_recall=min_recall)


def _num_to_find(num_defects: int, min_recall: float) -> int:
    if not 0 < min_recall <= 1:
        raise ValueError(f"min_recall must be in (0, 1], got {min_recall}")
    return math.ceil(min_recall * num_defects - 1e-9)  # 0.07 * 100 is a little above 7 in floating point


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else 100 * value
