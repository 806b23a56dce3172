import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changenet.segment import geo
from changenet.segment.geo import (
    GeoFrame,
    Percentiles,
    RasterInfo,
    check_alignment,
    polygons,
    read_info,
    read_raster,
    resolve_scaling,
    write_geotiff,
    write_polygons,
)
from changenet.segment.tiles import Window
from fiducial.errors import DatasetError, MissingDependencyError

rasterio = pytest.importorskip("rasterio")

UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()
LONLAT = rasterio.crs.CRS.from_epsg(4326).to_wkt()
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

    def test_a_tiff_without_a_place(self, tmp_path, recwarn):
        Image.fromarray(np.full((5, 6, 3), 9, np.uint8)).save(tmp_path / "a.tif")
        assert read_raster(tmp_path / "a.tif").frame is None
        assert read_info(tmp_path / "a.tif") == RasterInfo(tmp_path / "a.tif", 5, 6, 3, "uint8", None)
        assert not recwarn.list

    def test_bad_files(self, tmp_path):
        (tmp_path / "bad.tif").write_bytes(b"no raster")
        with pytest.raises(DatasetError, match="cannot be read"):
            read_raster(tmp_path / "bad.tif")
        with pytest.raises(DatasetError, match="no such file"):
            read_info(tmp_path / "gone.tif")


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
        geo._say_once.cache_clear()
        path = _write(tmp_path / "a.tif", np.full((3, 4, 4), 7, np.uint8))
        with caplog.at_level(logging.WARNING, "fiducial"):
            for _ in range(2):
                assert read_raster(path).frame is None
        assert [record.message.split(": ")[1] for record in caplog.records] == [
            "coordinates of the TIFFs are left out; pip install 'fiducial[geo]' keeps them"
        ]

    def test_pictures_need_it_not(self, tmp_path):
        Image.fromarray(np.full((5, 6, 3), 9, np.uint8)).save(tmp_path / "a.jpg", quality=100)
        assert read_raster(tmp_path / "a.jpg").rgb.shape == (5, 6, 3)

    def test_polygons_ask_for_it(self):
        with pytest.raises(MissingDependencyError):
            polygons(np.ones((2, 2), np.uint8), None)


class TestAlignment:
    @staticmethod
    def info(name, frame=FRAME, size=(100, 200)):
        return RasterInfo(Path(name), *size, 3, "uint8", frame)

    def found(self, other):
        return [f"{p.level}: {p.found}" for p in check_alignment([self.info("A.tif"), other])]

    def test_same_ground(self):
        a, b, c, d, e, f = FRAME.transform
        assert self.found(self.info("B.tif")) == []
        assert self.found(self.info("B.tif", GeoFrame(UTM, (a, b, c + 0.004, d, e, f)))) == []

    def test_what_differs(self):
        a, b, c, d, e, f = FRAME.transform
        assert self.found(self.info("B.tif", size=(100, 199))) == ["error: 100 × 199 and 100 × 200 pixels"]
        assert self.found(self.info("B.tif", GeoFrame(LONLAT, FRAME.transform))) == [
            "error: coordinates of EPSG:4326 and EPSG:32633"
        ]
        shifted = GeoFrame(UTM, (a, b, c + 3, d, e, f - 4))
        assert self.found(self.info("B.tif", shifted)) == ["error: corners 10 pixels apart"]
        stretched = GeoFrame(UTM, (a * 1.01, b, c, d, e, f))
        assert self.found(self.info("B.tif", stretched)) == ["error: corners 2 pixels apart"]

    def test_an_image_without_a_place_is_a_warning_and_a_mask_is_not(self):
        assert self.found(self.info("B.png", None)) == ["warning: B.png states no coordinates"]
        assert list(check_alignment([self.info("a.png", None), self.info("b.png", None)])) == []
        assert list(check_alignment([self.info("A.tif"), self.info("B.tif"), self.info("label.png", None)])) == []
        silent = GeoFrame("", FRAME.transform)
        assert self.found(self.info("B.tif", silent)) == ["warning: B.tif states no coordinate system"]
        assert list(check_alignment([self.info("A.tif"), self.info("B.tif"), self.info("label.tif", silent)])) == []
        away = GeoFrame("", (*FRAME.transform[:2], 0, *FRAME.transform[3:]))
        assert self.found(self.info("B.tif", away))[0].startswith("error: corners")
        wrong = self.info("label.png", None, size=(9, 9))
        assert [p.level for p in check_alignment([self.info("A.tif"), self.info("B.tif"), wrong])] == ["error"]


class TestWriteGeotiff:
    def test_mask(self, tmp_path):
        mask = np.array([[0, 1, 255]], np.uint8)
        write_geotiff(tmp_path / "n" / "m.tif", mask, FRAME, colours=[(0, 0, 0), (250, 128, 0)], nodata=255)
        with rasterio.open(tmp_path / "n" / "m.tif") as file:
            assert np.array_equal(file.read(1), mask)
            assert (file.crs.to_epsg(), tuple(file.transform)[:6], file.nodata) == (32633, FRAME.transform, 255)
            assert file.colormap(1)[1] == (250, 128, 0, 255)
        assert read_info(tmp_path / "n" / "m.tif").frame.transform == FRAME.transform

    def test_probability_and_no_place(self, tmp_path, recwarn):
        prob = np.random.default_rng(0).random((300, 200)).astype(np.float32)
        write_geotiff(tmp_path / "p.tif", prob, None)
        with rasterio.open(tmp_path / "p.tif") as file:
            assert np.array_equal(file.read(1), prob)
            assert file.dtypes == ("float32",)


class TestPolygons:
    MASK = np.array(
        [
            [1, 1, 1, 0, 2],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 255],
            [0, 0, 0, 1, 0],
        ],
        np.uint8,
    )

    def test_hand_computed(self):
        collection = polygons(self.MASK, FRAME, class_names={1: "new building", 2: "gone"})
        first, second = collection["features"]
        ground = first["properties"].pop("area_m2")  # at its central meridian UTM shrinks lengths by 0.9996
        assert ground == pytest.approx(2.25 / 0.9996**2, rel=1e-5)
        assert first["properties"] == {"id": 1, "class": 1, "name": "new building", "pixels": 9, "area": 2.25}
        assert first["geometry"]["type"] == "MultiPolygon"  # the ninth pixel touches by a corner
        outline, hole = max(first["geometry"]["coordinates"], key=len)
        assert {tuple(p) for p in outline} == {(x, y) for x in (5e5, 5e5 + 1.5) for y in (5e6, 5e6 - 1.5)}
        assert {tuple(p) for p in hole} == {(x, y) for x in (5e5 + 0.5, 5e5 + 1) for y in (5e6 - 0.5, 5e6 - 1)}
        assert second["properties"]["name"] == "gone"
        assert second["geometry"]["type"] == "Polygon"
        assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"

    def test_draws_the_mask_again(self):
        rng = np.random.default_rng(0)
        mask = rng.integers(0, 3, (30, 40)).astype(np.uint8)
        shapes = [(f["geometry"], f["properties"]["class"]) for f in polygons(mask, FRAME)["features"]]
        drawn = rasterio.features.rasterize(shapes, mask.shape, transform=rasterio.Affine(*FRAME.transform))
        assert np.array_equal(drawn, mask)

    def test_small_ones_are_left_out(self):
        assert [f["properties"]["pixels"] for f in polygons(self.MASK, FRAME, min_area=2)["features"]] == [9]
        assert polygons(np.zeros((3, 3), np.uint8), FRAME)["features"] == []

    def test_wgs84(self):
        collection = polygons(self.MASK, FRAME, wgs84=True)
        assert "crs" not in collection
        lon, lat = collection["features"][1]["geometry"]["coordinates"][0][0]
        assert lon == pytest.approx(15.0, abs=1e-4)  # zone 33 is centred on 15° east
        assert lat == pytest.approx(45.15, abs=0.01)
        with pytest.raises(DatasetError, match="no coordinate system"):
            polygons(self.MASK, None, wgs84=True)

    def test_area_on_the_ground(self):
        # a millidegree at 60° north: 111.41 m of latitude by 55.80 m of longitude (WGS 84)
        frame = GeoFrame(LONLAT, (1e-3, 0, 10.0, 0, -1e-3, 60.0))
        found = polygons(np.array([[1]], np.uint8), frame)["features"][0]["properties"]
        assert found["area"] == pytest.approx(1e-6)
        assert found["area_m2"] == pytest.approx(111.41 * 55.80, rel=1e-3)
        feet = GeoFrame(rasterio.crs.CRS.from_epsg(2263).to_wkt(), (1.0, 0, 1e6, 0, -1.0, 2e5))  # New York, US feet
        found = polygons(np.array([[1]], np.uint8), feet)["features"][0]["properties"]
        assert found["area_m2"] == pytest.approx((1200 / 3937) ** 2, rel=1e-3)
        y = 8_399_737.89  # Mercator at 60° north, where it doubles lengths (on the ellipsoid nearly)
        mercator = GeoFrame(rasterio.crs.CRS.from_epsg(3857).to_wkt(), (1.0, 0, 1e6, 0, -1.0, y))
        found = polygons(np.array([[1]], np.uint8), mercator)["features"][0]["properties"]
        assert (found["area"], found["area_m2"]) == (1.0, pytest.approx(0.25, rel=0.01))

    def test_a_local_grid_has_no_place_on_earth(self):
        local = GeoFrame('LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0, 0, 0, -1.0, 0))
        assert "area_m2" not in polygons(np.array([[1]], np.uint8), local)["features"][0]["properties"]
        with pytest.raises(DatasetError, match="no coordinate system"):
            polygons(np.array([[1]], np.uint8), local, wgs84=True)

    def test_without_a_place(self):
        feature = polygons(np.array([[0, 1]], np.uint8), None)["features"][0]
        assert feature["properties"] == {"id": 1, "class": 1, "pixels": 1, "area": 1.0}
        assert sorted(feature["geometry"]["coordinates"][0])[0] == [1.0, 0.0]

    def test_file(self, tmp_path):
        write_polygons(tmp_path / "n" / "x.geojson", polygons(self.MASK, FRAME, class_names={1: "Höfe"}))
        read = json.loads((tmp_path / "n" / "x.geojson").read_text(encoding="utf-8"))
        assert read["features"][0]["properties"]["name"] == "Höfe"


def test_importing_needs_no_rasterio():
    code = "import sys, changenet.segment.geo; sys.exit(bool({'rasterio', 'scipy', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
