import numpy as np
import pytest
from scipy import ndimage
from skimage import data
from skimage.registration import phase_cross_correlation

from fiducial.data.registration import apply_shift, shift_between

STEP = 0.05  # of the answer
SHIFTS = [(0.0, 0.0), (3.0, -2.0), (3.35, -2.6), (-0.4, 0.25), (-8.5, 12.0)]


def pair(image, moved_by, size=180):
    """Windows of ``image`` at one place, before and after its content moved down and right by ``moved_by``."""
    window = np.s_[20 : 20 + size, 20 : 20 + size]
    return image[window], ndimage.shift(image.astype(float), moved_by, order=3, mode="nearest")[window]


def blobs(seed=0, size=240):
    noise = np.random.default_rng(seed).normal(size=(size, size))
    image = ndimage.gaussian_filter(noise, 2)
    return 255 * (image - image.min()) / np.ptp(image)


@pytest.fixture(params=["camera", "coins", "blobs"])
def image(request):
    return blobs() if request.param == "blobs" else getattr(data, request.param)().astype(float)


class TestShiftBetween:
    @pytest.mark.parametrize("moved_by", SHIFTS)
    def test_known_shift(self, image, moved_by):
        reference, moving = pair(image, moved_by)
        assert shift_between(reference, moving) == pytest.approx((-moved_by[0], -moved_by[1]), abs=1.5 * STEP)

    @pytest.mark.parametrize("moved_by", SHIFTS)
    def test_noise_and_another_light(self, image, moved_by):
        reference, moving = pair(image, moved_by)
        noise = np.random.default_rng(1).normal(0, 8, moving.shape)
        lit = 0.6 * moving + 30 + np.linspace(0, 40, moving.shape[1]) + noise
        assert shift_between(reference, lit) == pytest.approx((-moved_by[0], -moved_by[1]), abs=3 * STEP)

    def test_unit_does_not_matter(self):
        reference, moving = pair(blobs(), (1.5, 2.5))
        assert shift_between(reference / 255, moving / 255) == shift_between(reference, moving)

    def test_same_sign_as_scikit_image(self):
        reference, moving = pair(data.camera().astype(float), (3.35, -2.6))
        theirs, *_ = phase_cross_correlation(reference, moving, upsample_factor=20)
        assert shift_between(reference, moving) == pytest.approx(theirs, abs=2 * STEP)

    def test_undone_by_apply_shift(self, image):
        reference, moving = pair(image, (3.35, -2.6))
        back = apply_shift(moving.clip(0, 255).astype(np.uint8)[..., None], shift_between(reference, moving))[..., 0]
        inner = np.s_[10:-10, 10:-10]
        before = np.abs(reference - moving)[inner].mean()
        assert np.abs(reference - back)[inner].mean() < 0.35 * before

    def test_a_pattern_that_repeats_is_searched_within_the_bound(self):
        rows, columns = np.mgrid[:160, :160]
        pads = np.sin(2 * np.pi * columns / 16) + np.sin(2 * np.pi * rows / 16)
        marks = 0.5 * blobs(3)[:160, :160] / 255
        moving = ndimage.shift(pads + marks, (2, 3), mode="grid-wrap")
        assert shift_between(pads, moving, max_shift=6) == pytest.approx((-2, -3), abs=0.2)

    def test_further_than_the_bound_is_not_believed(self):
        reference, moving = pair(blobs(), (15, 0))
        assert max(map(abs, shift_between(reference, moving, max_shift=4))) <= 4
        assert shift_between(reference, moving, max_shift=0) == (0, 0)
        assert shift_between(reference, moving) == pytest.approx((-15, 0), abs=1.5 * STEP)

    @pytest.mark.parametrize("level", [0.0, 127.3])
    def test_flat_images_have_no_shift(self, level):
        flat = np.full((32, 48), level)
        assert shift_between(flat, blobs()[:32, :48]) == (0, 0)
        assert shift_between(blobs()[:32, :48], flat) == (0, 0)
        assert shift_between(flat, flat) == (0, 0)

    def test_small_and_oblong(self):
        big = blobs(5)
        reference, moving = big[50:82, 50:150], big[49:81, 52:152]  # content 1 lower, 2 further left
        assert shift_between(reference, moving) == pytest.approx((-1, 2), abs=2 * STEP)

    @pytest.mark.parametrize(
        ("reference", "moving", "limit"),
        [
            (np.zeros((4, 4)), np.zeros((4, 5)), None),
            (np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), None),
            (np.full((4, 4), np.nan), np.zeros((4, 4)), None),
            (np.zeros((4, 4)), np.zeros((4, 4)), -1),
        ],
    )
    def test_bad_arguments(self, reference, moving, limit):
        with pytest.raises(ValueError, match=r"grey images|finite|max_shift"):
            shift_between(reference, moving, max_shift=limit)


class TestApplyShift:
    IMAGE = np.array([[0, 100, 200], [10, 110, 210]], np.uint8)[..., None]

    @pytest.mark.parametrize(
        ("shift", "expected"),
        [
            ((0, 0), [[0, 100, 200], [10, 110, 210]]),
            ((1, 0), [[0, 100, 200], [0, 100, 200]]),  # down
            ((0, 1), [[0, 0, 100], [10, 10, 110]]),  # right
            ((0, -0.5), [[50, 150, 200], [60, 160, 210]]),
            ((-0.5, 0.25), [[5, 80, 180], [10, 85, 185]]),
            ((9, 9), [[0, 0, 0], [0, 0, 0]]),
        ],
    )
    def test_hand_computed(self, shift, expected):
        moved = apply_shift(self.IMAGE, shift)
        assert moved.dtype == np.uint8
        assert moved[..., 0].tolist() == expected

    def test_equals_scipy(self):
        image = np.random.default_rng(0).integers(0, 256, (20, 17, 3), dtype=np.uint8)
        theirs = ndimage.shift(image.astype(np.float64), (1.3, -2.45, 0), order=1, mode="nearest")
        assert np.abs(apply_shift(image, (1.3, -2.45)) - theirs).max() <= 0.5 + 1e-3
