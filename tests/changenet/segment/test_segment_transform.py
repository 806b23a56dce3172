"""Sizes, normalisation and random changes of a pair."""

import numpy as np
import pytest
from PIL import Image

from changenet.segment.config import SegmentAugmentation
from changenet.segment.reading import Scene, resized
from changenet.segment.transform import TAO_NORMALIZATION, SceneAugment, _zoomed
from fiducial.data.normalization import Normalization

SIDE = 48


def scene(seed=0, side=SIDE):
    """Two pictures whose red channel is 255 exactly where the mask is 1."""
    rng = np.random.default_rng(seed)
    label = np.zeros((side, side), dtype=np.uint8)
    label[side // 8 : side // 2, side // 4 : side // 2] = 1
    pictures = []
    for _ in range(2):
        picture = rng.integers(0, 40, (side, side, 3), dtype=np.uint8)
        picture[..., 0] = 255 * label
        pictures.append(picture)
    return Scene(pictures[0], pictures[1], label)


OFF = {
    "random_flip": {"enable": False},
    "random_rotate": {"enable": False},
    "random_color": {"enable": False},
    "with_scale_random_crop": {"enable": False},
    "with_random_crop": False,
    "with_random_blur": False,
}


def augment(compat_tao=False, **switched_on):
    return SceneAugment(SegmentAugmentation.model_validate({**OFF, **switched_on}), compat_tao)


def rng(seed=0):
    return np.random.default_rng(seed)


GEOMETRY = {
    "mirrors": {"random_flip": {"enable": True, "hflip_probability": 1, "vflip_probability": 0}},
    "upside down": {"random_flip": {"enable": True, "hflip_probability": 0, "vflip_probability": 1}},
    "turns": {"random_rotate": {"enable": True, "rotate_probability": 1, "angle_list": [90, 180, 270]}},
    "cuts": {"with_random_crop": True},
    "enlarges": {"with_scale_random_crop": {"enable": True, "scale_range": [1.3, 1.6]}},
    "shrinks": {"with_scale_random_crop": {"enable": True, "scale_range": [0.6, 0.8]}},
}


class TestNormalization:
    def test_default_is_minus_one_to_one(self):
        pixels = np.array([[[0, 255, 51]]], dtype=np.uint8)
        assert TAO_NORMALIZATION(pixels).flatten().tolist() == pytest.approx([-1, 1, -0.6])

    def test_own_values_by_channel(self):
        x = Normalization((0, 0, 0.2), (1, 2, 0.5))(np.full((2, 3, 3), 255, dtype=np.uint8))
        assert x.shape == (3, 2, 3)
        assert x[:, 0, 0].tolist() == pytest.approx([1, 0.5, 1.6])


class TestResized:
    def test_images_bicubic_mask_nearest(self):
        before = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        label = np.random.default_rng(1).integers(0, 5, (40, 60), dtype=np.uint8)
        small = resized(Scene(before, before, label), 24)
        want = np.asarray(Image.fromarray(before).resize((24, 24), Image.Resampling.BICUBIC))
        assert (small.before == want).all()
        assert (small.label == np.asarray(Image.fromarray(label).resize((24, 24), Image.Resampling.NEAREST))).all()

    def test_nothing_to_do(self):
        kept = scene()
        assert resized(kept, SIDE).before is kept.before


class TestSceneAugment:
    def test_everything_off_changes_nothing(self):
        changed = augment()(scene(), rng())
        for part in ("before", "after", "label"):
            assert (getattr(changed, part) == getattr(scene(), part)).all()

    @pytest.mark.parametrize("what", GEOMETRY)
    @pytest.mark.parametrize("seed", [0, 2, 3])
    def test_images_and_mask_move_together(self, what, seed):
        changed = augment(**GEOMETRY[what])(scene(), rng(seed))
        assert changed.before.shape == (SIDE, SIDE, 3)
        known = changed.label != 255
        for picture in (changed.before, changed.after):
            red = picture[..., 0] > 127
            agreement = (red == (changed.label == 1))[known].mean()
            assert agreement > (0.999 if what in ("mirrors", "upside down", "turns") else 0.95)
        assert (changed.label != scene().label).any()

    def test_shrinking_pads_the_mask_with_ignored(self):
        changed = augment(**GEOMETRY["shrinks"])(scene(), rng())
        outside = changed.label == 255
        assert 0.3 < outside.mean() < 0.7
        assert (changed.before[outside] == 0).all()

    def test_all_angles_of_the_list_are_drawn(self):
        turns = {"random_rotate": {"enable": True, "rotate_probability": 1, "angle_list": [90, 180, 270, 360]}}
        seen = {augment(**turns)(scene(), rng(seed)).label.tobytes() for seed in range(40)}
        assert len(seen) == 4

    def test_colours_change_the_images_apart_and_never_the_mask(self):
        same = scene()
        same = Scene(same.before, same.before, same.label)
        colours = {"random_color": {"enable": True, "color_probability": 1.0}}
        changed = augment(**colours)(same, rng())
        assert (changed.before != same.before).any()
        assert (changed.before != changed.after).any()
        assert (changed.label == same.label).all()

    def test_color_probability(self):
        never = {"random_color": {"enable": True, "color_probability": 0.0}}
        assert (augment(**never)(scene(), rng()).before == scene().before).all()
        assert (augment(compat_tao=True, **never)(scene(), rng()).before != scene().before).any()

    def test_blur_is_the_same_for_both(self):
        same = scene()
        changed = augment(with_random_blur=True)(Scene(same.before, same.before, same.label), rng())
        assert (changed.before == changed.after).all()
        assert (changed.before != same.before).any()

    def test_same_generator_same_result(self):
        everything = SceneAugment(SegmentAugmentation())
        first, second, other = (everything(scene(), rng(seed)) for seed in (5, 5, 6))
        assert (first.before == second.before).all()
        assert (first.label == second.label).all()
        assert (first.before != other.before).any()

    def test_switching_one_off_leaves_the_other_draws(self):
        both = augment(**GEOMETRY["mirrors"], **GEOMETRY["turns"])
        assert (both(scene(), rng(1)).label == augment(**GEOMETRY["turns"])(Scene(*mirrored()), rng(1)).label).all()


def mirrored():
    plain = scene()
    return [part[:, ::-1].copy() for part in (plain.before, plain.after, plain.label)]


class TestZoomed:
    def test_place_of_the_window(self):
        image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
        nearest = Image.Resampling.NEAREST
        corner = np.asarray(_zoomed(image, 8, (1.0, 0.0), nearest, 255))
        assert corner.tolist() == [[2, 2, 3, 3]] * 2 + [[6, 6, 7, 7]] * 2
        small = np.asarray(_zoomed(image, 2, (0.0, 1.0), nearest, 255))
        assert small[2:, :2].tolist() == [[5, 7], [13, 15]]
        assert (small == 255).sum() == 12
