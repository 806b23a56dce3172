import numpy as np
import pytest
from PIL import Image

from changenet.segment.masks import (
    LANDSCD_PALETTE,
    OVERLAY_COLOURS,
    colour_mask,
    output_names,
    overlay,
    palette,
    read_probability,
    strip,
    write_mask,
    write_picture,
    write_probability,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestPalette:
    def test_binary_and_named(self):
        assert palette(2) == [(0, 0, 0), (255, 255, 255)]
        assert palette(2, color_map={"1": [255, 0, 0], "0": [9, 9, 9]}) == [(9, 9, 9), (255, 0, 0)]
        assert palette(10, data_name="LandSCD") == list(LANDSCD_PALETTE)
        assert LANDSCD_PALETTE[4] == (218, 112, 214)

    def test_made_up_colours_differ_and_stay(self):
        colours = palette(40)
        assert colours == palette(40)
        assert colours[0] == (255, 255, 255)
        assert len(set(colours)) == 40

    def test_classes_must_be_all_there(self):
        with pytest.raises(ValueError, match=r"0 \.\. 2"):
            palette(3, color_map={"0": [0, 0, 0], "2": [1, 1, 1]})


class TestOutputNames:
    @staticmethod
    def names(*entries):
        return [str(name) for name in output_names(entries)]

    def test_folders_are_kept(self):
        assert self.names("x_12.png", "north/x_12.tif", r"south\a.b.png") == ["x_12", "north/x_12", "south/a.b"]

    def test_nothing_leaves_the_folder(self):
        assert self.names("../../etc/x.png", "/abs/y.png", "C:/z.png", "./w.png") == ["etc/x", "abs/y", "C/z", "w"]
        with pytest.raises(ValueError, match="names no file"):
            output_names(["../.."])

    def test_no_two_share_a_name(self):
        assert self.names("x.png", "X.jpg", "y.png") == ["x.png", "X.jpg", "y"]
        assert self.names("a/x.png", "../a/x.png") == ["a/x.png", "a/x.png-2"]


class TestMask:
    @pytest.mark.parametrize("num_classes", [2, 10])
    def test_lossless(self, tmp_path, rng, num_classes):
        mask = rng.integers(0, num_classes, (33, 47)).astype(np.uint8)
        mask[0, 0] = 255
        colours = palette(num_classes)
        path = tmp_path / "sub" / "x.png"
        write_mask(path, mask, colours)
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), mask)
            assert np.array_equal(np.asarray(image.convert("RGB")), colour_mask(mask, colours))

    def test_every_class_needs_a_colour(self, tmp_path):
        with pytest.raises(ValueError, match="class 2 has no colour"):
            write_mask(tmp_path / "x.png", np.array([[2]], np.uint8), palette(2))


class TestProbability:
    def test_binary_as_16_bit_png(self, tmp_path, rng):
        change = rng.random((9, 11)).astype(np.float32)
        change[0, :2] = 0, 1
        path = write_probability(tmp_path / "a.b", np.stack([1 - change, change]))
        assert path.name == "a.b.png"
        with Image.open(path) as image:
            levels = np.asarray(image)
        assert levels.dtype == np.uint16
        assert levels[0, :2].tolist() == [0, 65535]
        np.testing.assert_allclose(read_probability(path)[1], change, atol=0.5 / 65535 + 1e-7)

    def test_more_classes_exactly(self, tmp_path, rng):
        prob = rng.dirichlet(np.ones(4), (6, 5)).transpose(2, 0, 1).astype(np.float32)
        path = write_probability(tmp_path / "a", prob)
        assert path.name == "a.npz"
        assert np.array_equal(read_probability(path), prob)

    def test_logits_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="must be in 0"):
            write_probability(tmp_path / "a", np.array([[[-3.0]], [[4.0]]], np.float32))
        with pytest.raises(ValueError, match="two or more"):
            write_probability(tmp_path / "a", np.zeros((1, 2, 2), np.float32))


class TestStrip:
    @pytest.mark.parametrize(("num", "width"), [(4, 4 * 16 + 30), (3, 3 * 16 + 20)])
    def test_geometry_of_tao(self, num, width):
        pictures = [np.full((16, 16, 3), 50 * (k + 1), np.uint8) for k in range(num)]
        drawn = strip(pictures)
        assert drawn.shape == (16, width, 3)
        assert (drawn[:, 16:26] == 0).all()
        assert [int(drawn[5, 26 * k, 0]) for k in range(num)] == [50 * (k + 1) for k in range(num)]

    def test_files(self, tmp_path):
        picture = np.zeros((8, 8, 3), np.uint8)
        for name, kind in (("n/x.png.jpg", "JPEG"), ("x.png", "PNG")):
            write_picture(tmp_path / name, picture)
            with Image.open(tmp_path / name) as image:
                assert image.format == kind


class TestOverlay:
    def test_each_kind_has_its_colour(self):
        base = np.full((12, 50, 3), 100, np.uint8)
        truth, prediction = np.zeros((2, 12, 50), np.uint8)
        truth[2:10, 2:10], prediction[2:10, 2:10] = 1, 1
        truth[2:10, 12:20] = 1
        prediction[2:10, 22:30] = 1
        truth[2:10, 32:40], prediction[2:10, 32:40] = 1, 2
        truth[2:10, 42:50], prediction[2:10, 42:50] = 255, 1
        drawn = overlay(base, prediction, truth)
        for left, name in ((2, "found"), (12, "missed"), (22, "false"), (32, "other class")):
            colour = np.array(OVERLAY_COLOURS[name])
            assert drawn[2, left].tolist() == colour.tolist()  # border
            assert drawn[5, left + 3].tolist() == np.rint(0.4 * 100 + 0.6 * colour).astype(int).tolist()
        assert drawn[5, 45].tolist() == [35, 35, 35]  # ignored
        assert (drawn[0] == 100).all()

    def test_without_truth(self):
        drawn = overlay(np.zeros((6, 6, 3), np.uint8), np.full((6, 6), 1, np.uint8))
        assert drawn[3, 3].tolist() == np.rint(0.6 * np.array(OVERLAY_COLOURS["found"])).astype(int).tolist()

    def test_same_masks_show_only_found(self, rng):
        base, mask = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8), rng.integers(0, 3, (20, 20)).astype(np.uint8)
        assert np.array_equal(overlay(base, mask, mask), overlay(base, mask))
