"""A window that slides over large images: the same pixels as from whole ones, every block read once."""

import gc
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from changenet.segment import rasters
from changenet.segment.data import SceneDataset, WindowBatches, Windowing, ordered_loader
from changenet.segment.files import ScenePair, Split
from changenet.segment.reading import LabelEncoding, SceneReader
from changenet.segment.sliding import scenes
from changenet.segment.tiff import directories
from changenet.segment.tiles import windows
from fiducial.data.normalization import Normalization
from fiducial.errors import DatasetError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

RAW = Normalization((0, 0, 0), (1 / 255,) * 3)
SIDE, OVERLAP = 64, 16
TILES = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}


def write(path, values_CHW, driver="GTiff", **options):
    count, height, width = values_CHW.shape
    size = {"count": count, "height": height, "width": width, "dtype": values_CHW.dtype.name}
    with rasterio.open(path, "w", driver=driver, **size, **options) as file:
        file.write(values_CHW)
    return path


def noise(seed, height, width, dtype=np.uint8, count=3):
    values = np.random.default_rng(seed).integers(0, 200, (count, height, width))
    return values.astype(dtype)


def dataset(pairs, root, *, cache_mb=0, side=SIDE, **options):
    reader = SceneReader(LabelEncoding(True, 2), cache_mb=cache_mb, root=root, **options)
    return SceneDataset(Split(root / "list.txt", tuple(pairs)), reader, RAW, side=side, windowing=Windowing(OVERLAP))


def pair_of(root, suffix, make, label=None):
    before, after = (make(root / f"{name}{suffix}", seed) for seed, name in enumerate("ab"))
    return ScenePair("x", 1, before, after, label)


class Counted:
    """An open raster that says which blocks are read; the mask comes from the same blocks, which GDAL still has."""

    def __init__(self, file, blocks):
        self._file, self._blocks = file, blocks

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, bands, window=None, **options):
        height, width = self._file.block_shapes[0]
        (top, bottom), (left, right) = window or ((0, self._file.height), (0, self._file.width))
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                self._blocks[self._file.name, row, column] += 1
        return self._file.read(bands, window=window, **options)


@pytest.fixture
def blocks(monkeypatch):
    """How often each block was read, by file, row and column of the block."""
    counts, opened = Counter(), rasters.opened

    @contextmanager
    def counting(path, **options):
        with opened(path, **options) as file:
            yield Counted(file, counts)

    monkeypatch.setattr(rasters, "opened", counting)
    return counts


KINDS = {
    "tiles": (".tif", dict(**TILES, nodata=0), np.uint8, 700, 300),
    "small strips": (".tif", {"blockysize": 3, "compress": "lzw"}, np.uint8, 700, 300),
    "high strips": (".tif", {"blockysize": 400, "compress": "deflate", "nodata": 7}, np.uint8, 1000, 90),
    "one strip": (".tif", {"blockysize": 700, "compress": "deflate"}, np.uint8, 700, 90),
    "JPEG in tiles": (".tif", {**TILES, "compress": "jpeg", "photometric": "YCBCR"}, np.uint8, 700, 300),
    "16 bits": (".tif", TILES, np.uint16, 700, 130),
    "numbers with NaN": (".tif", dict(**TILES, nodata=11), np.float32, 700, 130),
    "smaller than a window": (".tif", TILES, np.uint8, 40, 50),
    "JPEG 2000": (".jp2", {"driver": "JP2OpenJPEG"}, np.uint8, 700, 300),
    "plain": (".png", {"driver": "PNG"}, np.uint8, 200, 150),
}


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_the_whole_image(tmp_path, kind):
    suffix, options, dtype, height, width = KINDS[kind]

    def make(path, seed):
        values = noise(seed, height, width, dtype)
        if dtype == np.float32:
            values[:, 500:510, 20:40] = np.nan
        return write(path, values, **options)

    Image.fromarray((noise(9, height, width)[0] > 100).astype(np.uint8) * 255).save(tmp_path / "m.png")
    scaling = None if dtype == np.uint8 else {"scaling": (3.0, 180.0)}
    pair = pair_of(tmp_path, suffix, make, tmp_path / "m.png")
    whole = dataset([pair], tmp_path, cache_mb=64, **scaling or {})
    parts = dataset([pair], tmp_path, **scaling or {})
    found = [item for batch in ordered_loader(parts, batch_size=5, workers=2) for item in items_of(batch)]
    assert len(found) == len(whole) == len(windows(height, width, SIDE, OVERLAP))
    for number, item in enumerate(found):
        wanted = whole[number]
        assert item.keys() == wanted.keys() == {"A", "B", "L", "index", "size", "corner", "valid"}
        assert all(torch.equal(item[key], wanted[key]) for key in item)


def items_of(batch):
    return [{key: value[i] for key, value in batch.items()} for i in range(len(batch["index"]))]


@pytest.mark.parametrize("scaled", [False, True])
def test_mosaics(tmp_path, scaled):
    """A mosaic that scales its files is read whole: a part of it need not be the same as of the whole."""
    rasterio_shutil = pytest.importorskip("rasterio.shutil")

    def make(path, seed):
        tile = write(tmp_path / f"tile{seed}.tif", noise(seed, 600, 200), **TILES)
        rasterio_shutil.copy(tile, path, driver="VRT")
        if scaled:
            text = path.read_text().replace('ySize="600" />', 'ySize="450" />', 3)
            path.write_text(text)
        return path

    pair = pair_of(tmp_path, ".vrt", make)
    heights = [len(raster.rgb) for raster in rasters.read_rows(pair.before, root=tmp_path)]
    assert heights == ([600] if scaled else [256, 256, 88])
    whole, parts = dataset([pair], tmp_path, cache_mb=64), dataset([pair], tmp_path)
    batches = list(ordered_loader(parts, batch_size=100, workers=0))
    assert torch.equal(batches[0]["A"], torch.stack([whole[number]["A"] for number in range(len(whole))]))


class TestBlocks:
    @pytest.mark.parametrize("kind", ["tiles", "small strips", "high strips", "one strip", "smaller than a window"])
    def test_each_is_read_once(self, tmp_path, blocks, kind):
        suffix, options, _, height, width = KINDS[kind]
        pair = pair_of(tmp_path, suffix, lambda path, seed: write(path, noise(seed, height, width), **options))
        assert len(list(ordered_loader(dataset([pair], tmp_path), batch_size=4, workers=2))) > 0
        with rasterio.open(pair.before) as file:
            in_file = sum(1 for _ in file.block_windows(1))
        assert len(blocks) == 2 * in_file
        assert set(blocks.values()) == {1}

    def test_ranks_share_no_image(self, tmp_path, blocks):
        pairs = []
        for number in range(3):
            root = tmp_path / str(number)
            root.mkdir()
            pairs.append(pair_of(root, ".tif", lambda path, seed: write(path, noise(seed, 300, 150), **TILES)))
        seen = []
        for rank in range(2):
            batches = list(WindowBatches(dataset(pairs, tmp_path), 4, rank=rank, world_size=2))
            assert len(batches) == len(WindowBatches(dataset(pairs, tmp_path), 4, rank=rank, world_size=2))
            seen.append({index for batch in batches for index in batch["index"].tolist()})
        assert seen == [{0, 2}, {1}]
        assert set(blocks.values()) == {1}

    def test_pairs_that_are_kept_are_read_once_for_all_epochs(self, tmp_path, blocks):
        pair = pair_of(tmp_path, ".tif", lambda path, seed: write(path, noise(seed, 300, 150), **TILES))
        loader = ordered_loader(dataset([pair], tmp_path, cache_mb=1), batch_size=4, workers=0)
        assert len(list(loader)) == len(list(loader)) == len(loader)
        assert set(blocks.values()) == {1}


class TestMemory:
    def test_does_not_grow_with_the_height(self, tmp_path):
        """The window's rows twice, and three parts, of both images; a little for what is computed."""
        width, peaks = 160, []
        for height in (3_000, 12_000):
            root = tmp_path / str(height)
            root.mkdir()
            pair = pair_of(root, ".tif", lambda path, seed, high=height: write(path, noise(seed, high, width), **TILES))
            cover = windows(height, width, SIDE, OVERLAP)
            reader = SceneReader(LabelEncoding(True, 2))
            tracemalloc.start()
            num = sum(1 for _ in scenes(reader, pair, cover, (height, width)))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert num == len(cover)
        rows = 2 * SIDE + 3 * 256
        bound = 2 * 2 * rows * width * 4  # a part is also there as it is stored, while it is read
        assert max(peaks) < bound < 12_000 * width * 3 / 2  # half of one image


def prefetching():
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class TestBrokenBlocks:
    def test_is_said_where_it_comes(self, tmp_path):
        pair = pair_of(tmp_path, ".tif", lambda path, seed: write(path, noise(seed, 1500, 150), **TILES))
        tags = directories(pair.after)[0]
        place, length = np.atleast_1d(tags[324])[-8], np.atleast_1d(tags[325])[-8]
        with pair.after.open("r+b") as file:
            file.seek(int(place))
            file.write(b"\xa5" * int(length))
        loader = iter(ordered_loader(dataset([pair], tmp_path), batch_size=4, workers=2))
        tops: list[int] = []
        with pytest.raises(DatasetError, match=r"b\.tif · a raster that cannot be read"):
            tops.extend(top for batch in loader for top in batch["corner"][:, 0].tolist())
        assert 500 < max(tops) < 1024  # the rows above the broken block, which begins at 1024
        del loader
        assert prefetching() == []

    def test_a_missing_image(self, tmp_path):
        pair = pair_of(tmp_path, ".tif", lambda path, seed: write(path, noise(seed, 300, 150), **TILES))
        data = dataset([pair], tmp_path)
        pair.after.unlink()
        with pytest.raises(DatasetError, match=r"b\.tif · no such file"):
            next(iter(ordered_loader(data, batch_size=4, workers=0)))
        assert prefetching() == []


class TestReadingAhead:
    @pytest.fixture
    def data(self, tmp_path):
        pair = pair_of(tmp_path, ".tif", lambda path, seed: write(path, noise(seed, 600, 150), **TILES))
        return dataset([pair], tmp_path)

    def test_batches_are_made_before_they_are_asked_for(self, data):
        made = []
        one_of = data._item

        def counting(*parts):
            made.append(None)
            return one_of(*parts)

        data._item = counting
        batches = iter(WindowBatches(data, 4))
        first = next(batches)
        end = time.monotonic() + 20
        while len(made) < 4 * (1 + WindowBatches.ahead) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)  # in which more would be made, if it could
        assert len(made) == 4 * (1 + WindowBatches.ahead)
        assert first["corner"][0].tolist() == [0, 0]

    def test_leaving_early_leaves_no_thread(self, data):
        batches = iter(WindowBatches(data, 4))
        next(batches)
        assert prefetching() != []
        batches.close()
        assert prefetching() == []
