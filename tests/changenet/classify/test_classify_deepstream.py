"""The files for DeepStream, with the training's normalisation or TAO's."""

from pathlib import Path

import pytest
import yaml

from changenet.classify.runtime import ClassifyRuntime


def write(spec, folder: Path) -> tuple[Path, ...]:
    wanted = spec.model_copy(update={"export": spec.export.model_copy(update={"serialize_nvdsinfer": True})})
    return ClassifyRuntime(wanted).write_beside_export(folder / "model.onnx")


@pytest.fixture
def files_of(make_spec, tmp_path):
    def make(**changes) -> dict:
        write(make_spec(**changes), tmp_path)
        return {path.name: yaml.safe_load(path.read_text()) for path in sorted(tmp_path.glob("*.yaml"))}

    return make


def scaled(files: dict, pixel: float, channel: int) -> float:
    settings = files["nvdspreprocess_config_0.yaml"]["user-configs"]
    return (pixel - float(settings["offsets"].split(";")[channel])) * settings["pixel-normalization-factor"]


def test_names(files_of, tmp_path):
    names = ["nvdsinfer_config.yaml", "nvdspreprocess_config_0.yaml", "nvdspreprocess_config_1.yaml"]
    assert list(files_of()) == names
    assert (tmp_path / "labels.txt").read_text() == "0;1\n"


def test_graph(files_of):
    files = files_of()
    infer = files["nvdsinfer_config.yaml"]["property"]
    assert infer["infer-dims"] == "3;64;32"
    assert infer["onnx-file"] == "model.onnx"
    assert list(infer) == sorted(infer)
    for number in (0, 1):
        config = files[f"nvdspreprocess_config_{number}.yaml"]
        assert config["property"]["tensor-name"] == f"input_{number + 1}"
        assert config["property"]["network-input-shape"] == "2;3;64;32"
        assert config["group"]["src-ids"] == ";".join(str(source) for source in range(number, 16, 2))


def test_normalisation_of_the_training(files_of):
    same_std = {"rgb_input_mean": [0.4, 0.5, 0.6], "rgb_input_std": [0.25, 0.25, 0.25]}
    files = files_of(dataset__classify__augmentation_config=same_std)
    assert scaled(files, 204, 0) == pytest.approx((0.8 - 0.4) / 0.25, abs=1e-4)
    assert scaled(files, 51, 2) == pytest.approx((0.2 - 0.6) / 0.25, abs=1e-4)
    assert files["nvdspreprocess_config_0.yaml"]["property"]["maintain-aspect-ratio"] == 0


def test_different_stds_are_averaged_with_a_warning(files_of, caplog, monkeypatch):
    monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
    assert scaled(files_of(), 255, 0) == pytest.approx((1 - 0.485) / 0.226, abs=1e-4)
    assert "train with three equal values of std" in caplog.text


def test_compat_tao_writes_a_half_for_both(files_of):
    files = files_of(compat="tao")
    settings = files["nvdspreprocess_config_1.yaml"]["user-configs"]
    assert settings == {"offsets": "127.5;127.5;127.5", "pixel-normalization-factor": 0.007843137}
    assert files["nvdspreprocess_config_1.yaml"]["property"]["symmetric-padding"] == 1


def test_several_goldens_have_none(make_spec, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
    assert write(make_spec(dataset__classify__num_golden=2), tmp_path) == ()
    assert list(tmp_path.glob("*.yaml")) == []
    assert "one golden only" in caplog.text
