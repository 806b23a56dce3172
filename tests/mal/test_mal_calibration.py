"""The boxes that a static quantization observes."""

import pytest

from fiducial.errors import DatasetError
from mal.config import ExperimentSpec
from mal.runtime import MalRuntime


def test_boxes_to_train_on_else_those_to_evaluate_with(make_tree, pictures, tmp_path):
    found = MalRuntime(ExperimentSpec.model_validate(make_tree(tmp_path))).calibration()
    assert (found.source, len(found.items)) == (str(pictures / "train" / "ann.json"), 15)
    assert {name: tuple(found.items[0][name].shape) for name in ("image", "boxmask", "area")} == {
        **{"image": (3, 32, 32), "boxmask": (1, 32, 32), "area": ()},
    }
    spec = ExperimentSpec.model_validate(make_tree(tmp_path, dataset__train_ann_path=""))
    assert MalRuntime(spec).calibration().source == str(pictures / "val" / "ann.json")


def test_pictures_without_boxes_and_nothing(make_tree, tmp_path):
    tree = make_tree(tmp_path, dataset__train_ann_path="", dataset__val_ann_path="", inference__ann_path="")
    runtime = MalRuntime(ExperimentSpec.model_validate(tree))
    with pytest.raises(DatasetError, match=r"dataset.train_ann_path and dataset.train_img_dir · not set"):
        runtime.calibration()
    with pytest.raises(DatasetError, match=r"some.key .*pictures alone have no boxes"):
        runtime.calibration([str(tmp_path)], "some.key")


def test_a_quantized_network_has_the_names_of_a_checkpoint(make_tree, tmp_path):
    runtime = MalRuntime(ExperimentSpec.model_validate(make_tree(tmp_path)))
    names = set(runtime.checkpoint_names(runtime.network().state_dict()))
    assert names
    assert all(name.startswith("student.") for name in names)
