"""Pairs as they are read."""

import importlib

import numpy as np
import pytest

from changenet.config import ExperimentSpec
from changenet.segment.files import ScenePair
from changenet.segment.reading import LabelEncoding, SceneReader
from fiducial.data import kept
from fiducial.errors import DatasetError

NORM = LabelEncoding(True, 2)


class TestSceneReader:
    def test_reads_rgb_and_classes(self, tmp_path, make_image):
        pair = ScenePair("x", 1, tmp_path / "a.png", tmp_path / "b.png", tmp_path / "m.png")
        make_image(pair.before, np.full((4, 6), 9))
        make_image(pair.after, np.full((4, 6, 3), 7))
        make_image(pair.label, np.full((4, 6), 255))
        scene = SceneReader(NORM).scene(pair)
        assert scene.before.shape == scene.after.shape == (4, 6, 3)
        assert (scene.before == 9).all()
        assert (scene.label == 1).all()
        assert SceneReader(NORM).size(pair.before) == (4, 6)

    def test_keeps_the_latest_within_its_memory(self, tmp_path, make_image, monkeypatch):
        monkeypatch.setattr(kept, "SETTLED_NS", -1)
        pairs = []
        for i in range(3):
            path = make_image(tmp_path / f"{i}.png", np.full((512, 512, 3), i))  # 1.5 MB for both
            pairs.append(ScenePair(str(i), i, path, path, None))
        reader = SceneReader(NORM, cache_mb=3)
        first = reader.scene(pairs[0])
        assert reader.scene(pairs[0]) is first
        for pair in pairs:
            reader.scene(pair)
        assert reader.scene(pairs[2]) is reader.scene(pairs[2])
        assert reader.scene(pairs[0]) is not first
        assert SceneReader(NORM).scene(pairs[0]) is not SceneReader(NORM).scene(pairs[0])

    def test_a_changed_file_is_read_anew(self, tmp_path, make_image):
        before, after = (make_image(tmp_path / name, np.full((4, 4, 3), 1)) for name in ("a.png", "b.png"))
        pair, reader = ScenePair("x", 1, before, after, None), SceneReader(NORM, cache_mb=1)
        assert (reader.scene(pair).after == 1).all()
        make_image(tmp_path / "new.png", np.full((4, 4, 3), 2)).replace(after)
        assert (reader.scene(pair).after == 2).all()

    def test_missing_file(self, tmp_path):
        with pytest.raises(DatasetError, match=r"a\.png.*no such file"):
            SceneReader(NORM).scene(ScenePair("x", 1, tmp_path / "a.png", tmp_path / "b.png", None))


def geo_write(path, values, nodata=None):
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    transform = rasterio.Affine(0.5, 0, 100, 0, -0.5, 200)
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=transform, nodata=nodata) as file:
        file.write(values)
    return path


class TestRasters:
    def test_16_bits_with_a_stated_scaling_and_no_data(self, tmp_path, make_image):
        values = np.full((3, 4, 4), 1000, dtype=np.uint16)
        values[:, 0, 0] = 0  # no data
        values[:, 1, 1] = 3000
        before = geo_write(tmp_path / "a.tif", values, nodata=0)
        after = geo_write(tmp_path / "b.tif", np.full((3, 4, 4), 2000, dtype=np.uint16), nodata=0)
        label = make_image(tmp_path / "m.png", np.zeros((4, 4)))
        tree = {"task": "segment", "dataset": {"segment": {"raster": {"scaling": [1000, 3000]}}}}
        reader = SceneReader.of(ExperimentSpec.model_validate(tree).dataset.segment)
        pair = ScenePair("x", 1, before, after, label)
        scene = reader.scene(pair)
        assert scene.before[1, 1].tolist() == [255] * 3
        assert scene.before[2, 2].tolist() == [0] * 3
        assert scene.after[2, 2].tolist() == [128] * 3
        assert (scene.label == 255).sum() == 1
        assert scene.label[0, 0] == 255
        assert (~reader.valid(pair, (4, 4))).sum() == 1
        assert reader.valid(pair, (2, 2)) is None

    def test_masks_keep_what_has_no_data(self, tmp_path):
        values = np.zeros((1, 4, 4), np.float32)
        values[0, 0], values[0, 1] = np.nan, 1
        label = geo_write(tmp_path / "m.tif", values)
        picture = geo_write(tmp_path / "a.tif", np.full((3, 4, 4), 9, np.uint8))
        scene = SceneReader(LabelEncoding(False, 2)).scene(ScenePair("x", 1, picture, picture, label))
        assert scene.label[:3, 0].tolist() == [255, 1, 0]

    def test_mosaics_of_files_below_the_root(self, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        importlib.import_module("rasterio.shutil")
        (tmp_path / "data" / "A").mkdir(parents=True)
        tile = geo_write(tmp_path / "data" / "tiles" / "t.tif", np.full((3, 4, 4), 9, np.uint8))
        rasterio.shutil.copy(tile, tmp_path / "data" / "A" / "x.vrt", driver="VRT")
        path = tmp_path / "data" / "A" / "x.vrt"
        reader = SceneReader(NORM, root=tmp_path / "data")
        assert (reader.picture(path)[0] == 9).all()
        assert reader.size(path) == (4, 4)
        reader.check(path, decode=True)
        for read in (SceneReader(NORM).picture, SceneReader(NORM).size, SceneReader(NORM).mask):
            with pytest.raises(DatasetError, match="lies outside"):
                read(path)

    def test_16_bits_without_a_scaling(self, tmp_path):
        path = geo_write(tmp_path / "a.tif", np.full((3, 4, 4), 1000, dtype=np.uint16))
        with pytest.raises(DatasetError, match=r"a\.tif.*uint16.*scaling"):
            SceneReader(NORM).scene(ScenePair("x", 1, path, path, None))
