"""Every action of the segment task through the command line, on scenes that the test makes."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from changenet.__main__ import TASKS
from changenet.segment import files
from fiducial import cli
from fiducial.run.status import read_status

PREFIX = "changenet_model_segment"
LARGE = "dataset.segment.windows.enable=true"


def run(action: str, spec: Path, *overrides: object) -> int:
    return cli.main(TASKS, [*action.split(), "-e", str(spec), *map(str, overrides)], prog="changenet")


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    masks = {}
    for path in sorted((folder / "masks").glob("*.png")):
        with Image.open(path) as image:
            masks[path.name] = np.asarray(image)
    return masks


def new_kpis(records: list[dict], stage: str) -> list[dict]:
    return [record["kpi"] for record in records if record.get("message") == f"{stage} metrics generated."]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(scene_data, make_spec_tree, tmp_path_factory):
    """(spec file, results folder) of a network trained for two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(make_spec_tree(scene_data, folder / "results")))
    assert run("train", spec) == 0
    return spec, folder / "results"


@pytest.fixture(scope="module")
def exported(trained):
    """An ONNX file of the trained network."""
    path = trained[1] / "model.onnx"
    sizes = ("export.input_height=32", "export.input_width=32", "export.serialize_nvdsinfer=true")
    assert run("export", trained[0], "export.checkpoint=latest", f"export.onnx_file={path}", *sizes) == 0
    return path


class TestTrain:
    def test_files(self, trained):
        names = {path.name for path in (trained[1] / "train").iterdir()}
        assert names >= {
            ".lock",
            "experiment.yaml",
            "status.json",
            "lightning_logs",
            "model_epoch_000_step_00003.pth",
            "model_epoch_001_step_00006.pth",
            f"{PREFIX}_latest.pth",
        }

    def test_kpis_have_the_names_of_tao(self, trained):
        records = read_status(trained[1] / "train" / "status.json")
        kpis = [new_kpis(records, stage) for stage in ("Eval", "Train")]
        means = {"acc", "miou", "mf1", "mprecision", "mrecall", "loss"}
        assert {f"val_{name}" for name in means} | {"val_iou_1", "val_F1_0"} <= kpis[0][0].keys()
        assert {f"train_{name}" for name in means} <= kpis[1][0].keys()

    def test_checkpoint_is_plain_and_has_the_keys_of_tao(self, trained):
        loaded = torch.load(trained[1] / "train" / f"{PREFIX}_latest.pth", weights_only=True)
        assert loaded["tao_model"] == "visual_changenet_segment"
        assert "tao_model_type" not in loaded
        card = loaded["fiducial"]
        assert (card["mean"], card["std"], card["img_size"]) == ([0.5] * 3, [0.5] * 3, 32)
        assert (card["network"], card["task"]) == ("visual_changenet", "segment")
        assert all(key.startswith(("model.backbone.", "model.decoder.")) for key in loaded["state_dict"])

    @pytest.mark.slow
    def test_same_seed_same_weights(self, trained, tmp_path):
        assert run("train", trained[0], f"results_dir={tmp_path}", "train.num_epochs=1") == 0
        first, second = (
            torch.load(folder / "train" / "model_epoch_000_step_00003.pth", weights_only=True)["state_dict"]
            for folder in (trained[1], tmp_path)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.slow
    def test_a_resumed_run_ends_where_the_whole_one_does(self, trained, tmp_path):
        middle = trained[1] / "train" / "model_epoch_000_step_00003.pth"
        resume = f"train.resume_training_checkpoint_path={middle}"
        assert run("train", trained[0], f"results_dir={tmp_path}", resume) == 0
        first, second = (
            torch.load(folder / "train" / "model_epoch_001_step_00006.pth", weights_only=True)["state_dict"]
            for folder in (trained[1], tmp_path)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "override",
        ["train.segment.loss=mmiou", "train.segment.loss=focal", "train.segment.loss=dice", "compat=tao", LARGE],
    )
    def test_other_losses_and_ways(self, trained, tmp_path, override):
        overrides = ("train.num_epochs=1", f"results_dir={tmp_path}", "train.segment.class_weights=[1,3]")
        assert run("train", trained[0], override, *overrides) == 0
        (kpi,) = new_kpis(read_status(tmp_path / "train" / "status.json"), "Eval")
        assert np.isfinite(kpi["val_loss"])

    @pytest.mark.slow
    def test_pictures_and_histograms(self, trained, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = "train.tensorboard.enabled=true"
        assert run("train", trained[0], board, "train.num_epochs=1", f"results_dir={tmp_path}") == 0
        events = EventAccumulator(str(tmp_path / "train" / "lightning_logs" / "version_1")).Reload()
        assert {"image/before", "image/after", "image/mask"} <= set(events.Tags()["images"])
        name = "histogram/model.decoder.change_probability.conv2d.weight"
        assert len(events.Histograms(name)) == len(events.Images("image/mask")) == 1

    @pytest.mark.slow
    def test_multi_class(self, tmp_path, make_scenes, make_spec_file):
        for split in ("train", "val", "test"):
            make_scenes(tmp_path / "data", split, 3, label=lambda changed: 2 * changed)
        ids = {"label_transform": None, "num_classes": 3, "data_name": "LandSCD"}
        spec = make_spec_file(tmp_path / "data", **{f"dataset__segment__{key}": value for key, value in ids.items()})
        assert run("train", spec, "train.num_epochs=1") == 0
        assert run("evaluate", spec, "evaluate.checkpoint=latest") == 0
        metrics = json.loads((tmp_path / "results" / "evaluate" / "metrics.json").read_text())
        assert list(metrics["classes"]) == ["class 1", "class 2", "no change"]

    @pytest.mark.slow
    def test_fine_tuning_and_freezing(self, trained, tmp_path):
        start = f"train.pretrained_model_path={trained[1] / 'train' / (PREFIX + '_latest.pth')}"
        freeze = "model.backbone.freeze_backbone=true"
        assert run("train", trained[0], start, freeze, "train.num_epochs=1", f"results_dir={tmp_path}") == 0
        before, after = (
            torch.load(folder / "train" / f"{PREFIX}_latest.pth", weights_only=True)["state_dict"]
            for folder in (trained[1], tmp_path)
        )
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed
        assert all(key.startswith("model.decoder.") for key in changed)

    @pytest.mark.slow
    def test_continuing_with_other_values_says_so(self, trained, tmp_path, capfd):
        shutil.copytree(trained[1], tmp_path / "results")
        changes = ("train.num_epochs=3", "train.optim.lr=0.5", "dataset.segment.label_suffix=.PNG")
        run("train", trained[0], f"results_dir={tmp_path}/results", *changes)
        said = capfd.readouterr().err
        assert re.search(
            r"WARNING - train\.optim\.lr: \S+ when .*pth was written, now 0\.5; continuing with the new one", said
        )
        assert re.search(r"WARNING - dataset\.segment\.label_suffix: \.png when .* now \.PNG\n", said)
        assert "num_epochs: " not in said.partition("continuing it")[2]


class TestEvaluate:
    @pytest.mark.slow
    def test_torch_and_onnxruntime_make_the_same_masks(self, trained, exported):
        assert run("evaluate", trained[0], "evaluate.checkpoint=latest") == 0
        other = trained[1] / "onnx"
        assert run("evaluate", trained[0], f"evaluate.checkpoint={exported}", f"evaluate.results_dir={other}") == 0
        mine, theirs = masks_of(trained[1] / "evaluate"), masks_of(other)
        assert list(mine) == ["test_0.png", "test_1.png", "test_2.png"]
        assert all((mine[name] == theirs[name]).all() for name in mine)
        a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (trained[1] / "evaluate", other))
        assert (a["confusion"], a["kpis"]) == (b["confusion"], b["kpis"])
        assert (a["run"]["runtime"], b["run"]["runtime"]) == ("torch", "onnxruntime")

    @pytest.mark.slow
    def test_in_openvino_s_format_with_pixels_as_inputs(self, trained, tmp_path):
        target, sizes = tmp_path / "m.onnx", ("export.input_height=32", "export.input_width=32")
        more = ("export.checkpoint=latest", "export.preprocessing=true", "export.openvino=true")
        assert run("export", trained[0], *sizes, *more, f"export.onnx_file={target}") == 0
        for name, model in (("torch", "latest"), ("openvino", target.with_suffix(".xml"))):
            out = f"evaluate.results_dir={tmp_path / name}"
            assert run("evaluate", trained[0], f"evaluate.checkpoint={model}", out) == 0
        mine, theirs = masks_of(tmp_path / "torch"), masks_of(tmp_path / "openvino")
        assert all((mine[name] == theirs[name]).all() for name in mine)

    def test_status_and_report(self, trained):
        assert run("evaluate", trained[0], "evaluate.checkpoint=latest") == 0
        kpi = new_kpis(read_status(trained[1] / "evaluate" / "status.json"), "Test")[-1]
        assert {"test_acc", "test_miou", "test_mf1", "test_mprecision", "test_mrecall", "test_iou_1"} <= kpi.keys()
        page = (trained[1] / "evaluate" / "report.html").read_text()
        assert "val_loss" in page  # the curves of the training

    @pytest.mark.slow
    def test_the_list_is_read_once(self, trained, tmp_path, monkeypatch):
        paths, read = [], files.read_list
        monkeypatch.setattr(files, "read_list", lambda path, folder: paths.append(path) or read(path, folder))
        assert run("evaluate", trained[0], "evaluate.checkpoint=latest", f"evaluate.results_dir={tmp_path}") == 0
        assert len(paths) == 1

    def test_windows_of_large_images(self, trained, exported, tmp_path, make_scenes):
        make_scenes(tmp_path / "large", "test", 2, size=(70, 50))
        places = (f"dataset.segment.root_dir={tmp_path / 'large'}", LARGE)
        for name, model in (("torch", "latest"), ("onnx", exported)):
            overrides = (f"evaluate.checkpoint={model}", f"evaluate.results_dir={tmp_path / name}")
            assert run("evaluate", trained[0], *places, *overrides) == 0
        mine, theirs = masks_of(tmp_path / "torch"), masks_of(tmp_path / "onnx")
        assert {mask.shape for mask in mine.values()} == {(70, 50)}
        assert all((mine[name] == theirs[name]).all() for name in mine)

    @pytest.mark.slow
    def test_averaging_all_scales_changes_the_result_and_must_agree_with_the_export(self, trained, exported, capfd):
        average, other = "dataset.segment.multi_scale_infer=true", trained[1] / "averaged"
        out = f"evaluate.results_dir={other}"
        assert run("evaluate", trained[0], average, "evaluate.checkpoint=latest", out) == 0
        assert run("evaluate", trained[0], average, f"evaluate.checkpoint={exported}", out) == 1
        assert "dataset.segment.multi_scale_infer · True in the spec, False in the model" in capfd.readouterr().err


class TestInference:
    def test_needs_no_masks(self, trained, scene_data, tmp_path):
        for part in ("A", "B", "list"):
            (tmp_path / part).symlink_to(scene_data / part)
        data = f"dataset.segment.root_dir={tmp_path}"
        assert run("segment_inference", trained[0], data, "inference.checkpoint=latest") == 0
        folder = trained[1] / "inference"
        assert set(masks_of(folder)) == {"test_0.png", "test_1.png", "test_2.png"}
        with (folder / "inference.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 3

    def test_masks_are_those_of_evaluate(self, trained):
        assert run("evaluate", trained[0], "evaluate.checkpoint=latest") == 0
        assert run("inference", trained[0], "inference.checkpoint=latest") == 0
        mine, theirs = masks_of(trained[1] / "evaluate"), masks_of(trained[1] / "inference")
        assert all((mine[name] == theirs[name]).all() for name in mine)


class TestMistakes:
    def test_missing_weights_are_listed_with_the_rest(self, trained, tmp_path, capfd):
        weights = "model.backbone.pretrained_backbone_path=/no/such.pth"
        folder = f"results_dir={tmp_path}"
        for action in ("check train", "train"):
            assert run(action, trained[0], folder, weights, "dataset.segment.train_split=nowhere") == 1
            said = capfd.readouterr().err
            assert "model.backbone.pretrained_backbone_path · no file '/no/such.pth'" in said
            assert "no such list" in said
        assert run("check train", trained[0], weights) == 0  # continuing, it needs none
        assert run("check evaluate", trained[0], "evaluate.checkpoint=/no/such.pth") == 1
        assert "evaluate.checkpoint · no file" in capfd.readouterr().err
        assert run("check evaluate", trained[0], folder) == 0  # before it is trained
        assert "WARNING - " in capfd.readouterr().err

    @pytest.mark.slow
    def test_another_image_size_is_said(self, trained, exported, tmp_path, capfd):
        evaluate = ("evaluate", trained[0], f"evaluate.results_dir={tmp_path}", "dataset.segment.img_size=64")
        assert run(*evaluate) == 0
        assert "trained at 32, and is best at it: dataset.segment.img_size=32" in capfd.readouterr().err
        assert run(*evaluate, LARGE) == 0  # windows keep the scale
        assert "and is best at it" not in capfd.readouterr().err
        assert run(*evaluate, f"evaluate.checkpoint={exported}") == 1
        assert "input input0 is [3, 32, 32], the spec composes [3, 64, 64]" in capfd.readouterr().err

    def test_check_lists_spec_and_data_together(self, trained, tmp_path, make_scenes, capfd):
        make_scenes(tmp_path, "train", 3, label=lambda changed: changed)
        make_scenes(tmp_path, "val", 2)
        wrong = (f"dataset.segment.root_dir={tmp_path}", "dataset.segment.img_size=100")
        assert run("check train", trained[0], *wrong) == 1
        text = capfd.readouterr().err
        assert "dataset.segment.img_size" in text
        assert "label_transform" in text

    def test_another_architecture_is_told_by_its_keys(self, trained, capfd):
        other = "model.decode_head.decoder_params.embed_dim=16"
        assert run("evaluate", trained[0], other, "evaluate.checkpoint=latest") == 1
        assert "set model.decode_head.decoder_params.embed_dim=8" in capfd.readouterr().err

    def test_a_classify_spec_is_told_apart(self, trained, capfd):
        assert run("evaluate", trained[0], "task=classify", "evaluate.checkpoint=latest") == 1
        capfd.readouterr()
