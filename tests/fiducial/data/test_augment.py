"""Random changes that several images share."""

import itertools

import numpy as np
import pytest
from PIL import Image

from fiducial.data.augment import ColorJitter, Crop, Geometry, blur, draw_crop


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def picture(pixels) -> Image.Image:
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


SMALL = picture([[[0] * 3, [10] * 3], [[20] * 3, [30] * 3]])


def first_channel(image: Image.Image) -> list:
    return np.asarray(image)[..., 0].tolist()


class TestGeometry:
    @pytest.mark.parametrize(
        ("geometry", "expected"),
        [
            (Geometry(), [[0, 10], [20, 30]]),
            (Geometry(hflip=True), [[10, 0], [30, 20]]),
            (Geometry(vflip=True), [[20, 30], [0, 10]]),
            (Geometry(angle=90), [[10, 30], [0, 20]]),  # counter-clockwise
            (Geometry(hflip=True, angle=90), [[0, 20], [10, 30]]),  # mirrored first
        ],
    )
    def test_by_hand(self, geometry, expected):
        assert first_channel(geometry(SMALL)) == expected

    def test_rotation_keeps_the_size_and_fills_with_black(self):
        turned = Geometry(angle=90)(picture(np.full((10, 20, 3), 200)))
        assert turned.size == (20, 10)
        assert np.asarray(turned)[:, :4].max() == 0

    def test_crop_is_scaled_back(self):
        pixels = np.zeros((8, 8, 3))
        pixels[2:6, 2:6] = 100
        assert set(np.asarray(Geometry(crop=Crop(2, 2, 4))(picture(pixels))).ravel().tolist()) == {100}


class TestCrop:
    def test_square_images_lose_up_to_a_fifth_of_their_area(self, rng):
        crops = [draw_crop(rng, 100, 100) for _ in range(3000)]
        sides = np.array([crop.side for crop in crops if crop])
        assert sides.min() >= round(100 * 0.8**0.5)
        assert sides.max() <= 100
        # shares are even between 0.8 and 1, those above are drawn again
        assert ((sides / 100) ** 2).mean() == pytest.approx(0.9, abs=0.005)
        assert all(0 <= crop.left <= 100 - crop.side and 0 <= crop.top <= 100 - crop.side for crop in crops if crop)
        assert sum(crop is None for crop in crops) < 15  # ten shares above 1 in a row: 0.1 %

    def test_windows_are_everywhere(self, rng):
        crops = [crop for crop in (draw_crop(rng, 100, 100) for _ in range(2000)) if crop and crop.side == 95]
        assert {crop.left for crop in crops} == {crop.top for crop in crops} == set(range(6))

    def test_oblong_images_give_their_central_square_where_nothing_fits(self, rng):
        # 0.8 of 40 x 10 is a square of 18: too high
        assert draw_crop(rng, 40, 10) == Crop(15, 0, 10)
        assert draw_crop(rng, 10, 40) == Crop(0, 15, 10)


class TestColour:
    def test_factors_stay_in_their_ranges(self, rng):
        drawn = [ColorJitter.draw(rng, (0.3, 0.5, 1.5, 0.1)) for _ in range(500)]
        for name, low, high in (("brightness", 0.7, 1.3), ("contrast", 0.5, 1.5), ("saturation", 0, 2.5)):
            values = [getattr(jitter, name) for jitter in drawn]
            assert low <= min(values) < low + 0.1
            assert high - 0.1 < max(values) <= high
        assert -0.1 <= min(jitter.hue for jitter in drawn) < max(jitter.hue for jitter in drawn) <= 0.1
        assert len({jitter.order for jitter in drawn}) == 24

    def test_brightness_by_hand(self):
        assert first_channel(ColorJitter(1.5, 1, 1, 0)(SMALL)) == [[0, 15], [30, 45]]

    def test_zero_amounts_change_nothing(self, rng):
        image = picture(rng.integers(0, 255, (6, 6, 3)))
        assert (np.asarray(ColorJitter.draw(rng, (0, 0, 0, 0))(image)) == np.asarray(image)).all()

    def test_order_matters_and_can_be_given(self, rng):
        image, jitter = picture(rng.integers(0, 255, (6, 6, 3))), ColorJitter(1.4, 0.5, 1, 0, (0, 1, 2, 3))
        one, other = np.asarray(jitter(image)), np.asarray(jitter(image, (1, 0, 2, 3)))
        assert (one != other).any()
        assert (np.asarray(ColorJitter(1.4, 0.5, 1, 0, (1, 0, 2, 3))(image)) == other).all()


def test_blur_spreads_and_keeps_the_sum():
    pixels = np.zeros((9, 9, 3))
    pixels[4, 4] = 255
    blurred = np.asarray(blur(picture(pixels), 1.0))[..., 0].astype(int)
    assert 0 < blurred[4, 5] < blurred[4, 4] < 255
    assert blurred.sum() == pytest.approx(255, abs=20)
    assert (np.asarray(blur(picture(pixels), 0.0)) == pixels).all()


class TestVariant:
    def test_equal_names_mean_equal_pictures(self):
        """Of a square picture mirrors and quarter turns make eight."""
        pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        made = {}
        for hflip, vflip, angle in itertools.product((False, True), (False, True), (None, 90, 180, 270)):
            geometry = Geometry(hflip, vflip, angle)
            made.setdefault(geometry.variant(6, 6), []).append(np.asarray(geometry(Image.fromarray(pixels))))
        assert len(made) == 8
        for pictures in made.values():
            assert len(pictures) == 2
            assert np.array_equal(*pictures)

    @pytest.mark.parametrize("other", [Geometry(angle=90), Geometry(angle=45), Geometry(crop=Crop(0, 0, 3))])
    def test_what_is_no_exact_turn_has_a_name_of_its_own(self, other):
        mirrors = [Geometry(*flips) for flips in itertools.product((False, True), repeat=2)]
        assert len({geometry.variant(6, 4) for geometry in (*mirrors, other)}) == 5
