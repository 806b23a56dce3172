"""What the numbers of a mask mean."""

import numpy as np
import pytest
from PIL import Image

from changenet.segment.encoding import LabelEncoding, Mask, mask_of, mask_values
from changenet.segment.rasters import Numbers
from fiducial.errors import DatasetError

NORM, IDS = LabelEncoding(True, 2), LabelEncoding(False, 4)


def counts_of(*values):
    return np.bincount(np.array(values), minlength=256)


def all_of(values):
    return Mask(values, np.ones(values.shape, dtype=bool))


class TestLabelEncoding:
    def test_norm(self):
        values = np.array([[0, 255], [255, 0]], dtype=np.uint8)
        assert NORM.classes(all_of(values), where="m").tolist() == [[0, 1], [1, 0]]

    def test_norm_takes_only_255_for_change(self):
        values = np.array([[0, 1, 127, 254, 255]], dtype=np.uint8)
        assert NORM.classes(all_of(values), where="m").tolist() == [[0, 0, 0, 0, 1]]
        assert NORM.num_between(counts_of(0, 1, 127, 254, 255)) == 3

    def test_class_numbers_keep_255(self):
        values = np.array([[0, 3, 255]], dtype=np.uint8)
        assert IDS.classes(all_of(values), where="m").tolist() == [[0, 3, 255]]

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
            NORM.classes(all_of(np.ones((2, 2), dtype=np.uint8)), where="m.png")


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

    @pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("zero_is", ["black", "white"])
    def test_tiffs_keep_their_numbers(self, tmp_path, bits, zero_is):
        """Pillow spreads few bits over 0..255, and shows 0 as white where the file says so."""
        rasterio = pytest.importorskip("rasterio")
        numbers = (4 * np.arange(64) % 2**bits + np.arange(64) % 2).astype(np.uint8).reshape(8, 8)
        photometric = "MINISWHITE" if zero_is == "white" else "MINISBLACK"
        profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 1, "dtype": "uint8", "nbits": bits}
        with rasterio.open(tmp_path / "m.tif", "w", **profile, photometric=photometric) as file:
            file.write(numbers, 1)
        with Image.open(tmp_path / "m.tif") as image:
            assert mask_values(image, where="m").tolist() == numbers.tolist()


class TestMaskOf:
    @staticmethod
    def of(values, **more):
        values = np.array(values)
        return mask_of(Numbers(values, ~np.isnan(values), more.get("nodata")), where="m.tif")

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint64, np.uint16, np.int8])
    def test_whole_numbers_of_any_type(self, dtype):
        mask = self.of(np.array([[0, 1], [3, 100]], dtype))
        assert mask.values.dtype == np.uint8
        assert mask.values.tolist() == [[0, 1], [3, 100]]

    def test_no_data_is_ignored(self):
        mask = self.of([[0.0, np.nan], [1.0, np.nan]])
        assert IDS.classes(mask, where="m").tolist() == [[0, 255], [1, 255]]
        assert mask.counts_256[:3].tolist() == [1, 1, 0]
        assert NORM.classes(self.of([[0.0, np.nan, 255.0]]), where="m").tolist() == [[0, 255, 1]]

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            ([[0.5, 1.0]], "fractions \\(0.5, and 0 more\\)"),
            ([[0.0, np.inf]], r"values 0 \.\. inf"),
            ([[-1.0, 3.0]], r"values -1 \.\. 3"),
            ([[0, 65535]], r"values 0 \.\. 65535"),
        ],
    )
    def test_what_no_class_number_can_be(self, values, found):
        with pytest.raises(DatasetError, match=f"m.tif · {found}"):
            self.of(values)

    def test_255_cannot_mean_changed_and_nothing(self):
        mask = self.of([[0, 255]], nodata=255)
        with pytest.raises(DatasetError, match="declares 255 to mean no data, and label_transform norm"):
            NORM.classes(mask, where="m")
        assert IDS.classes(mask, where="m").tolist() == [[0, 255]]
