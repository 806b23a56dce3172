"""What masks mean, and pairs as they are read."""

import numpy as np
import pytest
from PIL import Image

from changenet.config import ExperimentSpec
from changenet.segment.files import ScenePair
from changenet.segment.reading import LabelEncoding, SceneReader, image_size, mask_values
from fiducial.errors import DatasetError

NORM, IDS = LabelEncoding(True, 2), LabelEncoding(False, 4)


def counts_of(*values):
    return np.bincount(np.array(values), minlength=256)


class TestLabelEncoding:
    def test_norm(self):
        values = np.array([[0, 255], [255, 0]], dtype=np.uint8)
        assert NORM.classes(values, where="m").tolist() == [[0, 1], [1, 0]]

    def test_norm_takes_only_255_for_change(self):
        values = np.array([[0, 1, 127, 254, 255]], dtype=np.uint8)
        assert NORM.classes(values, where="m").tolist() == [[0, 0, 0, 0, 1]]
        assert NORM.num_between(counts_of(0, 1, 127, 254, 255)) == 3

    def test_class_numbers_keep_255(self):
        values = np.array([[0, 3, 255]], dtype=np.uint8)
        assert IDS.classes(values, where="m").tolist() == [[0, 3, 255]]

    def test_masks_of_0_and_1_are_never_background(self):
        found, fix = NORM.problem(counts_of(0, 0, 1))
        assert "values 0, 1 and no 255" in found
        assert "label_transform: None" in fix

    def test_masks_of_more_class_numbers(self):
        _, fix = NORM.problem(counts_of(0, 3))
        assert "label_transform: None" in fix
        assert "num_classes above" in fix

    def test_masks_that_only_nearly_reach_255(self):  # one smooth mask of many does not stop a run
        smooth = counts_of(0, 128, 254)
        assert NORM.problem(smooth) is None
        assert NORM.problem_of_all(smooth + counts_of(0, 255)) is None
        found, fix = NORM.problem_of_all(smooth)
        assert "values up to 254 and no 255 in any mask" in found
        assert "0 and 255" in fix

    def test_an_unchanged_mask_is_fine(self):
        assert NORM.problem(counts_of(0, 0)) is None
        assert IDS.problem(counts_of(0)) is None

    def test_class_numbers_too_high(self):
        found, fix = IDS.problem(counts_of(0, 4, 9, 255))
        assert found == "class numbers 4, 9"
        assert "num_classes (now 4)" in fix

    def test_forgotten_norm_shows_in_all_masks_together(self):
        assert "norm" in LabelEncoding(False, 2).problem_of_all(counts_of(0, 255))[1]
        assert LabelEncoding(False, 2).problem_of_all(counts_of(0, 1, 255)) is None
        assert NORM.problem_of_all(counts_of(0, 255)) is None

    def test_unusable_masks_stop_the_reading(self):
        with pytest.raises(DatasetError, match=r"m\.png.*no 255"):
            NORM.classes(np.ones((2, 2), dtype=np.uint8), where="m.png")


class TestMaskValues:
    def test_modes(self):
        grey = np.array([[0, 3], [255, 1]], dtype=np.uint8)
        palette = Image.fromarray(grey)
        palette.putpalette(list(range(256)) * 3)
        for image in (Image.fromarray(grey), palette, Image.merge("RGB", [Image.fromarray(grey)] * 3)):
            assert mask_values(image, where="m").tolist() == grey.tolist()
        bits = Image.fromarray(np.array([[True, False]]))
        assert mask_values(bits, where="m").tolist() == [[1, 0]]
        alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (2, 2), 7)])
        assert mask_values(alpha, where="m").tolist() == grey.tolist()

    def test_colours(self):
        with pytest.raises(DatasetError, match="a colour picture"):
            mask_values(Image.fromarray(np.array([[[1, 2, 3]]], dtype=np.uint8)), where="m")

    def test_deep_values(self):
        with pytest.raises(DatasetError, match=r"values 0 \.\. 700"):
            mask_values(Image.fromarray(np.array([[0, 700]], dtype=np.uint16)), where="m")


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
        assert image_size(pair.before) == (4, 6)

    def test_keeps_the_latest_within_its_memory(self, tmp_path, make_image):
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
        assert (~reader.valid(pair)).sum() == 1

    def test_16_bits_without_a_scaling(self, tmp_path):
        path = geo_write(tmp_path / "a.tif", np.full((3, 4, 4), 1000, dtype=np.uint16))
        with pytest.raises(DatasetError, match=r"a\.tif.*uint16.*scaling"):
            SceneReader(NORM).scene(ScenePair("x", 1, path, path, None))
