"""Small things that docs/tao-compat.md promises."""

import numpy as np
import pytest
import torch

from changenet.__main__ import TASKS
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.transform import IMAGENET
from fiducial import cli
from fiducial.data.normalization import Normalization


def test_image_ext_not_set(make_spec):
    assert make_spec(dataset__classify__image_ext=None).dataset.classify.image_ext == ".jpg"


def test_pictures_have_the_colours_of_the_files(make_spec):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    normalize = Normalization(*IMAGENET)
    image = normalize(pixels)[None]
    shown = ClassifyRuntime(make_spec()).module(pretrained=False).preview({"test": image, "golden": image})
    assert list(shown) == ["compare_sample", "golden_sample"]
    for picture in shown.values():
        torch.testing.assert_close(picture, torch.from_numpy(pixels).permute(2, 0, 1) / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("own", "expected"), [(-1, 4), (3, 3)])
def test_batch_size_of_an_action(make_spec, own, expected):
    spec = make_spec(evaluate__batch_size=own, inference__batch_size=own)
    for stage in ("test", "infer"):
        (loader,) = ClassifyRuntime(spec).loaders(stage)
        assert len(next(iter(loader))["row"]) == expected


def test_the_last_epoch_is_always_kept(make_spec_file, tmp_path):
    spec = make_spec_file(train__num_epochs=3, train__checkpoint_interval=2)
    assert cli.main(TASKS, ["train", "-e", str(spec)], prog="changenet") == 0
    kept = sorted(path.name for path in (tmp_path / "results/train").glob("model_epoch_*.pth"))
    assert kept == ["model_epoch_001_step_00012.pth", "model_epoch_002_step_00018.pth"]
