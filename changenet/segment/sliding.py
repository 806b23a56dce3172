"""The windows of a pair in turn, while its images are read once, from top to bottom. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from changenet.segment.counts import IGNORED
from changenet.segment.files import ScenePair
from changenet.segment.reading import Part, Scene, SceneReader, scene_of
from changenet.segment.tiles import Window, cut
from fiducial.data.prefetch import Prefetched

__all__ = ["scenes", "window_of"]


def scenes(
    reader: SceneReader, pair: ScenePair, cover: Sequence[Window], size: tuple[int, int]
) -> Iterator[tuple[Window, Scene]]:
    """Each window of ``cover``, which :func:`~changenet.segment.tiles.windows` made for images of ``size``.

    A pair that ``reader`` has room to keep is read whole. Of others the mask is read whole, and the images by their
    parts (:meth:`~changenet.segment.reading.SceneReader.parts`), each in a thread of its own that is one part ahead: in
    memory are the rows of a window twice, and three parts, at 4 bytes a pixel and image. GDAL's own cache of blocks
    comes on top (``GDAL_CACHEMAX``; 5 % of the machine's memory unless it is set); nothing here needs it.
    Raises: DatasetError naming the file, when the part that cannot be read comes.
    """
    if reader.keeps(*size):
        whole = reader.scene(pair)
        yield from ((window, window_of(whole, window)) for window in cover)
        return
    with (
        closing(Prefetched(lambda: reader.parts(pair.before))) as before,
        closing(Prefetched(lambda: reader.parts(pair.after))) as after,
    ):
        label = reader.label(pair.label) if pair.label else None
        earlier, later = _Rows(before), _Rows(after)
        for top, row in groupby(cover, key=lambda window: window.top):
            places = list(row)
            rows = slice(top, min(top + places[0].height, size[0]))
            band = scene_of(earlier.take(rows), later.take(rows), None if label is None else label[rows])
            for window in places:
                yield window, window_of(band, Window(0, window.left, window.height, window.width))


def window_of(scene: Scene, window: Window) -> Scene:
    """The window of every part; what lies beyond the border mirrors the image, has no data, and is ignored."""
    label = None if scene.label is None else cut(scene.label, window, fill=IGNORED)
    valid = None if scene.valid is None else cut(scene.valid, window, fill=0)
    return Scene(cut(scene.before, window), cut(scene.after, window), label, valid)  # type: ignore[arg-type]


class _Rows:
    """The rows of an image that are needed, of parts that come from top to bottom."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts = parts
        self._top = 0
        self._held: list[Part] = []

    def take(self, rows: slice) -> Part:
        """These rows, none of which lie above those taken before."""
        while self._held and self._top + len(self._held[0][0]) <= rows.start:
            self._top += len(self._held.pop(0)[0])
        while self._top + sum(len(pixels) for pixels, _ in self._held) < rows.stop:
            part = next(self._parts, None)
            if part is None:
                break
            self._held.append(part)
        inside = slice(rows.start - self._top, rows.stop - self._top)
        pixels, valid = zip(*self._held, strict=True)
        return _joined(pixels, inside), None if valid[0] is None else _joined(valid, inside)


def _joined(parts: Sequence[NDArray[Any]], rows: slice) -> NDArray[Any]:
    return (parts[0] if len(parts) == 1 else np.concatenate(parts))[rows]
