"""From logits to masks, whatever ran the model: sliding windows are blended, finished images are handed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from changenet.difference import resize
from changenet.segment.counts import IGNORED
from changenet.segment.image_results import ImageResult
from changenet.segment.reading import Pixels
from changenet.segment.tiles import Blend, Window
from fiducial.errors import MetricError
from fiducial.run.ranks import gather

__all__ = ["ImageRecord", "Predicted", "SegmentEvaluator"]

_THREADS = 4
_MAX_PENDING = 16
"""Images whose files may be unwritten at a time."""


@dataclass(frozen=True)
class Predicted:
    """The result for one image: class numbers uint8 ``(H, W)``; probabilities float32 ``(K, H, W)`` where kept; the
    true class numbers uint8 ``(H, W)`` where known."""

    index: int
    mask: Pixels
    prob: NDArray[np.float32] | None
    label: Pixels | None


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of an image once its files are written."""

    index: int
    changed_pixels: int
    pixels: int
    result: ImageResult | None
    """None in inference."""


class SegmentEvaluator:
    """Turns the logits of every batch into masks, whatever ran the model, and hands each finished image to ``take``.

    Windows of an image must come one after the other, on one rank; their probabilities are blended. ``keep_prob`` gives
    ``take`` the probabilities too. ``take`` is called in threads, so that the network need not wait for the files.
    """

    def __init__(self, num_classes: int, take: Callable[[Predicted], ImageRecord], *, keep_prob: bool = False) -> None:
        self.num_classes, self.take, self.keep_prob = num_classes, take, keep_prob
        self._pool = ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[ImageRecord]] = deque()
        self._records: list[ImageRecord] = []
        self._open: _OpenImage | None = None

    @torch.no_grad()
    def update(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Take a batch of logits ``(B, K, S, S)``."""
        labels = batch.get("L")
        sizes = [(int(height), int(width)) for height, width in batch["size"].tolist()]
        for i, index in enumerate(batch["index"].tolist()):
            logit_KHW = output[i].float()
            label = None if labels is None else labels[i].cpu().numpy()
            if "corner" in batch:
                self._add_window(index, sizes[i], batch["corner"][i].tolist(), logit_KHW, label)
                continue
            logit_KHW = resize(logit_KHW[None], sizes[i])[0]
            mask = logit_KHW.argmax(0).to(torch.uint8).cpu().numpy()
            prob = logit_KHW.softmax(0).cpu().numpy() if self.keep_prob else None
            self._hand_over(Predicted(index, mask, prob, label))

    def finish(self) -> list[ImageRecord]:
        """The records of all ranks, in the order of the list; forgets them.

        Raises: MetricError when there are none, or when windows of an image did not come.
        """
        if self._open is not None:
            raise MetricError("evaluation", f"the windows of image {self._open.index} are not complete", "run again")
        self._wait(0)
        records = sorted((r for rank in gather(self._records) for r in rank), key=lambda r: r.index)
        self._records = []
        if not records:
            raise MetricError("evaluation", "no images were predicted", "check the list of the split")
        return records

    def _hand_over(self, image: Predicted) -> None:
        self._pending.append(self._pool.submit(self.take, image))
        self._wait(_MAX_PENDING)

    def _wait(self, num_left: int) -> None:
        """Until at most this many images are unfinished."""
        while len(self._pending) > num_left:
            self._records.append(self._pending.popleft().result())

    def _add_window(
        self, index: int, size: tuple[int, int], corner: Sequence[int], logit_KSS: Tensor, label: Pixels | None
    ) -> None:
        if self._open is None:
            self._open = _OpenImage(index, size, self.num_classes, keep_prob=self.keep_prob)
        window = Window(corner[0], corner[1], *logit_KSS.shape[-2:])
        if self._open.add(window, logit_KSS.softmax(0).cpu().numpy(), label):
            done, self._open = self._open.finish(), None
            self._hand_over(done)


class _OpenImage:
    """An image whose windows are still coming."""

    def __init__(self, index: int, size: tuple[int, int], num_classes: int, *, keep_prob: bool) -> None:
        self.index, self.size, self.keep_prob = index, size, keep_prob
        self.blend = Blend(num_classes, *size)
        self.mask_rows: list[Pixels] = []
        self.prob_rows: list[NDArray[np.float32]] = []
        self.label: Pixels | None = None

    def add(self, window: Window, prob_KSS: NDArray[np.float32], label: Pixels | None) -> bool:
        """Take a window; whether it was the last one."""
        self._rows(self.blend.add(window, prob_KSS))
        height, width = self.size
        if label is not None:
            if self.label is None:
                self.label = np.full(self.size, IGNORED, dtype=np.uint8)
            self.label[window.slices] = label[: height - window.top, : width - window.left]
        return window.top + window.height >= height and window.left + window.width >= width

    def finish(self) -> Predicted:
        self._rows(self.blend.finish())
        prob = np.concatenate(self.prob_rows, axis=1) if self.keep_prob else None
        return Predicted(self.index, np.concatenate(self.mask_rows), prob, self.label)

    def _rows(self, prob_KhW: NDArray[np.float32]) -> None:
        self.mask_rows.append(prob_KhW.argmax(0).astype(np.uint8))
        if self.keep_prob:
            self.prob_rows.append(prob_KhW)
