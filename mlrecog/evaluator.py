"""From embeddings to numbers and files: the same for validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fiducial.errors import MetricError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs
from fiducial.run.console import LOGGER
from fiducial.run.ranks import gather
from mlrecog.gallery import AnyGallery, Gallery
from mlrecog.metrics import clusters
from mlrecog.neighbours import Engine, unit
from mlrecog.outputs import write_evaluation, write_inference
from mlrecog.predictor import EMBEDDING
from mlrecog.results import Answers, Embedded, Labelled

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec

__all__ = ["RecogEvaluator", "RecogFiles"]

_KPIS = {
    "{stage} Mean Average Precision": "mean_average_precision",
    "{stage} Mean Reciprocal Rank": "mean_reciprocal_rank",
    "{stage} r-Precision": "r_precision",
    "{stage} Precision at Rank 1": "precision_at_1",
    "{stage}_MAP_at_R": "mean_average_precision_at_r",
    "{stage}_recall_at_1": "recall_at_1",
    "{stage}_recall_at_5": "recall_at_5",
    "{stage}_recall_at_10": "recall_at_10",
    "{stage}_NDCG_at_10": "ndcg_at_10",
}
"""Of each KPI, the metric of :class:`Retrieval`."""


@dataclass(frozen=True)
class RecogFiles:
    """Where the files of ``evaluate`` and ``inference`` go, and the spec that says which."""

    folder: Path
    spec: ExperimentSpec


class RecogEvaluator(Evaluator[Embedded]):
    """Collects embeddings on every rank.

    ``sides``: what the loaders of the stage give, in their order. ``same``: gallery and queries are one set.
    ``by_class``: average over classes. ``clustering``: also compute AMI and NMI. ``kept``: the gallery that inference
    searches, where it is no folder of pictures. ``engine`` finds the neighbours.
    """

    on_host = frozenset({"place"})

    def __init__(
        self,
        stage: Stage,
        sides: Sequence[Labelled],
        *,
        same: bool = False,
        by_class: bool = True,
        clustering: bool = True,
        kept: AnyGallery | None = None,
        engine: Engine = "torch",
        files: RecogFiles | None = None,
    ) -> None:
        self.stage, self.sides, self.same = stage, tuple(sides), same
        self.by_class, self.clustering, self.kept, self.files = by_class, clustering, kept, files
        self.engine: Engine = engine
        self._found: dict[int, list[tuple[list[int], Tensor]]] = {}
        self._measured: tuple[Embedded, Kpis, Answers | None] | None = None
        """What was measured of a result, which the numbers and the files are made of."""

    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        """In training the embeddings stay on their device until :meth:`finish`; else they are fetched, and looked at.

        Raises: MetricError naming a picture whose embedding is no number, in ``evaluate`` and ``inference``.
        """
        x_BD, places = unit(outputs[EMBEDDING].detach()), batch["place"].tolist()
        if self.stage != "val":  # which may be too many for a GPU, and of which the first bad one should end the run
            x_BD = x_BD.cpu()
            self._check(x_BD, places, source)
        self._found.setdefault(source, []).append((places, x_BD))

    def _check(self, x_BD: Tensor, places: Sequence[int], source: int) -> None:
        if bad := torch.nonzero(~x_BD.isfinite().all(1)).flatten().tolist():
            path = self.sides[source].samples[places[bad[0]]].path
            raise MetricError(str(path), "the model's output is not a number", "look at its training")

    def finish(self) -> Embedded:
        """Raises: MetricError naming a picture whose embedding is no number."""
        fetched = {source: [(places, x.cpu()) for places, x in parts] for source, parts in self._found.items()}
        self._found = {}
        ranks = gather(fetched)
        del fetched
        embeddings = []
        for source, side in enumerate(self.sides):
            parts = [part for rank in reversed(ranks) for part in reversed(rank.pop(source, ()))]
            width = parts[0][1].shape[1] if parts else 0
            x_ND = torch.zeros(len(side.samples), width)
            while parts:  # each is let go of when it is in its place: all embeddings are there once
                places, rows = parts.pop()
                self._check(rows, places, source)
                x_ND[places] = rows
            embeddings.append(x_ND)
        return Embedded(self.sides, tuple(embeddings), self.same, self.engine)

    def kpis(self, result: Embedded) -> Kpis:
        return dict(self._measure(result)[0])

    def _measure(self, result: Embedded) -> tuple[Kpis, Answers | None]:
        if self._measured is None or self._measured[0] is not result:
            answers = self._answers(result) if self.stage == "infer" else None
            kpis = self._kpis(result) if answers is None else answers.kpis
            self._measured = result, kpis, answers
        return self._measured[1:]

    def _kpis(self, result: Embedded) -> Kpis:
        found = result.retrieval
        kpis: Kpis = {
            name.format(stage=self.stage): found.mean(metric, by_class=self.by_class) for name, metric in _KPIS.items()
        }
        if not found.counted.any():
            why = "each class has one picture" if self.same else "no class of the queries is in the gallery"
            LOGGER.warning("%s: nothing can be found", why)
        if self.stage == "test":
            kpis["test_mAP"] = result.whole_map(self.by_class)
        if self.clustering:
            told = clusters(result.embeddings[1], self.sides[1].labels)
            kpis |= {f"{self.stage}_{name}": value for name, value in told.items()}
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in kpis.items()}

    def write(self, result: Embedded, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        if self.files is None:
            return ()
        kpis, answers = self._measure(result)
        if answers is not None:
            return write_inference(self.files.folder, self.files.spec, answers, facts)
        return write_evaluation(self.files.folder, self.files.spec, result, kpis, facts)

    def _answers(self, result: Embedded) -> Answers:
        assert self.files is not None
        section = self.files.spec.inference
        gallery = self.kept or Gallery.of_folders(
            [self.sides[0].names[sample.label] for sample in self.sides[0].samples],
            [str(sample.path) for sample in self.sides[0].samples],
            result.embeddings[0],
        )
        if isinstance(gallery, Gallery):
            gallery.engine = self.engine
        if section.topk > len(gallery):
            LOGGER.warning("inference.topk: %d, and the gallery has %d pictures", section.topk, len(gallery))
        found = gallery.search(result.embeddings[-1], section.topk)
        card = gallery.card.deciding(section.threshold, section.margin)
        decisions = found.decisions(card.threshold, card.margin)
        paths = tuple(sample.path for sample in self.sides[-1].samples)
        return Answers(paths, found, tuple(decisions), self.sides)
