"""From logits to masks, counts and files: the same for every runtime, validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from changenet.difference import resize
from changenet.segment.counts import IGNORED
from changenet.segment.image_files import ImageFiles, ImageRecord, Predicted
from changenet.segment.metrics import confusion, summary
from changenet.segment.model import FINAL
from changenet.segment.outputs import SegmentResults, object_kpis, write_evaluation, write_inference
from changenet.segment.reading import Pixels
from changenet.segment.soundness import is_unsound, unsound
from changenet.segment.tiles import Blend, Window
from fiducial.errors import MetricError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs
from fiducial.run.console import LOGGER
from fiducial.run.ranks import gather

__all__ = ["SegmentEvaluator"]

_THREADS = 4
_MAX_PENDING = 16
"""Images whose files may be unwritten at a time."""


class SegmentEvaluator(Evaluator[SegmentResults]):
    """Turns the logits of every batch into masks and counts, whatever ran the model.

    Without ``files``, pixels are counted where the logits are, and no step waits. With them, each image is fetched and
    handed over as soon as it is finished, to be written in threads, so that the network need not wait for those.
    Windows of an image must come one after the other, on one rank; their probabilities are blended (not in training,
    whose windows are drawn at random).

    Outputs that are not numbers end ``evaluate`` and ``inference``; in training they make the metrics NaN.
    """

    on_host = frozenset({"index", "size", "corner", "valid"})

    def __init__(self, stage: Stage, num_classes: int, *, files: ImageFiles | None = None) -> None:
        if files is not None:  # which are made on the CPU
            self.on_host = self.on_host | {"L"}
        self.stage, self.num_classes, self.files = stage, num_classes, files
        self.keep_prob = files is not None and files.data.outputs.probabilities
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[ImageRecord]] = deque()
        self._records: list[ImageRecord] = []
        self._matrix: Tensor | None = None
        self._num_unsound: Tensor | int = 0
        self._open: _OpenImage | None = None

    @torch.no_grad()
    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        """Take a batch of logits ``(B, K, S, S)``.

        Raises: MetricError naming the images whose logits are NaN or infinite, in ``evaluate`` and ``inference``.
        """
        logit_BKSS = outputs[FINAL].detach()
        self._look(is_unsound(logit_BKSS), batch)
        in_windows = "corner" in batch and self.stage != "train"
        if self.files is None and not in_windows:
            self._count(confusion(_classes(logit_BKSS, 1), batch["L"], self.num_classes).sum(0))
            return
        labels = batch.get("L")
        sizes = [(int(height), int(width)) for height, width in batch["size"].tolist()]
        for i, index in enumerate(batch["index"].tolist()):
            logit_KHW = logit_BKSS[i].float()
            label = None if labels is None else labels[i].cpu().numpy()
            if in_windows:
                valid = batch["valid"][i].numpy() if "valid" in batch else None
                self._add_window(index, sizes[i], batch["corner"][i].tolist(), logit_KHW, label, valid)
                continue
            logit_KHW = resize(logit_KHW[None], sizes[i])[0]
            mask = _classes(logit_KHW, 0).to(torch.uint8).cpu().numpy()
            prob = logit_KHW.softmax(0).cpu().numpy() if self.keep_prob else None
            self._hand_over(Predicted(index, mask, prob, label))

    def finish(self) -> SegmentResults:
        """What all ranks counted, and the records of their images in the order of the list; forgets both.

        Raises: MetricError when nothing came that was to be written, or when windows of an image did not come.
        """
        if self._open is not None and self.files is not None:
            raise MetricError("evaluation", f"the windows of image {self._open.index} are not complete", "run again")
        self._open = None  # of the few batches that are tried before training
        self._wait(0)
        matrix = None if self._matrix is None else self._matrix.cpu().numpy()
        ranks = gather((matrix, self._records, int(self._num_unsound)))
        self._matrix, self._records, self._num_unsound = None, [], 0
        counted = [part for part, _, _ in ranks if part is not None]
        records = sorted((record for _, part, _ in ranks for record in part), key=lambda record: record.index)
        if not records and self.files is not None:
            raise MetricError("evaluation", "no images were predicted", "check the list of the split")
        counted += [record.result.confusion for record in records if record.result is not None]
        num_unsound = sum(number for _, _, number in ranks)
        return SegmentResults(np.sum(counted, axis=0) if counted else None, records, num_unsound)

    def kpis(self, result: SegmentResults) -> Kpis:
        if result.matrix is None or self.stage == "infer":
            return {}
        kpis: Kpis = {f"{self.stage}_{name}": value for name, value in summary(result.matrix).items()}
        if result.num_unsound:
            LOGGER.warning("%d outputs of the model were NaN or infinite: no metric is known", result.num_unsound)
            return dict.fromkeys(kpis, math.nan)
        if self.stage == "test":
            kpis |= object_kpis(result.objects)
        return kpis

    def write(self, result: SegmentResults, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        """Write what sums up the images."""
        if self.files is None:
            return ()
        folder = self.files.folder
        if self.stage == "infer":
            path = write_inference(result.records, self.files)
            LOGGER.info("masks: %s", folder / "masks")
            LOGGER.info("changes: %s", path)
            return (path,)
        kpis = self.kpis(result)
        written = write_evaluation(result, kpis, self.files, facts)
        names = ("test_iou_1", "test_F1_1", "test_precision_1", "test_recall_1", "test_miou", "test_acc")
        LOGGER.info("%d images: %s", len(result.records), ", ".join(f"{name} {kpis[name]:.4f}" for name in names))
        LOGGER.info("report: %s", folder / "report.html")
        return written

    def _look(self, is_bad_B: Tensor, batch: Batch) -> None:
        if self.stage in ("train", "val"):  # not asked for yet: the device need not wait
            self._num_unsound = self._num_unsound + is_bad_B.sum()
        elif (is_bad_B := is_bad_B.cpu()).any():
            indices = batch["index"].cpu()[is_bad_B].tolist()
            raise unsound(
                self.files.where(index) if self.files else f"image {index}" for index in dict.fromkeys(indices)
            )

    def _count(self, matrix_KK: Tensor) -> None:
        self._matrix = matrix_KK if self._matrix is None else self._matrix + matrix_KK

    def _hand_over(self, image: Predicted) -> None:
        if self.files is None:  # validation of windows
            if image.label is not None:
                mask, label = (torch.from_numpy(part)[None] for part in (image.mask, image.label))
                self._count(confusion(mask, label, self.num_classes)[0])
            return
        self._pool = self._pool or ThreadPoolExecutor(_THREADS)
        self._pending.append(self._pool.submit(self.files, image))
        self._wait(_MAX_PENDING)

    def _wait(self, num_left: int) -> None:
        """Until at most this many images are unfinished."""
        while len(self._pending) > num_left:
            self._records.append(self._pending.popleft().result())

    def _add_window(
        self,
        index: int,
        size: tuple[int, int],
        corner: Sequence[int],
        logit_KSS: Tensor,
        label: Pixels | None,
        valid: NDArray[np.bool_] | None,
    ) -> None:
        if self._open is None:
            self._open = _OpenImage(index, size, self.num_classes, keep_prob=self.keep_prob)
        window = Window(corner[0], corner[1], *logit_KSS.shape[-2:])
        if self._open.add(window, logit_KSS.softmax(0).cpu().numpy(), label, valid):
            done, self._open = self._open.finish(), None
            self._hand_over(done)


def _classes(logit: Tensor, dim: int) -> Tensor:
    """The most likely class, the first of equal ones. On a CPU ``argmax`` takes ten times as long."""
    return logit.max(dim).indices


class _OpenImage:
    """An image whose windows are still coming."""

    def __init__(self, index: int, size: tuple[int, int], num_classes: int, *, keep_prob: bool) -> None:
        self.index, self.size, self.keep_prob = index, size, keep_prob
        self.blend = Blend(num_classes, *size)
        self.mask_rows: list[Pixels] = []
        self.prob_rows: list[NDArray[np.float32]] = []
        self.label: Pixels | None = None
        self.valid: NDArray[np.bool_] | None = None

    def add(
        self,
        window: Window,
        prob_KSS: NDArray[np.float32],
        label: Pixels | None,
        valid: NDArray[np.bool_] | None,
    ) -> bool:
        """Take a window; whether it was the last one."""
        self._rows(self.blend.add(window, prob_KSS))
        height, width = self.size
        if label is not None:
            if self.label is None:
                self.label = np.full(self.size, IGNORED, dtype=np.uint8)
            self.label[window.slices] = label[: height - window.top, : width - window.left]
        if valid is not None:
            if self.valid is None:
                self.valid = np.zeros(self.size, dtype=bool)
            self.valid[window.slices] = valid[: height - window.top, : width - window.left]
        return window.top + window.height >= height and window.left + window.width >= width

    def finish(self) -> Predicted:
        self._rows(self.blend.finish())
        prob = np.concatenate(self.prob_rows, axis=1) if self.keep_prob else None
        return Predicted(self.index, np.concatenate(self.mask_rows), prob, self.label, self.valid)

    def _rows(self, prob_KhW: NDArray[np.float32]) -> None:
        self.mask_rows.append(prob_KhW.argmax(0).astype(np.uint8))
        if self.keep_prob:
            self.prob_rows.append(prob_KhW)
