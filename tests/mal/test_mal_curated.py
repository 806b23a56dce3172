"""The specs of configs/mal: read as they are, and sound but for the paths that are to be filled in."""

from pathlib import Path

import pytest
import yaml

from fiducial import cli
from fiducial.spec.compose import Source, compose
from mal.__main__ import TASKS
from mal.checks import check_spec
from mal.config import ExperimentSpec

FOLDER = Path(__file__).parents[2] / "configs" / "mal"
SPECS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def composed(name):
    return compose(ExperimentSpec, Source(yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("action", ["train", "evaluate", "inference", "export"])
def test_are_sound(name, action):
    assert list(check_spec(composed(name).spec, action)) == []


class TestVitMaeBase:
    def test_every_value_is_a_usual_one(self):
        assert composed("vit-mae-base").warnings == ()

    def test_paths_that_are_not_filled_in_are_named(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        code = cli.main(TASKS, ["check", "train", "--config", "mal/vit-mae-base"], prog="mal")
        said = capsys.readouterr().err
        assert code == 1
        for key in ("dataset.train_ann_path", "dataset.train_img_dir", "train.pretrained_model_path"):
            assert f"{key} · no file" in said
        assert "training runs without validation" in said

    def test_trains_on_what_is_given(self, pictures, tmp_path, capsys):
        """Its losses and schedule, with a smaller network."""
        images = pictures / "train"
        overrides = [f"results_dir={tmp_path}", f"dataset.train_ann_path={images / 'ann.json'}"]
        overrides += [f"dataset.train_img_dir={images / 'img'}", "train.pretrained_model_path=null"]
        overrides += ["model.arch=vit-deit-tiny/16", "dataset.crop_size=32", "train.num_epochs=1"]
        overrides += ["dataset.num_workers_per_gpu=0"]
        assert cli.main(TASKS, ["train", "--config", "mal/vit-mae-base", *overrides], prog="mal") == 0
        assert "boxes; labels" in capsys.readouterr().err
        assert (tmp_path / "train" / "mal_model_latest.pth").is_file()
