"""The pairs that a static quantization observes."""

import numpy as np
import pytest
import torch

from changenet.classify.runtime import ClassifyRuntime
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.errors import DatasetError, SourceError

KEY = "dataset__classify__quant_calibration_dataset"


@pytest.fixture
def runtime(make_spec):
    return lambda **changes: ClassifyRuntime(make_spec(**changes))


def test_pairs_to_train_on_as_evaluation_prepares_them(runtime, pair_data, caplog):
    augmented = runtime(dataset__classify__augmentation_config={"augment": True})
    with caplog.at_level("INFO"):
        found = augmented.calibration()
    assert found.source == str(pair_data / "train.csv")
    assert "images_dir is not set: calibrating with pairs of" in caplog.text
    assert len(found.items) == 24
    item, plain = found.items[5], augmented.dataset("val").normalize
    wanted = runtime().dataset("train")[5]
    assert plain is not None
    assert torch.equal(item["test"], wanted["test"])
    batch = next(iter(CalibrationBatches(found, augmented.graph(), items=4, batch_size=2)))
    assert [tuple(value.shape) for value in batch.values()] == [(2, 3, 64, 32)] * 2
    assert not torch.equal(batch["input_1"], batch["input_2"])


def test_rows_to_train_on_whose_images_are_in_the_folder(runtime, pair_data, tmp_path):
    data = tmp_path / "some"
    for name in ("golden", "train/b3", "train/b7"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(pair_data / name)
    found = runtime(**{KEY: {"images_dir": str(data)}}).calibration()
    assert (found.source, len(found.items)) == (str(pair_data / "train.csv"), 2)


def test_a_csv_of_its_own(runtime, pair_data):
    files = {"images_dir": str(pair_data), "csv_path": str(pair_data / "val.csv")}
    found = runtime(**{KEY: files}).calibration()
    assert (found.source, len(found.items)) == (str(pair_data / "val.csv"), 11)


def test_a_flat_folder_as_tao_has_it_each_image_its_own_golden(runtime, make_image, tmp_path, caplog):
    for name in ("x_SolderLight", "x_WhiteLight", "y_SolderLight", "y_WhiteLight"):
        make_image(tmp_path / f"{name}.png", np.full((40, 40, 3), 9 if name.startswith("x") else 200))
    found = runtime(**{KEY: {"images_dir": str(tmp_path)}}).calibration()
    assert len(found.items) == 2
    assert torch.equal(found.items[1]["test"], found.items[1]["golden"])
    assert "each image is compared with itself" in caplog.text
    again = runtime().calibration([str(tmp_path), str(tmp_path)], "some.key")
    assert len(again.items) == 4


class TestBadInput:
    def refused(self, runtime, kind=DatasetError, **files):
        with pytest.raises(kind) as caught:
            runtime(**{KEY: files}).calibration()
        return str(caught.value)

    def test_no_image(self, runtime, tmp_path):
        assert "quant_calibration_dataset.images_dir · no image that ends in .png" in self.refused(
            runtime, images_dir=str(tmp_path)
        )

    def test_a_csv_of_other_images(self, runtime, pair_data, tmp_path):
        said = self.refused(runtime, images_dir=str(tmp_path), csv_path=str(pair_data / "val.csv"))
        assert "quant_calibration_dataset.csv_path · no row of" in said

    def test_a_csv_without_a_folder(self, runtime, pair_data):
        assert "images_dir · not set" in self.refused(runtime, csv_path=str(pair_data / "val.csv"))

    def test_no_such_folder(self, runtime, tmp_path):
        assert "images_dir" in self.refused(runtime, SourceError, images_dir=str(tmp_path / "no"))

    def test_nothing_at_all(self, runtime):
        none = {f"dataset__classify__{name}_dataset": {} for name in ("train", "validation", "test", "infer")}
        with pytest.raises(DatasetError, match="not set, and no CSV of pairs is either"):
            runtime(**none).calibration()
