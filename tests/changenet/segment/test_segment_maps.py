import json
import sys

import numpy as np
import pytest

from changenet.segment.geo import GeoFrame
from changenet.segment.maps import polygons, write_geotiff, write_polygons
from changenet.segment.rasters import read_info
from fiducial.errors import DatasetError, MissingDependencyError

rasterio = pytest.importorskip("rasterio")

UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()
LONLAT = rasterio.crs.CRS.from_epsg(4326).to_wkt()
FRAME = GeoFrame(UTM, (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0))  # half-metre pixels, north up


def around(epsg, longitude, latitude):
    """64 × 64 pixels of some ten metres around a place."""
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", f"EPSG:{epsg}", [longitude], [latitude])
    size = (10.0, 10.0)
    if epsg == 4326:
        size = (10 / 111_320 / np.cos(np.radians(latitude)), 10 / 110_600)
    crs = rasterio.crs.CRS.from_epsg(epsg).to_wkt()
    return GeoFrame(crs, (size[0], 0.0, x - 32 * size[0], 0.0, -size[1], y + 32 * size[1]))


def signed_area(ring):
    """Above 0 for a ring that runs counterclockwise, by the shoelace formula."""
    x, y = np.array(ring).T - np.array(ring[0])[:, None]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


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

    @pytest.mark.parametrize(
        "epsg", [32760, 32701, 3832, 4326]
    )  # UTM of either side, a Mercator of the Pacific, degrees
    def test_across_180_degrees(self, epsg):
        frame = around(epsg, 180.0, -17.0)
        mask = np.zeros((64, 64), np.uint8)
        mask[10:20, 20:44] = 1
        true_area = 240 * 10 * 10 if epsg != 3832 else 240 * 100 * np.cos(np.radians(17)) ** 2
        found = polygons(mask, frame)["features"][0]
        assert found["properties"]["area_m2"] == pytest.approx(true_area, rel=0.01)
        geometry = polygons(mask, frame, wgs84=True)["features"][0]["geometry"]
        assert geometry["type"] == "MultiPolygon"  # one part for either side
        longitudes = [x for rings in geometry["coordinates"] for x, _ in rings[0]]
        assert min(map(abs, longitudes)) > 179.99
        assert max(map(abs, longitudes)) <= 180
        assert all(signed_area(rings[0]) > 0 for rings in geometry["coordinates"])

    @pytest.mark.parametrize(("epsg", "latitude"), [(3031, -90.0), (3413, 90.0)])
    def test_around_a_pole(self, epsg, latitude):
        frame = GeoFrame(rasterio.crs.CRS.from_epsg(epsg).to_wkt(), (10.0, 0, -320.0, 0, -10.0, 320.0))
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 20:44] = 1
        found = polygons(mask, frame)["features"][0]["properties"]
        scale = {3031: 0.97277, 3413: 0.96986}[epsg]  # of lengths at the pole, true at 71° south and 70° north
        assert found["area_m2"] == pytest.approx(20 * 24 * 100 / scale**2, rel=1e-3)

    @pytest.mark.parametrize(
        "transform", [(0.5, 0, 5e5, 0, 0.5, 46e5), (0.5, 0, 5e5, 0, -0.5, 46e5), (0, 2, 5e5, 2, 0, 46e5)]
    )
    @pytest.mark.parametrize("wgs84", [True, False])
    def test_rings_run_as_rfc_7946_wants(self, transform, wgs84):
        for frame in (GeoFrame(UTM, transform), None) if not wgs84 else (GeoFrame(UTM, transform),):
            for feature in polygons(self.MASK, frame, wgs84=wgs84)["features"]:
                geometry = feature["geometry"]
                parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
                for outline, *holes in parts:
                    assert signed_area(outline) > 0
                    assert all(signed_area(hole) < 0 for hole in holes)

    def test_beyond_the_coordinate_system(self):
        nowhere = GeoFrame(UTM, (1e9, 0, 1e12, 0, -1e9, 1e12))
        assert "area_m2" not in polygons(self.MASK, nowhere)["features"][0]["properties"]
        with pytest.raises(DatasetError, match="beyond their coordinate system"):
            polygons(self.MASK, nowhere, wgs84=True)

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

    def test_without_rasterio(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(MissingDependencyError):
            polygons(np.ones((2, 2), np.uint8), None)
