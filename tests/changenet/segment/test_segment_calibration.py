"""The scenes that a static quantization observes."""

import pytest
import torch

from changenet.segment.runtime import SegmentRuntime
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.errors import UserError

KEY = "dataset__segment__quant_calibration_dataset"


def test_pairs_to_train_on_as_evaluation_prepares_them_and_no_mask(make_spec, scene_data):
    runtime = SegmentRuntime(make_spec())
    found = runtime.calibration()
    assert (found.source, len(found.items)) == (str(scene_data / "list" / "train.txt"), 6)
    assert "L" not in found.items[0]
    assert torch.equal(found.items[3]["A"], found.items[3]["A"])
    batch = next(iter(CalibrationBatches(found, runtime.graph(), items=4, batch_size=4)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("input0", "input1"), (4, 3, 32, 32)
    )
    assert not torch.equal(batch["input0"], batch["input1"])


def test_the_root_of_the_key_and_of_another(make_spec, make_scenes, tmp_path):
    make_scenes(tmp_path, "predict", 2)
    runtime = SegmentRuntime(make_spec(**{KEY: {"images_dir": str(tmp_path)}}))
    assert len(runtime.calibration().items) == 2
    assert len(runtime.calibration([str(tmp_path)] * 2, "some.key").items) == 4


def test_another_kind_of_folder_is_told_by_the_key_that_names_it(make_spec, tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"quant_calibration_dataset.images_dir .*no folder"):
        SegmentRuntime(make_spec(**{KEY: {"images_dir": str(tmp_path)}})).calibration()
    with pytest.raises(UserError, match=r"some.key .*no folder"):
        SegmentRuntime(make_spec()).calibration([str(tmp_path)], "some.key")
    with pytest.raises(UserError, match="images_dir · not set, and no list"):
        SegmentRuntime(make_spec(dataset__segment__root_dir="")).calibration()
