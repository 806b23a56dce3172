import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from changenet.segment.alignment import check_alignment
from changenet.segment.frames import GeoFrame, RasterInfo
from changenet.segment.rasters import read_info

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()
LONLAT = rasterio.crs.CRS.from_epsg(4326).to_wkt()
FRAME = GeoFrame(UTM, (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0))  # half-metre pixels, north up


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

    @pytest.mark.parametrize(
        ("one", "other", "is_same"),
        [
            ("EPSG:28992", "EPSG:7415", True),  # Dutch grid, without and with heights
            ("EPSG:32631", "EPSG:32631+5773", True),
            ("EPSG:4326", "EPSG:4979", True),  # with ellipsoidal heights
            ("EPSG:4258", "EPSG:4937", True),
            ("EPSG:7415", "EPSG:28992+5773", True),
            ("EPSG:32631", "EPSG:32632+5773", False),
            ("EPSG:28992", "EPSG:32631+5709", False),
            ("EPSG:4326", "EPSG:4258", False),
            ("EPSG:4326", "EPSG:4937", False),
        ],
    )
    def test_heights_do_not_matter(self, one, other, is_same):
        transform = (0.5, 0.0, 100_000.0, 0.0, -0.5, 450_000.0)
        for pair in ((one, other), (other, one)):
            frames = [GeoFrame(rasterio.crs.CRS.from_string(name).to_wkt(), transform) for name in pair]
            infos = [self.info(name, frame) for name, frame in zip(("A.tif", "B.tif"), frames, strict=True)]
            assert bool(list(check_alignment(infos))) != is_same


class TestPlaces:
    """Where files lie that state no transform."""

    @staticmethod
    def write(path, **more):
        points = more.pop("gcps", None)
        profile = {"driver": "GTiff", "count": 1, "height": 64, "width": 64, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile, **more) as file:
            file.write(np.full((1, 64, 64), 9, np.uint8))
            if points:
                file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        return read_info(path)

    @staticmethod
    def points(longitude, bend=0.0, rows=(0, 32, 64)):
        control = importlib.import_module("rasterio.control")
        return [
            control.GroundControlPoint(row, column, longitude + 1e-4 * column + bend * row * column, 52 - 1e-4 * row)
            for row in rows
            for column in (0, 32, 64)
        ]

    def test_control_points_are_a_place(self, tmp_path):
        info = self.write(tmp_path / "a.tif", gcps=self.points(4.0))
        assert info.frame.transform == pytest.approx((1e-4, 0, 4, 0, -1e-4, 52), abs=1e-12)
        assert rasterio.crs.CRS.from_wkt(info.frame.crs).to_epsg() == 4326
        away = self.write(tmp_path / "b.tif", gcps=self.points(9.0))
        (found,) = check_alignment([info, away])
        assert found.level == "error"
        assert "corners 5e+04 pixels apart" in found.found
        same = self.write(tmp_path / "c.tif", crs="EPSG:4326", transform=rasterio.Affine(1e-4, 0, 4, 0, -1e-4, 52))
        assert list(check_alignment([info, same])) == []

    @pytest.mark.parametrize(("bend", "rows"), [(1e-6, (0, 32, 64)), (0, (32,))])
    def test_control_points_that_no_grid_fits(self, tmp_path, bend, rows):
        info = self.write(tmp_path / "a.tif", gcps=self.points(4.0, bend, rows))
        assert info.frame is None
        (found,) = check_alignment([info, self.write(tmp_path / "b.tif")])
        assert found.level == "warning"
        assert f"a.tif is placed by {3 * len(rows)} control points, which no straight grid fits" in found.found

    def test_a_camera_model(self, tmp_path):
        rpc = importlib.import_module("rasterio.rpc")
        numbers = {"line_num_coeff": [0.0] * 20, "line_den_coeff": [1.0] * 20}
        numbers |= {"samp_num_coeff": [0.0] * 20, "samp_den_coeff": [1.0] * 20}
        names = ("height", "lat", "line", "long", "samp")
        numbers |= {f"{name}_{kind}": 1.0 for name in names for kind in ("off", "scale")}
        info = self.write(tmp_path / "a.tif", rpcs=rpc.RPC(**numbers))
        assert info.frame is None
        (found,) = check_alignment([self.write(tmp_path / "b.tif"), info])
        assert (found.level, found.found) == ("warning", "a.tif is placed by a camera model (RPC), which is not used")


def test_importing_needs_no_rasterio():
    modules = "changenet.segment.geo, changenet.segment.rasters, changenet.segment.maps"
    code = f"import sys, {modules}; sys.exit(bool({{'rasterio', 'scipy', 'torch'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
