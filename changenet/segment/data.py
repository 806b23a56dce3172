"""Pairs of images from the lists of a spec, as batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from changenet.segment.counts import IGNORED
from changenet.segment.files import Split
from changenet.segment.reading import Pixels, Scene, SceneReader, resized
from changenet.segment.sliding import scenes, window_of
from changenet.segment.tiles import Window, draw_window, windows
from changenet.segment.transform import SceneAugment
from fiducial.data.loaders import loader
from fiducial.data.normalization import Normalization
from fiducial.data.picture_keys import content_key
from fiducial.data.prefetch import Prefetched
from fiducial.data.samplers import Draw
from fiducial.data.sharding import BatchShards
from fiducial.training.features import collate_keyed

__all__ = ["ImageShards", "SceneBatch", "SceneDataset", "WindowBatches", "Windowing", "ordered_loader", "scene_loader"]


class SceneBatch(TypedDict):
    """What a loader of pairs gives; B pairs, S pixels a side.

    ``A`` (earlier) and ``B`` (later) float32 ``(B, 3, S, S)``, normalised. ``L`` class numbers uint8, 255 where pixels
    do not count: ``(B, S, S)``, or a list of ``(H, W)`` where masks keep their size; absent in inference. ``index``
    int64 ``(B,)``: place in the list. ``size`` int64 ``(B, 2)``: height and width of the whole mask. ``corner`` int64
    ``(B, 2)``: row and column of the window in the image, where images are cut into windows; ``valid`` bool
    ``(B, S, S)`` where both images have data, where windows go over the whole image.

    Where features are kept, images are named: :data:`fiducial.training.features.KeyedBatch` with the roles ``A`` and
    ``B`` instead of them.
    """

    A: Tensor
    B: Tensor
    L: NotRequired[Tensor | list[Tensor]]
    index: Tensor
    size: Tensor
    corner: NotRequired[Tensor]
    valid: NotRequired[Tensor]


@dataclass(frozen=True)
class Windowing:
    """How images are cut into windows of the network's input size."""

    overlap: int
    """Pixels that neighbouring windows share."""
    per_image: int = 0
    """Drawn in training from each image and epoch; 0: as many as would cover it."""
    on_change: float = 0.0
    """Part of the drawn windows that hold a changed pixel."""


class SceneDataset(Dataset[dict[str, Any]]):
    """The pairs of a list; an item is one pair of :class:`SceneBatch`.

    Indexed by a number, or by a :class:`~fiducial.data.samplers.Draw` that also says the epoch; what is random of an
    item follows from (seed, epoch, number) alone.

    Images are resized to ``side``; with ``windowing`` they are cut instead: ``drawn`` at random (training), else all
    windows of each image in turn. ``original_size``: masks keep the size of the image. ``keyed``: items have a key of
    each image, too.

    Raises: DatasetError naming the file, when one cannot be read or a mask means nothing.
    """

    def __init__(
        self,
        split: Split,
        reader: SceneReader,
        normalize: Normalization,
        *,
        side: int,
        augment: SceneAugment | None = None,
        windowing: Windowing | None = None,
        drawn: bool = False,
        original_size: bool = False,
        seed: int = 0,
        keyed: bool = False,
    ) -> None:
        self.split, self.reader, self.normalize, self.augment = split, reader, normalize, augment
        self.side, self.windowing, self.drawn = side, windowing, drawn
        self.original_size, self.seed, self.keyed = original_size, seed, keyed
        self.items: list[tuple[int, Window | None]] = list(self._items())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int | Draw) -> dict[str, Any]:
        epoch, number = number if isinstance(number, Draw) else (0, number)
        rng = np.random.default_rng((max(self.seed, 0), epoch, number))  # the same on any worker and rank
        index, window = self.items[number]
        pair = self.split.pairs[index]
        whole = self.reader.scene(pair) if self.windowing or self.original_size else None
        if whole is None:
            scene = self.reader.resized(pair, self.side)
        else:
            if self.windowing and self.drawn:
                window = self._draw(whole, rng)
            scene = resized(whole, self.side) if window is None else window_of(whole, window)
        if self.augment:
            scene = self.augment(scene, rng)
        size = whole.before.shape[:2] if whole is not None else (self.side, self.side)
        label = whole.label if whole is not None and window is None else scene.label
        return self._item(index, scene, label, size, window)

    def windows_of(self, index: int, cover: Sequence[Window]) -> Iterator[dict[str, Any]]:
        """The items of an image's windows, in turn, while it is read once from top to bottom.

        Raises: DatasetError naming the file, when the part that cannot be read comes.
        """
        pair = self.split.pairs[index]
        size = self.reader.size(pair.before)
        for window, scene in scenes(self.reader, pair, cover, size):
            yield self._item(index, scene, scene.label, size, window)

    def _item(
        self, index: int, scene: Scene, label: Pixels | None, size: tuple[int, int], window: Window | None
    ) -> dict[str, Any]:
        item: dict[str, Any] = {
            "A": self.normalize(scene.before),
            "B": self.normalize(scene.after),
            "index": torch.tensor(index),
        }
        if self.keyed:
            item |= {"A_key": self._key(scene.before), "B_key": self._key(scene.after)}
        item["size"] = torch.tensor(size)
        if window is not None:
            item["corner"] = torch.tensor([window.top, window.left])
            if not self.drawn:
                known = np.ones(scene.before.shape[:2], bool) if scene.valid is None else np.array(scene.valid)
                item["valid"] = torch.from_numpy(known)
        if label is not None:
            item["L"] = torch.from_numpy(np.array(label))
        return item

    def _key(self, pixels: Pixels) -> bytes:
        # of what was read, since the mask must be read anyway, and other files may lie behind one (VRT, sidecars)
        return content_key(f"{pixels.shape} {self.normalize}".encode(), np.ascontiguousarray(pixels).data.cast("B"))

    @property
    def image_of_items(self) -> list[int]:
        """The place in the list of each item's pair."""
        return [index for index, _ in self.items]

    def _items(self) -> Iterator[tuple[int, Window | None]]:
        for index in range(len(self.split.pairs)):
            if self.windowing is None:
                yield index, None
            elif self.drawn and self.windowing.per_image:
                yield from [(index, None)] * self.windowing.per_image
            else:
                overlap = 0 if self.drawn else self.windowing.overlap
                cover = windows(*self.reader.size(self.split.pairs[index].before), self.side, overlap)
                yield from ((index, None if self.drawn else window) for window in cover)

    def _draw(self, scene: Scene, rng: np.random.Generator) -> Window:
        """A window anywhere, or, for the part that ``on_change`` says, around a changed pixel."""
        height, width = scene.before.shape[:2]
        window, wants_change = draw_window(rng, height, width, self.side), rng.random()
        if scene.label is None or self.windowing is None or wants_change >= self.windowing.on_change:
            return window
        changed = np.flatnonzero((scene.label > 0) & (scene.label != IGNORED))
        if not len(changed):
            return window
        row, column = divmod(int(changed[rng.integers(len(changed))]), width)
        top, left = (
            min(max(0, at - int(rng.integers(self.side))), max(0, length - self.side))
            for at, length in ((row, height), (column, width))
        )
        return Window(top, left, self.side, self.side)


class ImageShards(Sampler[list[int]]):
    """Batches of items in order; rank r takes the items of images ``r, r + world_size, …``, so that the windows of an
    image stay together."""

    def __init__(self, images: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.mine = [number for number, image in enumerate(images) if image % world_size == rank]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.mine[i : i + self.batch_size] for i in range(0, len(self.mine), self.batch_size))


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks all but masks of different sizes, which stay a list."""
    labels = [item.pop("L") for item in items if "L" in item]
    named = collate_keyed(items, ("A", "B")) if "A_key" in items[0] else {}
    batch: dict[str, Any] = default_collate(items) | named
    if labels:
        same = len({label.shape for label in labels}) == 1
        batch["L"] = torch.stack(labels) if same else labels
    return batch


def scene_loader(dataset: SceneDataset, *, workers: int, **order: Any) -> DataLoader[Any]:
    """Batches in an order given as DataLoader arguments."""
    return loader(dataset, workers=workers, collate_fn=_collate, **order)


class WindowBatches:
    """The windows of all images in turn, as batches. Each image is read once, in a thread, ahead of what is asked for.

    Loader processes would each read every image. In memory are three batches, and what
    :func:`~changenet.segment.sliding.scenes` holds.
    """

    ahead = 2
    """Batches that are made beyond the one that is used."""
    collate_fn = staticmethod(_collate)
    """With the items of :attr:`batch_sampler` what a batch is: for those who take single ones."""

    def __init__(self, dataset: SceneDataset, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.batch_sampler = ImageShards(dataset.image_of_items, batch_size, rank=rank, world_size=world_size)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return Prefetched(self._batches, ahead=self.ahead)

    def _batches(self) -> Iterator[dict[str, Any]]:
        items = self._items()
        while some := list(islice(items, self.batch_size)):
            yield _pinned(_collate(some))

    def _items(self) -> Iterator[dict[str, Any]]:
        mine = (self.dataset.items[number] for number in self.batch_sampler.mine)
        for index, group in groupby(mine, key=lambda item: item[0]):
            yield from self.dataset.windows_of(index, [window for _, window in group if window is not None])


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return batch
    return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in batch.items()}


def ordered_loader(
    dataset: SceneDataset, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> Iterable[dict[str, Any]]:
    """Batches in the order of the list. Ranks take whole batches of it in turn; of windows, whole images."""
    if dataset.windowing is not None:
        return WindowBatches(dataset, batch_size, rank=rank, world_size=world_size)
    order = BatchShards(len(dataset), batch_size, rank=rank, world_size=world_size)
    return scene_loader(dataset, workers=workers, batch_sampler=order)
