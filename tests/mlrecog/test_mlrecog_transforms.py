"""Transforms; their pixels beside TAO's are among the stored numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from fiducial.data.normalization import Normalization
from mlrecog.transforms import Blur, EvalTransform, TrainTransform, draw_window, erase

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_evaluation_is_the_middle_of_a_larger_picture():
    image = noise(100, 50)
    out = EvalTransform((224, 112), PLAIN)(image)
    larger = np.asarray(image.resize((127, 255), Image.Resampling.BILINEAR))
    assert out.shape == (3, 224, 112)
    # (255 - 224) / 2 and (127 - 112) / 2 are halves, which go to the even neighbour
    assert np.array_equal((out * 255).round().byte().permute(1, 2, 0).numpy(), larger[16:240, 8:120])


def test_windows_keep_to_area_and_aspect():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, y0, x1, y1 = draw_window(rng, 120, 100, (0.2, 0.5))
        assert 0 <= x0 < x1 <= 120
        assert 0 <= y0 < y1 <= 100
        assert 0.18 <= (x1 - x0) * (y1 - y0) / 12000 <= 0.52
        assert 0.7 <= (x1 - x0) / (y1 - y0) <= 1.4


def test_a_window_that_fits_nowhere_is_the_middle():
    assert draw_window(np.random.default_rng(0), 1000, 10, (0.9, 1.0)) == (493, 0, 506, 10)


def test_nothing_random_switched_on_is_a_resize():
    image = noise(40, 40)
    plain = TrainTransform((40, 40), PLAIN, scale=(1, 1), flip=0, colors=None, blur=None, erased=0)

    class Fixed:
        def __getattr__(self, name):
            return getattr(np.random.default_rng(0), name)

        def uniform(self, low, high):
            return (low + high) / 2  # the aspect 1

    out = plain(image, Fixed())
    assert np.array_equal((out * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(
    "changed",
    [{"flip": 1.0}, {"rotation": True}, {"colors": (0.5, 0.3, 0.1, 0.1)}, {"blur": Blur()}, {"erased": 1.0}],
    ids=lambda changed: next(iter(changed)),
)
def test_each_change_changes(changed):
    options = {"scale": (0.5, 1.0), "flip": 0.0, "rotation": False, "colors": None, "blur": None, "erased": 0.0}
    image = noise(40, 40)
    plain = TrainTransform((32, 32), PLAIN, **options)(image, np.random.default_rng(5))
    other = TrainTransform((32, 32), PLAIN, **{**options, **changed})(image, np.random.default_rng(5))
    assert plain.shape == other.shape
    assert not torch.equal(plain, other)


def test_blur_is_the_gaussian_of_its_sigma():
    pixels = np.zeros((31, 31, 3), np.uint8)
    pixels[15, 15] = 255
    out = Blur((15, 15), (0.7, 0.7))(pixels, np.random.default_rng(0))
    reach = np.exp(-0.5 * (np.arange(-3, 4) / 0.7) ** 2)
    want = 255 * np.outer(reach, reach) / reach.sum() ** 2
    assert np.abs(out[12:19, 12:19, 0].astype(float) - want).max() <= 0.51


def test_erased_area():
    x = erase(torch.zeros(3, 50, 50), np.random.default_rng(1), (0.1, 0.2, 0.3))
    assert 0.01 < float((x[0] != 0).float().mean()) < 0.45
    assert sorted(set(x[2].flatten().tolist())) == pytest.approx([0.0, 0.3])
