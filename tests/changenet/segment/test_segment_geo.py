import subprocess
import sys
from pathlib import Path

import pytest

from changenet.segment.geo import GeoFrame, RasterInfo, check_alignment

rasterio = pytest.importorskip("rasterio")

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


def test_importing_needs_no_rasterio():
    modules = "changenet.segment.geo, changenet.segment.rasters, changenet.segment.maps"
    code = f"import sys, {modules}; sys.exit(bool({{'rasterio', 'scipy', 'torch'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
