"""What TIFFs lack."""

import numpy as np
import pytest
from PIL import Image

from changenet.segment.tiff import missing_bytes
from fiducial.errors import DatasetError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def write(path, **more):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 300), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": 200, "width": 300, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **more) as file:
        file.write(pixels)
    return path


LAYOUTS = [
    {},
    {"compress": "deflate"},
    {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "lzw"},
    {"bigtiff": "yes", "tiled": True, "blockxsize": 128, "blockysize": 128},
    {"interleave": "band"},
    {"endianness": "big"},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_files(tmp_path, layout):
    path = write(tmp_path / "a.tif", **layout)
    assert missing_bytes(path) == 0
    path.write_bytes(path.read_bytes()[:-1000])
    assert missing_bytes(path) in (999, 1000)  # a last byte may be padding


def test_pillows_files_and_sparse_ones(tmp_path):
    Image.fromarray(np.zeros((50, 60), np.uint8)).save(tmp_path / "p.tif")
    assert missing_bytes(tmp_path / "p.tif") == 0
    with rasterio.open(
        tmp_path / "s.tif", "w", driver="GTiff", count=1, height=512, width=512, dtype="uint8", sparse_ok=True
    ):
        pass
    assert missing_bytes(tmp_path / "s.tif") == 0


def test_overviews_are_looked_at(tmp_path):
    path = write(tmp_path / "a.tif")
    size = path.stat().st_size
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    path.write_bytes(path.read_bytes()[: size + 20_000])
    assert missing_bytes(path) > 0


@pytest.mark.parametrize("content", [b"II", b"II*\0", b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\x7f\x01"])
def test_damaged_headers(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.tif · a damaged TIFF"):
        missing_bytes(tmp_path / "a.tif")


def test_other_formats_are_none(tmp_path):
    for content in (b"", b"\x89PNG", b"no tiff at all"):
        (tmp_path / "a.tif").write_bytes(content)
        assert missing_bytes(tmp_path / "a.tif") == 0


def test_directories_in_a_circle(tmp_path):
    one = b"\x01\0" + b"\x00\x01\x03\0\x01\0\0\0\x05\0\0\0" + b"\x08\0\0\0"  # one tag, then itself again
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + one)
    assert missing_bytes(tmp_path / "a.tif") == 0
