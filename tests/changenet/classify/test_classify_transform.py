"""From tiles to the composed, normalised, perhaps augmented image."""

import numpy as np
import pytest
import torch
from PIL import Image

from changenet.classify.config import ClassifyAugmentation
from changenet.classify.rows import Layout
from changenet.classify.transform import (
    CLIP,
    IMAGENET,
    PairAugment,
    compose_lights,
    normalization,
)
from fiducial.data.normalization import Normalization

OFF = {"enable": False}
STILL = {
    "augment": True,
    "random_flip": OFF,
    "random_rotate": OFF,
    "random_color": OFF,
    "with_random_crop": False,
    "with_random_blur": False,
}


def config(**changes) -> ClassifyAugmentation:
    return ClassifyAugmentation.model_validate({**STILL, **changes})


def tiles(*values: int) -> list[np.ndarray]:
    return [np.full((2, 3, 3), value, dtype=np.uint8) for value in values]


def layout(grid: tuple[int, int] | None = None) -> Layout:
    return Layout(("a", "b", "c", "d"), ".png", (2, 3), grid, 1)


class TestNormalization:
    def test_by_hand(self):
        pixels = np.zeros((1, 2, 3), dtype=np.uint8)
        pixels[0, 1] = (255, 51, 102)
        x = Normalization((0.5, 0.2, 0.0), (0.5, 0.1, 2.0))(pixels)
        assert x.shape == (3, 1, 2)
        assert x[:, 0, 1].tolist() == pytest.approx([1.0, 0.0, 0.2])
        assert x[:, 0, 0].tolist() == pytest.approx([-1.0, -2.0, 0.0])

    def test_several_goldens(self):
        assert Normalization(*IMAGENET)(np.zeros((4, 5, 6, 3), dtype=np.uint8)).shape == (4, 3, 5, 6)

    @pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (0.226, 0.226, 0.226)])
    def test_radio_takes_clip_while_the_spec_keeps_the_defaults(self, std):
        defaults = config(rgb_input_std=list(std))
        assert normalization(defaults, "c_radio_v2_vit_base_patch16_224", clip=True) == Normalization(*CLIP)
        assert normalization(defaults, "c_radio_v2_vit_base_patch16_224", clip=False).std == std  # compat: tao
        assert normalization(defaults, "fan_tiny_8_p4_hybrid", clip=True).std == std

    def test_own_values_are_kept(self):
        own = config(rgb_input_mean=[0.5, 0.5, 0.5])
        assert normalization(own, "c_radio_v2_vit_base_patch16_224", clip=True).mean == (0.5, 0.5, 0.5)

    def test_the_key_decides(self):
        name = "c_radio_v2_vit_base_patch16_224"
        assert normalization(config(radio_normalization="clip"), name, clip=False).mean == CLIP[0]
        assert normalization(config(radio_normalization="as_configured"), name, clip=True).mean == IMAGENET[0]


class TestCompose:
    def test_linear_stacks_downwards(self):
        composed = compose_lights(tiles(1, 2, 3), layout())
        assert composed.shape == (6, 3, 3)
        assert composed[:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]

    def test_grid_goes_row_by_row(self):
        composed = compose_lights(tiles(1, 2, 3, 4), layout((2, 2)))
        assert composed.shape == (4, 6, 3)
        assert composed[::2, ::3, 0].tolist() == [[1, 2], [3, 4]]

    def test_wide_grid(self):
        assert compose_lights(tiles(1, 2, 3, 4, 5, 6), layout((2, 3)))[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8))


def augmented(seed: int, images, compat_tao: bool = False, **changes) -> np.ndarray:
    changed = PairAugment(config(**changes), compat_tao)(images, np.random.default_rng(seed))
    return np.array([[np.asarray(tile) for tile in tiles] for tiles in changed])


class TestAugment:
    def test_everything_off_changes_nothing(self):
        images = [[noise(0), noise(1)], [noise(2), noise(3)]]
        before = np.array([[np.asarray(tile) for tile in tiles] for tiles in images])
        assert (augmented(0, images) == before).all()

    @pytest.mark.parametrize(
        "changes",
        [
            {"random_flip": {}},
            {"random_rotate": {"rotate_probability": 1.0}},
            {"with_random_crop": True},
            {"with_random_blur": True},
            {"random_color": {"color_probability": 1.0}},
            {
                "random_flip": {},
                "random_rotate": {},
                "with_random_crop": True,
                "with_random_blur": True,
                "random_color": {},
            },
        ],
    )
    def test_lights_and_goldens_share_every_decision(self, changes):
        for seed in range(20):
            out = augmented(seed, [[noise(0)] * 2, [noise(0)] * 2, [noise(0)] * 2], **changes)
            assert (out == out[0, 0]).all()

    @pytest.mark.parametrize(
        ("changes", "probability"),
        [
            ({"random_flip": {"hflip_probability": 0.2, "vflip_probability": 0}}, 0.2),
            ({"random_flip": {"hflip_probability": 0, "vflip_probability": 0.7}}, 0.7),
            ({"random_rotate": {"rotate_probability": 0.3}}, 0.3),
            ({"random_color": {"color_probability": 0.2}}, 0.2),
        ],
    )
    def test_probabilities(self, changes, probability):
        before = np.asarray(noise(0, 4))
        changed = [(augmented(seed, [[noise(0, 4)]], **changes)[0, 0] != before).any() for seed in range(1000)]
        assert np.mean(changed) == pytest.approx(probability, abs=0.05)

    def test_compat_tao_inverts_the_colour_probability(self):
        before, often = np.asarray(noise(0, 4)), {"random_color": {"color_probability": 0.2}}
        changed = [(augmented(s, [[noise(0, 4)]], compat_tao=True, **often)[0, 0] != before).any() for s in range(1000)]
        assert np.mean(changed) == pytest.approx(0.8, abs=0.05)

    def test_compat_tao_orders_the_colour_steps_per_image(self):
        always = {"random_color": {"color_probability": 0.0, "brightness": 0.9, "contrast": 0.9}}
        out = augmented(3, [[noise(0)] * 4, [noise(0)] * 4], compat_tao=True, **always)
        assert (out != out[0, 0]).any()

    def test_every_angle_is_used(self):
        turned = {"random_rotate": {"rotate_probability": 1.0, "angle_list": [0, 90, 180, 270]}}
        expected = {np.asarray(noise(0).rotate(angle)).tobytes() for angle in (0, 90, 180, 270)}
        assert {augmented(seed, [[noise(0)]], **turned).tobytes() for seed in range(60)} == expected

    def test_switching_one_change_off_leaves_the_others_as_they_were(self):
        both = {"random_flip": {}, "with_random_crop": True}
        for seed in range(10):
            with_rotation = augmented(seed, [[noise(0)]], random_rotate={"rotate_probability": 0.0}, **both)
            assert (with_rotation == augmented(seed, [[noise(0)]], **both)).all()

    def test_uses_no_global_randomness(self):
        changes = {"random_flip": {}, "with_random_crop": True, "random_color": {}, "with_random_blur": True}
        np.random.seed(0)
        torch.manual_seed(0)
        first = augmented(5, [[noise(0)]], **changes)
        torch.manual_seed(9)
        assert (augmented(5, [[noise(0)]], **changes) == first).all()
