"""Whatever a list or a mask holds: it is read and looked at, or a line says what is wrong with it."""

import io
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from makers import write_image
from PIL import Image

from changenet.config import ExperimentSpec
from changenet.segment.files import read_list
from changenet.segment.inspect import check_data
from changenet.segment.reading import LabelEncoding, SceneReader
from fiducial.errors import UserError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform", "ignore:overflow encountered")

FUZZ = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLAIN = ["x.png", "s/x.png", "./x.png", "s", "x.png m.png", "x.png # one", "# x", "\u00fc.png", "u\u0308.png"]
PATHS = ["../A/x.png", "/A/x.png", "..", "~", ".\\x.png", "C:\\x.png"]
ODD = ["{path}", "%s", "CON", "\u2028", "\ufeffx.png", "x" * 300, "a/" * 3000]
LINES = st.sampled_from([*PLAIN, *PATHS, *ODD])
TEXT = st.lists(LINES | st.text(max_size=12), max_size=5).map("\n".join)
CONTENTS = st.binary(max_size=40) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
NUMBERS = st.sampled_from(
    [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.uint64, np.float32, np.float64]
)
SIZES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)


@pytest.fixture
def root(tmp_path):
    for folder in ("A", "B", "label"):
        for name in ("x.png", "s/x.png"):
            write_image(tmp_path / folder / name, np.full((8, 8, 3) if folder != "label" else (8, 8), len(folder)))
    (tmp_path / "list").mkdir()
    return tmp_path


def spec_of(root, **changes):
    data = {"root_dir": str(root), "img_size": 32, "batch_size": 1, **changes}
    return ExperimentSpec.model_validate({"task": "segment", "dataset": {"segment": data}})


def or_a_line(read, *args, **more):
    """What reading gives, or None where a line says why not."""
    try:
        return read(*args, **more)
    except UserError as error:
        for problem in error.problems:
            assert problem.where
            assert problem.found
            assert "\n" not in problem.found
        return None


@FUZZ
@given(content=CONTENTS)
def test_lists(root, content):
    (root / "list" / "train.txt").write_bytes(content)
    entries = or_a_line(read_list, root / "list" / "train.txt", root / "A")
    for line, name in entries or []:
        assert line >= 1
        assert not os.path.isabs(name)
        assert not os.path.normpath(name).startswith("..")
    check_data(spec_of(root), ("train",), True)


@FUZZ
@given(data=st.data(), norm=st.booleans(), nodata=st.sampled_from([None, 0, 1, 255, float("nan"), -9999.0, 1e300]))
def test_masks_that_rasterio_writes(tmp_path, data, norm, nodata):
    dtype = data.draw(NUMBERS)
    values = data.draw(arrays.arrays(dtype, SIZES))
    path = tmp_path / "m.tif"
    profile = {"driver": "GTiff", "count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": dtype}
    try:
        with rasterio.open(path, "w", **profile, nodata=nodata) as file:
            file.write(values, 1)
    except ValueError:
        return  # a number that this type cannot hold
    reader = SceneReader(LabelEncoding(norm, 3))
    label = or_a_line(reader.label, path)
    if label is None:
        return
    assert label.shape == values.shape
    assert set(np.unique(label)) <= ({0, 1, 255} if norm else {0, 1, 2, 255})
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    assert (label[missing] == 255).all()
    if nodata is None and not norm:
        assert (label[~missing] == values[~missing]).all()


@FUZZ
@given(data=st.data(), mode=st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I", "F", "CMYK"]))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_masks_that_pillow_writes(tmp_path, data, mode, suffix):
    values = data.draw(arrays.arrays(np.uint8, SIZES, elements=st.sampled_from([0, 1, 2, 3, 128, 255])))
    image = (
        Image.fromarray(values).convert("I").convert(mode) if mode == "I;16" else Image.fromarray(values).convert(mode)
    )
    path = tmp_path / f"m{suffix}"
    try:
        image.save(path)
    except (OSError, KeyError):
        return  # a mode that the format does not have
    for norm in (True, False):
        label = or_a_line(SceneReader(LabelEncoding(norm, 4)).label, path)
        assert label is None or label.shape == values.shape


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "GTiff", "JP2OpenJPEG"])
def test_damaged_files(tmp_path, kind, data):
    """Any byte of a file may be another, and any end may be missing."""
    suffix = {"PNG": ".png", "JP2OpenJPEG": ".jp2"}.get(kind, ".tif")
    content = bytearray(whole(kind))
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = value
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    reader = SceneReader(LabelEncoding(False, 3))
    or_a_line(reader.check, path, decode=False)
    was_right = or_a_line(lambda: (reader.check(path, decode=True), True)[1])
    picture = or_a_line(reader.picture, path)
    assert (picture is not None) >= bool(was_right)  # what a check lets pass can be read
    or_a_line(reader.label, path)


def whole(kind, kept={}):  # noqa: B006  # written once
    if kind not in kept:
        values = np.random.default_rng(0).integers(0, 255, (3, 16, 16), dtype=np.uint8)
        if kind in ("TIFF", "PNG"):
            file = io.BytesIO()
            Image.fromarray(values.transpose(1, 2, 0)).save(file, kind)
            kept[kind] = file.getvalue()
        else:
            place = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 46e5)}
            options = {"compress": "deflate"} if kind == "GTiff" else {}
            with rasterio.MemoryFile() as memory:
                profile = {"driver": kind, "count": 3, "height": 16, "width": 16, "dtype": "uint8"}
                with memory.open(**profile, **place, **options) as dataset:
                    dataset.write(values)
                kept[kind] = memory.read()
    return kept[kind]
