import importlib
import logging

import numpy as np
import pytest
from PIL import Image

from changenet.segment import rasters
from changenet.segment.frames import GeoFrame, RasterInfo
from changenet.segment.maps import write_geotiff
from changenet.segment.rasters import (
    Percentiles,
    check_raster,
    read_info,
    read_numbers,
    read_raster,
    resolve_scaling,
)
from changenet.segment.tiles import Window
from fiducial.errors import DatasetError, MissingDependencyError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()
FRAME = GeoFrame(UTM, (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0))  # half-metre pixels, north up


def _write(path, values_CHW, frame=FRAME, **more):
    profile = {"driver": "GTiff", "count": len(values_CHW), "dtype": values_CHW.dtype.name}
    height, width = values_CHW.shape[1:]
    place = {"crs": frame.crs, "transform": rasterio.Affine(*frame.transform)} if frame else {}
    colours = more.pop("colorinterp", None)
    with rasterio.open(path, "w", **profile, height=height, width=width, **place, **more) as file:
        file.write(values_CHW)
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
    return path


@pytest.fixture
def deep(tmp_path):
    """16-bit, three bands: 1000 + 10 · column in each, no data (0) in the first row."""
    values = np.broadcast_to(1000 + 10 * np.arange(40, dtype=np.uint16), (3, 30, 40)).copy()
    values[:, 0] = 0
    return _write(tmp_path / "deep.tif", values, nodata=0)


class TestReadRaster:
    def test_8_bit_as_it_is(self, tmp_path):
        values = np.random.default_rng(0).integers(1, 255, (3, 20, 30)).astype(np.uint8)
        raster = read_raster(_write(tmp_path / "a.tif", values))
        assert np.array_equal(raster.rgb, values.transpose(1, 2, 0))
        assert raster.valid.all()
        assert raster.frame.transform == FRAME.transform
        assert rasterio.crs.CRS.from_wkt(raster.frame.crs).to_epsg() == 32633

    def test_16_bit_needs_a_scaling(self, deep):
        with pytest.raises(DatasetError, match=r"uint16 pixels, values 1000 \.\. 1390 · set dataset"):
            read_raster(deep)

    def test_stated_scaling(self, deep):
        rgb = read_raster(deep, scaling=(1100, 1355)).rgb  # a level for each unit
        assert rgb[5, :, 1].tolist() == [min(max(10 * k - 100, 0), 255) for k in range(40)]

    def test_no_data(self, deep):
        raster = read_raster(deep, scaling=(0, 100))
        assert not raster.valid[0].any()
        assert raster.valid[1:].all()
        assert (raster.rgb[0] == 0).all()

    def test_percentiles(self, deep):
        low, high = resolve_scaling(deep, Percentiles(0, 50))
        assert (low, high) == (1000, 1195)
        assert resolve_scaling(deep, (1, 2)) == (1, 2)
        assert resolve_scaling(deep, None) is None

    def test_percentiles_of_a_flat_or_empty_raster(self, tmp_path):
        with pytest.raises(DatasetError, match="the same value"):
            resolve_scaling(_write(tmp_path / "flat.tif", np.full((1, 8, 8), 7, np.uint16)), Percentiles(2, 98))
        with pytest.raises(DatasetError, match="no pixel with data"):
            resolve_scaling(_write(tmp_path / "none.tif", np.zeros((1, 8, 8), np.uint16), nodata=0), Percentiles(2, 98))
        with pytest.raises(ValueError, match="percentiles must"):
            Percentiles(98, 2)

    def test_windows_keep_their_place(self, deep):
        whole = read_raster(deep, scaling=(1000, 1400))
        part = read_raster(deep, scaling=(1000, 1400), window=Window(20, 30, 16, 16))  # reaches over both borders
        assert np.array_equal(part.rgb, whole.rgb[20:, 30:])
        assert part.frame.transform == (0.5, 0, 500_015, 0, -0.5, 4_999_990)

    def test_bands(self, tmp_path):
        values = np.stack([np.full((4, 4), k, np.uint8) for k in (10, 20, 30, 40)])
        plain = _write(tmp_path / "p.tif", values, photometric="minisblack")
        assert read_raster(plain).rgb[0, 0].tolist() == [10, 20, 30]
        assert read_raster(plain, bands=(4, 2, 1)).rgb[0, 0].tolist() == [40, 20, 10]
        assert read_raster(plain, bands=(4,)).rgb[0, 0].tolist() == [40] * 3
        marked = _write(tmp_path / "m.tif", values, colorinterp=("blue", "green", "red", "undefined"))
        assert read_raster(marked).rgb[0, 0].tolist() == [30, 20, 10]
        with pytest.raises(DatasetError, match="two bands"):
            read_raster(_write(tmp_path / "two.tif", values[:2], photometric="minisblack"))
        with pytest.raises(DatasetError, match=r"bands \[5\] of 4"):
            read_raster(plain, bands=(5,))

    def test_palettes_are_looked_up(self, tmp_path):
        write_geotiff(tmp_path / "p.tif", np.array([[0, 1, 9]], np.uint8), FRAME, colours=[(1, 2, 3), (250, 128, 0)])
        assert read_raster(tmp_path / "p.tif").rgb.tolist() == [[[1, 2, 3], [250, 128, 0], [0, 0, 0]]]

    def test_alpha_and_nan_are_no_data(self, tmp_path):
        values = np.full((4, 2, 2), 200, np.uint8)
        values[3, 0, 0] = 0
        alpha = _write(tmp_path / "a.tif", values, colorinterp=("red", "green", "blue", "alpha"))
        assert read_raster(alpha).valid.tolist() == [[False, True], [True, True]]
        floats = np.array([[[0.0, np.nan], [0.5, 1.0]]], np.float32)
        raster = read_raster(_write(tmp_path / "f.tif", floats), scaling=(0, 1))
        assert raster.valid.tolist() == [[True, False], [True, True]]
        assert raster.rgb[..., 0].tolist() == [[0, 0], [128, 255]]

    @pytest.mark.parametrize(
        ("dtype", "nodata", "of_one", "of_both"),
        [(np.float32, -9999, [False, True], [False, False]), (np.uint8, 0, [False, True], [True, True])],
    )
    def test_no_data_in_one_of_the_bands(self, tmp_path, dtype, nodata, of_one, of_both):
        """Other bands have no say; of those chosen an unsigned one may well hold the value by chance."""
        values = np.array([[[nodata, 5]], [[7, nodata]], [[8, 9]]], dtype)
        path = _write(tmp_path / "b.tif", values, nodata=nodata, photometric="minisblack")
        scaling = (0, 255)
        assert read_raster(path, scaling=scaling, bands=(3,)).valid.tolist() == [[True, True]]
        assert read_raster(path, scaling=scaling, bands=(1,)).valid.tolist() == [of_one]
        assert read_raster(path, scaling=scaling, bands=(1, 2, 3)).valid.tolist() == [of_both]
        if dtype is np.float32:
            assert resolve_scaling(path, Percentiles(0, 100), bands=(3,)) == (8, 9)
            with pytest.raises(DatasetError, match="the same value"):  # the one that has data
                resolve_scaling(path, Percentiles(0, 100), bands=(2,))

    def test_plain_pictures(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 255, (6, 7, 4)).astype(np.uint8)
        values[..., 3] = 255
        values[1, 2, 3] = 0
        Image.fromarray(values).save(tmp_path / "a.png")
        raster = read_raster(tmp_path / "a.png", window=Window(1, 2, 4, 9))
        assert np.array_equal(raster.rgb[1:], values[2:5, 2:, :3])
        assert not raster.valid[0, 0]
        assert raster.frame is None
        Image.fromarray(np.array([[0, 30_000, 65_535]], np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(DatasetError, match=r"0 \.\. 65535 · set dataset"):
            read_raster(tmp_path / "deep.png")
        assert resolve_scaling(tmp_path / "deep.png", Percentiles(0, 50)) == (0, 30_000)
        assert read_info(tmp_path / "deep.png").dtype == "uint16"
        assert read_raster(tmp_path / "deep.png", scaling=(0, 60_000)).rgb[0, :, 0].tolist() == [0, 128, 255]

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("zero_is", ["black", "white"])
    def test_few_bits_and_white_zeros_look_as_pillow_shows_them(self, tmp_path, bits, zero_is):
        numbers = (np.arange(64) % 2**bits).astype(np.uint8).reshape(1, 8, 8)
        photometric = "MINISWHITE" if zero_is == "white" else "MINISBLACK"
        path = _write(tmp_path / "a.tif", numbers, nbits=bits, photometric=photometric)
        with Image.open(path) as image:
            assert read_raster(path).rgb.tolist() == np.asarray(image.convert("RGB")).tolist()

    def test_colours_for_printing_and_complex_numbers(self, tmp_path):
        ink = np.zeros((4, 8, 8), np.uint8)
        ink[3] = 100
        path = _write(tmp_path / "cmyk.tif", ink, photometric="cmyk")
        assert (read_raster(path).rgb == 155).all()
        path = _write(tmp_path / "c.tif", np.zeros((1, 8, 8), np.complex64))
        with pytest.raises(DatasetError, match="1 bands of complex64"):
            read_raster(path, scaling=(0, 1))

    @pytest.mark.parametrize("suffix", [".jp2", ".vrt"])
    def test_other_rasters(self, tmp_path, suffix):
        values = np.random.default_rng(0).integers(1, 255, (3, 64, 64)).astype(np.uint8)
        tiff, path = _write(tmp_path / "a.tif", values, nodata=0), tmp_path / f"b{suffix}"
        options = (
            {"driver": "VRT"} if suffix == ".vrt" else {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
        )
        importlib.import_module("rasterio.shutil").copy(tiff, path, **options)
        raster = read_raster(path)
        assert np.array_equal(raster.rgb, values.transpose(1, 2, 0))
        assert raster.frame.transform == pytest.approx(FRAME.transform)
        assert read_info(path).frame == raster.frame

    def test_deep_colours_of_a_png_are_not_cut_to_their_high_bytes(self, tmp_path):
        values = np.full((3, 8, 8), 700, np.uint16)
        with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=8, width=8, dtype="uint16") as file:
            file.write(values)
        with pytest.raises(DatasetError, match="only the higher 8 can be read · save it as TIFF"):
            read_raster(tmp_path / "a.png", scaling=(0, 1000))

    def test_a_tiff_without_a_place(self, tmp_path, recwarn):
        Image.fromarray(np.full((5, 6, 3), 9, np.uint8)).save(tmp_path / "a.tif")
        assert read_raster(tmp_path / "a.tif").frame is None
        assert read_info(tmp_path / "a.tif") == RasterInfo(tmp_path / "a.tif", 5, 6, 3, "uint8", None)
        assert not recwarn.list

    def test_bad_files(self, tmp_path):
        (tmp_path / "bad.tif").write_bytes(b"no raster")
        with pytest.raises(DatasetError, match="not a raster"):
            read_raster(tmp_path / "bad.tif")
        with pytest.raises(DatasetError, match="no such file"):
            read_info(tmp_path / "gone.tif")


class TestReadNumbers:
    """What masks hold."""

    NUMBERS = np.array([[0, 1, 3], [2, 0, 1]], np.uint8)

    @pytest.mark.parametrize(
        ("dtype", "options"),
        [
            *((dtype, {}) for dtype in (np.uint8, np.int16, np.uint16, np.int64, np.uint64, np.float32, np.float64)),
            *(
                (np.uint8, {"nbits": bits, "photometric": kind})
                for bits in (2, 4)
                for kind in ("miniswhite", "minisblack")
            ),
            (np.uint8, {"compress": "lerc"}),
            (np.uint8, {"photometric": "palette"}),
        ],
    )
    def test_any_type_and_kind(self, tmp_path, dtype, options):
        numbers = read_numbers(_write(tmp_path / "m.tif", self.NUMBERS[None].astype(dtype), **options))
        assert numbers.values.tolist() == self.NUMBERS.tolist()
        assert numbers.valid.all()

    def test_several_bands_that_are_the_same(self, tmp_path):
        same = np.stack([self.NUMBERS] * 3)
        assert read_numbers(_write(tmp_path / "m.tif", same)).values.tolist() == self.NUMBERS.tolist()
        alpha = np.stack([self.NUMBERS, np.array([[255, 255, 0], [255, 255, 255]], np.uint8)])
        numbers = read_numbers(_write(tmp_path / "a.tif", alpha, alpha="yes"))
        assert numbers.valid.tolist() == [[True, True, False], [True, True, True]]
        for count in (2, 3, 5):
            other = np.stack([self.NUMBERS, *[self.NUMBERS + 1] * (count - 1)])
            with pytest.raises(DatasetError, match="bands"):
                read_numbers(_write(tmp_path / f"{count}.tif", other))

    def test_no_data(self, tmp_path):
        path = _write(tmp_path / "m.tif", self.NUMBERS[None], nodata=3)
        assert (read_numbers(path).valid == (self.NUMBERS != 3)).all()
        values = np.array([[[0, 1, np.nan]]], np.float32)
        assert read_numbers(_write(tmp_path / "n.tif", values)).valid.tolist() == [[True, True, False]]
        assert read_numbers(_write(tmp_path / "d.tif", values, nodata=1)).valid.tolist() == [[True, False, False]]

    def test_0_is_a_class_whatever_is_declared(self, tmp_path):
        numbers = read_numbers(_write(tmp_path / "m.tif", self.NUMBERS[None], nodata=0))
        assert numbers.valid.all()
        assert numbers.nodata == 0


class TestCheckRaster:
    def test_a_good_one(self, deep):
        check_raster(deep, (0, 100), None, decode=True)
        check_raster(deep, Percentiles(2, 98), (1,), decode=True)

    def test_what_the_header_shows(self, deep):
        for scaling, bands, found in (
            (None, None, "uint16 pixels"),
            ((0, 1), (7,), r"bands \[7\] of 3"),
        ):
            with pytest.raises(DatasetError, match=found):
                check_raster(deep, scaling, bands, decode=False)

    def test_what_is_cut_off_or_damaged(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 255, (3, 256, 256)).astype(np.uint8)
        path = _write(tmp_path / "a.tif", values, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
        content = path.read_bytes()
        path.write_bytes(content[:-500])
        with pytest.raises(DatasetError, match=r"cut off .*bytes are missing"):
            check_raster(path, None, None, decode=False)
        path.write_bytes(content[:-9000] + bytes(9000))
        check_raster(path, None, None, decode=False)
        with pytest.raises(DatasetError, match="cannot be read"):
            check_raster(path, None, None, decode=True)


class TestWithoutRasterio:
    @pytest.fixture(autouse=True)
    def _hidden(self, monkeypatch):
        def missing(name, *args):
            if name.startswith("rasterio"):
                raise ImportError(name)
            return real(name, *args)

        real = importlib.import_module
        monkeypatch.setattr(importlib, "import_module", missing)

    def test_deep_tiffs_ask_for_it(self, deep):
        with pytest.raises(MissingDependencyError, match=r"fiducial\[geo\]"):
            read_raster(deep, scaling=(0, 1))

    def test_8_bit_tiffs_are_read_and_the_loss_is_said_once(self, tmp_path, caplog):
        rasters._say_once.cache_clear()
        path = _write(tmp_path / "a.tif", np.full((3, 4, 4), 7, np.uint8))
        with caplog.at_level(logging.WARNING, "fiducial"):
            for _ in range(2):
                assert read_raster(path).frame is None
        assert [record.message.split(": ")[1] for record in caplog.records] == [
            "coordinates of the TIFFs are left out; pip install 'fiducial[geo]' keeps them"
        ]

    def test_mosaics_ask_for_it(self, tmp_path):
        (tmp_path / "a.vrt").write_text("<VRTDataset/>")
        with pytest.raises(MissingDependencyError, match=r"fiducial\[geo\]"):
            read_raster(tmp_path / "a.vrt")

    def test_pictures_need_it_not(self, tmp_path):
        Image.fromarray(np.full((5, 6, 3), 9, np.uint8)).save(tmp_path / "a.jpg", quality=100)
        assert read_raster(tmp_path / "a.jpg").rgb.shape == (5, 6, 3)
