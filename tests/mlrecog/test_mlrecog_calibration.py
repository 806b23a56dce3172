"""The pictures that a static quantization observes."""

import pytest

from fiducial.errors import DatasetError
from mlrecog.runtime import RecogRuntime

KEY = "dataset__quant_calibration_dataset"


def test_pictures_to_train_on_else_those_to_evaluate_with(make_spec, shelves, tmp_path):
    found = RecogRuntime(make_spec(tmp_path)).calibration()
    assert found.source == str(shelves / "train")
    assert tuple(found.items[0]["image"].shape) == (3, 32, 32)
    assert RecogRuntime(make_spec(tmp_path, dataset__train_dataset=None)).calibration().source == str(shelves / "query")


def test_the_folder_of_the_key_and_folders_in_it(make_spec, shelves, tmp_path):
    runtime = RecogRuntime(make_spec(tmp_path, **{KEY: {"images_dir": str(shelves / "reference")}}))
    count = len([path for path in (shelves / "reference").rglob("*") if path.is_file()])
    assert len(runtime.calibration().items) == count
    assert len(runtime.calibration([str(shelves / "query"), str(shelves / "reference")], "some.key").items) > count


def test_no_pictures(make_spec, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"dataset.quant_calibration_dataset.images_dir · no picture in"):
        RecogRuntime(make_spec(tmp_path, **{KEY: {"images_dir": str(tmp_path / "empty")}})).calibration()
    with pytest.raises(DatasetError, match=r"some.key · no picture in"):
        RecogRuntime(make_spec(tmp_path)).calibration([str(tmp_path / "empty")], "some.key")
    spec = make_spec(tmp_path, dataset__train_dataset=None, dataset__val_dataset={})
    with pytest.raises(DatasetError, match=r"not set, and dataset.train_dataset is not there"):
        RecogRuntime(spec).calibration()
