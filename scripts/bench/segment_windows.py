"""A window that slides over large rasters: each block read once and ahead, beside reading every window anew.

    python scripts/bench/segment_windows.py [--side 4096] [--window 512] [--turns 3] [--cpu] [--quick]

Pairs of GeoTIFFs of 8-bit RGB with a nodata value: deflated tiles of 256, and deflated strips of a row. The windows
overlap by a quarter. (a) Everything but the network. (b) The same with a network that takes 20 ms a batch, by the
clock: what is read ahead costs it nothing. Batches are equal bit for bit, which is asserted first. Also printed: how
often the bytes of the files are read (Linux), which tells how often blocks are decoded. ``--cpu`` counts in (a) what
this process computes instead of the clock's time, for a busy machine. The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from measure import PROC, Way, compare, machine, measure

from changenet.segment.data import SceneDataset, WindowBatches, Windowing, _collate
from changenet.segment.files import ScenePair, Split
from changenet.segment.frames import load_rasterio, quiet
from changenet.segment.rasters import read_raster
from changenet.segment.reading import LabelEncoding, SceneReader, scene_of
from changenet.segment.sliding import window_of
from changenet.segment.tiles import Window
from fiducial.data.normalization import Normalization

TARGET = 1.0
BATCH = 8
NETWORK_S = 0.02
STORAGE: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "strips": {"blockysize": 1},
}


def draw(path: Path, side: int, seed: int, **storage: Any) -> Path:
    """A raster that is about as hard to compress as a photograph."""
    rasterio, rng = load_rasterio(), np.random.default_rng(seed)
    size = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "nodata": 0}
    with quiet(rasterio), rasterio.open(path, "w", **size, compress="deflate", **storage) as file:
        for top in range(0, side, 256):
            rows = min(256, side - top)
            walk = np.cumsum(rng.integers(-1, 2, (3, rows, side)), axis=2) + 128
            file.write((walk % 256).astype(np.uint8), window=((top, top + rows), (0, side)))
    return path


def anew(data: SceneDataset) -> Iterator[dict[str, Any]]:
    """Both files opened for every window, of which its pixels are read."""
    pair = data.split.pairs[0]
    size = data.reader.size(pair.before)
    for start in range(0, len(data), BATCH):
        some = []
        for index, window in data.items[start : start + BATCH]:
            assert window is not None
            before, after = (read_raster(path, window=window) for path in (pair.before, pair.after))
            scene = scene_of((before.rgb, before.valid), (after.rgb, after.valid), None)
            whole = window_of(scene, Window(0, 0, window.height, window.width))
            some.append(data._item(index, whole, None, size, window))
        yield _collate(some)


def used(batches: Iterable[dict[str, Any]], seconds: float = 0.0) -> int:
    """Go over the batches as a network does that takes some time for each."""
    number = 0
    for _ in batches:
        number += 1
        time.sleep(seconds)
    return number


def bytes_read() -> float:
    """What this process has read from files so far."""
    try:
        return int((PROC / "io").read_text().split()[1])
    except OSError:
        return float("nan")


def run(root: Path, kind: str, *, side: int, window: int, turns: int, meter: Any) -> bool:
    before, after = (draw(root / f"{name}.tif", side, seed, **STORAGE[kind]) for seed, name in enumerate("ab"))
    split = Split(root / "list.txt", (ScenePair("a.tif", 1, before, after, None),))
    reader = SceneReader(LabelEncoding(True, 2))
    normalize = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = SceneDataset(split, reader, normalize, side=window, windowing=Windowing(window // 4))
    once = WindowBatches(data, BATCH)
    print(f"{kind}: {side} × {side} pixels, {len(data)} windows of {window}")
    for one, other in zip(anew(data), once, strict=True):
        if not all(torch.equal(one[key], other[key]) for key in one):
            raise AssertionError(f"{kind}: other batches")
    size = before.stat().st_size + after.stat().st_size
    for name, batches in (("each window anew", anew(data)), ("each block once", once)):
        start = bytes_read()
        used(batches)
        print(f"    {name:44} reads the files {(bytes_read() - start) / size:.2f} times")
    ways = [Way("each window anew", lambda: used(anew(data))), Way("each block once", lambda: used(once))]
    alone = compare(*ways, turns=turns, target=TARGET, meter=meter)
    ways = [
        Way("each window anew, and a network", lambda: used(anew(data), NETWORK_S)),
        Way("each block once, and a network", lambda: used(once, NETWORK_S)),
    ]
    return compare(*ways, turns=turns, target=TARGET, meter=measure).met and alone.met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small files, one turn: that it runs")
    given = parser.parse_args(arguments)
    side, window, turns = (512, 128, 1) if given.quick else (given.side, given.window, given.turns)
    meter = partial(measure, clock=time.process_time) if given.cpu else measure
    print(machine(torch.get_num_threads()))
    met = []
    for kind in STORAGE:
        with tempfile.TemporaryDirectory() as folder:
            met.append(run(Path(folder), kind, side=side, window=window, turns=turns, meter=meter))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
