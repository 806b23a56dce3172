"""Every action of the classify task through the command line, on pairs that the test makes."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from changenet.__main__ import TASKS
from changenet.classify import rows
from fiducial import cli
from fiducial.run.status import read_status

torch.set_num_threads(1)
PREFIX = "changenet_model_classify"


def run(action: str, spec: Path, *overrides: str) -> int:
    return cli.main(TASKS, [*action.split(), "-e", str(spec), *map(str, overrides)], prog="changenet")


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores_of(path: Path) -> np.ndarray:
    return np.array([float(row["siamese_score"]) for row in rows_of(path)])


@pytest.fixture(scope="module")
def trained(pair_data, make_spec_tree, tmp_path_factory):
    """(spec file, results folder) of a learnable network trained for two epochs."""
    return _trained(pair_data, tmp_path_factory.mktemp("learnable"), make_spec_tree)


@pytest.fixture(scope="module")
def trained_euclidean(pair_data, make_spec_tree, tmp_path_factory):
    changes = {
        "model__classify": {"difference_module": "euclidean", "eval_margin": 1.0},
        "train__classify": {"loss": "contrastive"},
        "train__num_epochs": 1,
    }
    return _trained(pair_data, tmp_path_factory.mktemp("euclidean"), make_spec_tree, **changes)


def _trained(data, folder, make, **changes):
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(make(data, folder / "results", **changes)))
    assert run("train", spec) == 0
    return spec, folder / "results"


class TestTrain:
    def test_files(self, trained):
        folder = trained[1] / "train"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            ".lock",
            "experiment.yaml",
            "status.json",
            "lightning_logs",
            "model_epoch_000_step_00006.pth",
            "model_epoch_001_step_00012.pth",
            f"{PREFIX}_latest.pth",
            f"{PREFIX}_best.pth",
        }
        assert (folder / f"{PREFIX}_latest.pth").resolve().name == "model_epoch_001_step_00012.pth"

    def test_status_records_are_those_of_tao(self, trained):
        records = read_status(trained[1] / "train" / "status.json")
        epoch = ["Eval metrics generated.", "Training loop in progress", "Train metrics generated."]
        assert [record["message"] for record in records] == [
            "Starting Visual ChangeNet train.",
            "Starting Training Loop.",
            *epoch,
            *epoch,
            "Training loop complete.",
            "Train finished successfully.",
            "Train finished successfully.",
        ]
        assert [record["status"] for record in records[-2:]] == ["RUNNING", "SUCCESS"]
        loop = records[3]
        assert (loop["epoch"], loop["step"], loop["max_epoch"], loop["max_step"]) == (0, 6, 1, 12)
        assert {"val_loss", "val_acc", "val_fpr", "val_far", "val_auroc"} <= records[2]["kpi"].keys()
        assert records[4]["kpi"].keys() == {"train_loss", "train_acc", "train_fpr"}

    def test_checkpoint_is_plain_and_has_the_keys_of_tao(self, trained):
        loaded = torch.load(trained[1] / "train" / f"{PREFIX}_latest.pth", weights_only=True)
        assert loaded["tao_model"] == "visual_changenet_classify"
        card = loaded["fiducial"]
        assert (card["mean"], card["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert (card["network"], card["task"], card["threshold"]) == ("visual_changenet", "classify", 0.5)
        assert loaded["state_dict"]["criterion.weight"].tolist() == [1.0, 2.0]
        assert all(key.startswith(("model.", "criterion.")) for key in loaded["state_dict"])
        assert (loaded["epoch"], loaded["global_step"]) == (1, 12)

    @pytest.mark.slow
    def test_euclidean_has_no_class_weights(self, trained_euclidean):
        loaded = torch.load(trained_euclidean[1] / "train" / f"{PREFIX}_latest.pth", weights_only=True)
        assert "criterion.weight" not in loaded["state_dict"]

    @pytest.mark.slow
    def test_same_seed_same_losses(self, trained, tmp_path):
        assert run("train", trained[0], f"results_dir={tmp_path}", "train.num_epochs=1") == 0
        again = step_losses(tmp_path / "train")
        assert again == {step: loss for step, loss in step_losses(trained[1] / "train").items() if step in again}
        assert len(again) == 6

    @pytest.mark.slow
    def test_pictures_and_histograms(self, trained, tmp_path):
        overrides = ("train.tensorboard.enabled=true", "train.num_epochs=1", f"results_dir={tmp_path}")
        assert run("train", trained[0], *overrides) == 0
        events = event_files(tmp_path / "train")
        assert {"image/compare_sample", "image/golden_sample"} <= set(events.Tags()["images"])
        name = "histogram/model.decoder.classifier.6.weight"
        assert len(events.Histograms(name)) == len(events.Images("image/compare_sample")) == 1


class TestResume:
    @pytest.mark.slow
    def test_raising_num_epochs_trains_on(self, trained, tmp_path, capfd):
        shutil.copytree(trained[1] / "train", tmp_path / "train", symlinks=True)
        assert run("train", trained[0], f"results_dir={tmp_path}", "train.num_epochs=3") == 0
        records = read_status(tmp_path / "train" / "status.json")
        assert any(record["message"].startswith("Resuming training from checkpoint: ") for record in records)
        assert [r["epoch"] for r in records if r["message"] == "Training loop in progress"] == [0, 1, 2]
        assert (tmp_path / "train" / "model_epoch_002_step_00018.pth").is_file()

    def test_finished_run_says_so(self, trained, capfd):
        before = sorted(path.name for path in (trained[1] / "train").iterdir())
        assert run("train", trained[0]) == 0
        assert "Already trained to epoch 2" in capfd.readouterr().err
        assert sorted(path.name for path in (trained[1] / "train").iterdir()) == before

    def test_fewer_epochs_than_trained(self, trained, capfd):
        assert run("train", trained[0], "train.num_epochs=1") == 1
        assert "already trained to epoch 2" in capfd.readouterr().err

    @pytest.mark.slow
    def test_changed_architecture_is_named(self, trained, tmp_path, capfd):
        shutil.copytree(trained[1] / "train", tmp_path / "train", symlinks=True)
        overrides = (f"results_dir={tmp_path}", "train.num_epochs=3", "model.classify.embed_dec=9")
        assert run("train", trained[0], *overrides) == 1
        said = capfd.readouterr().err
        assert said.count("model.classify.embed_dec · 9 in the spec, 8 in the checkpoint") == 1  # of two there
        assert f"or another results_dir: {tmp_path / 'train'} holds a training, which is continued" in said

    @pytest.mark.slow
    def test_pretrained_model_of_another_size(self, trained, tmp_path, capfd):
        checkpoint = trained[1] / "train" / f"{PREFIX}_latest.pth"
        size = ("dataset.classify.image_width=48", "dataset.classify.image_height=48")
        start = (f"train.pretrained_model_path={checkpoint}", "train.num_epochs=1", f"results_dir={tmp_path}")
        assert run("train", trained[0], *size, *start) == 0
        said = capfd.readouterr().err
        assert "1 left as initialised, another size (model.decoder.classifier.0.weight)" in said


class TestEvaluate:
    def test_files_and_numbers(self, trained):
        spec, results = trained
        assert run("evaluate", spec, "evaluate.checkpoint=latest") == 0
        folder = results / "evaluate"
        rows = rows_of(folder / "evaluate.csv")
        assert list(rows[0]) == [
            *("input_path", "golden_path", "label", "object_name", "note"),
            *("siamese_score", "decision"),
        ]
        metrics = json.loads((folder / "metrics.json").read_text())
        wrong = sum((row["label"] != "PASS") != (row["decision"] == "FAIL") for row in rows)
        assert metrics["kpis"]["test_acc"] == pytest.approx(100 * (1 - wrong / len(rows)))
        assert metrics["total"]["num"] == 11
        assert metrics["total"]["num_defects"] == 3
        assert "<html" in (folder / "report.html").read_text()
        records = read_status(folder / "status.json")
        messages = [record["message"] for record in records]
        assert messages[0] == "Starting Visual ChangeNet evaluate."
        assert messages[-3:] == ["Test metrics generated.", *["Evaluate finished successfully."] * 2]
        assert {"test_acc", "test_fpr", "test_fnr", "defect_acc"} <= records[-1]["kpi"].keys()

    def test_same_numbers_as_the_last_validation(self, trained):
        spec, results = trained
        assert run("evaluate", spec, "evaluate.checkpoint=latest") == 0
        metrics = json.loads((results / "evaluate" / "metrics.json").read_text())
        records = read_status(results / "train" / "status.json")
        val = [record["kpi"] for record in records if record["message"] == "Eval metrics generated."][-1]
        for name in ("acc", "fpr", "far", "auroc", "f1"):
            assert metrics["kpis"][f"test_{name}"] == pytest.approx(val[f"val_{name}"], abs=1e-6)

    @pytest.mark.parametrize("checkpoint", ["best", "latest", "folder", "epoch:0"])
    def test_names_of_checkpoints(self, trained, checkpoint):
        value = trained[1] if checkpoint == "folder" else checkpoint
        assert run("evaluate", trained[0], f"evaluate.checkpoint={value}") == 0

    @pytest.mark.slow
    def test_cached_goldens_change_nothing(self, trained, tmp_path):
        for name, size in (("cached", 64), ("plain", 0)):
            overrides = (f"evaluate.golden_cache_mb={size}", f"evaluate.results_dir={tmp_path / name}")
            assert run("evaluate", trained[0], "evaluate.checkpoint=latest", *overrides) == 0
        cached, plain = (scores_of(tmp_path / name / "evaluate.csv") for name in ("cached", "plain"))
        assert cached == pytest.approx(plain, abs=1e-6)

    def test_kept_pictures_change_nothing(self, trained, tmp_path, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
        for name, cache in (("off", "off"), ("disk", "disk"), ("again", "disk")):
            overrides = (
                f"dataset.classify.cache={cache}",
                "dataset.classify.cache_mb=16",
                "dataset.classify.workers=1",
            )
            where = f"evaluate.results_dir={tmp_path / name}"
            assert run("evaluate", trained[0], "evaluate.checkpoint=latest", *overrides, where) == 0
        plain, *kept = ((tmp_path / name / "evaluate.csv").read_text() for name in ("off", "disk", "again"))
        assert kept == [plain, plain]
        assert (tmp_path / "cache" / "pictures.bin").stat().st_size > 16 * 2**20

    def test_the_csv_is_read_once(self, trained, tmp_path, monkeypatch):
        paths, read = [], rows.read_csv
        monkeypatch.setattr(rows, "read_csv", lambda path, **options: paths.append(path) or read(path, **options))
        assert run("evaluate", trained[0], "evaluate.checkpoint=latest", f"evaluate.results_dir={tmp_path}") == 0
        assert len(paths) == 1

    @pytest.mark.slow
    def test_foreign_checkpoints(self, trained, tmp_path):
        """As TAO's Lightning writes them, and with classes of packages that are not here."""
        spec, results = trained
        assert run("evaluate", spec, "evaluate.checkpoint=latest", f"evaluate.results_dir={tmp_path / 'own'}") == 0
        loaded = torch.load(results / "train" / f"{PREFIX}_latest.pth", weights_only=True)
        kept = {key: loaded[key] for key in ("state_dict", "epoch", "global_step", "tao_model")}
        lightning = {**kept, "pytorch-lightning_version": "2.5.0.post0"}
        torch.save(lightning, tmp_path / "tao.pth")
        torch.save({**lightning, "hyper_parameters": OmegaConf.create({"task": "classify"})}, tmp_path / "foreign.pth")
        torch.save({k.removeprefix("model."): v for k, v in loaded["state_dict"].items()}, tmp_path / "bare.pth")
        for name in ("tao", "foreign", "bare"):
            overrides = (f"evaluate.checkpoint={tmp_path / name}.pth", f"evaluate.results_dir={tmp_path / name}")
            assert run("evaluate", spec, *overrides) == 0
            assert (tmp_path / name / "evaluate.csv").read_bytes() == (tmp_path / "own/evaluate.csv").read_bytes()

    @pytest.mark.slow
    def test_euclidean(self, trained_euclidean):
        assert run("evaluate", trained_euclidean[0], "evaluate.checkpoint=best") == 0
        rows = rows_of(trained_euclidean[1] / "evaluate" / "evaluate.csv")
        assert all((float(row["siamese_score"]) > 1.0) == (row["decision"] == "FAIL") for row in rows)


class TestInference:
    def test_rows_keep_their_order_and_columns(self, trained, pair_data):
        assert run("inference", trained[0], "inference.checkpoint=latest") == 0
        written, given = rows_of(trained[1] / "inference" / "inference.csv"), rows_of(pair_data / "val.csv")
        assert [{key: row[key] for key in given[0]} for row in written] == given
        assert {row["object_name"] for row in written} == {"0000", "0001", "0002", "0003"}

    def test_without_labels(self, trained, pair_data, make_csv, tmp_path):
        rows = [{k: v for k, v in row.items() if k != "label"} for row in rows_of(pair_data / "val.csv")]
        path = make_csv(tmp_path / "unlabelled.csv", rows)
        overrides = (f"dataset.classify.infer_dataset.csv_path={path}", f"inference.results_dir={tmp_path / 'out'}")
        assert run("inference", trained[0], "inference.checkpoint=latest", *overrides) == 0
        assert list(rows_of(tmp_path / "out" / "inference.csv")[0])[-2:] == ["siamese_score", "decision"]

    def test_fewer_rows_than_a_batch(self, trained, pair_data, make_csv, tmp_path):
        path = make_csv(tmp_path / "one.csv", rows_of(pair_data / "val.csv")[:1])
        overrides = (f"dataset.classify.infer_dataset.csv_path={path}", f"inference.results_dir={tmp_path / 'out'}")
        assert run("inference", trained[0], "inference.checkpoint=latest", *overrides) == 0
        assert len(rows_of(tmp_path / "out" / "inference.csv")) == 1


@pytest.fixture(scope="module")
def exported(trained):
    spec, results = trained
    path = results / "model.onnx"
    size = ("export.input_height=64", "export.input_width=32")
    overrides = ("export.checkpoint=latest", f"export.onnx_file={path}", "export.serialize_nvdsinfer=true")
    assert run("export", spec, *size, *overrides) == 0
    return path


@pytest.mark.slow
class TestExport:
    def test_the_exported_model_gives_the_same_files(self, trained, exported, tmp_path):
        for name, model in (("torch", "latest"), ("onnx", exported)):
            overrides = (f"evaluate.checkpoint={model}", f"evaluate.results_dir={tmp_path / name}")
            assert run("evaluate", trained[0], *overrides) == 0
        first, second = (rows_of(tmp_path / name / "evaluate.csv") for name in ("torch", "onnx"))
        drop = lambda row: {key: row[key] for key in row if key != "siamese_score"}  # noqa: E731
        assert [drop(row) for row in first] == [drop(row) for row in second]
        one, other = (scores_of(tmp_path / name / "evaluate.csv") for name in ("torch", "onnx"))
        assert one == pytest.approx(other, abs=1e-4)
        one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("torch", "onnx"))
        assert one["kpis"] == pytest.approx(other["kpis"], abs=1e-4, nan_ok=True)

    def test_in_openvino_s_format_with_pixels_as_inputs(self, trained, tmp_path):
        target, size = tmp_path / "m.onnx", ("export.input_height=64", "export.input_width=32")
        more = ("export.checkpoint=latest", "export.preprocessing=true", "export.openvino=true")
        assert run("export", trained[0], *size, *more, f"export.onnx_file={target}") == 0
        for name, model in (("torch", "latest"), ("openvino", target.with_suffix(".xml"))):
            overrides = (f"evaluate.checkpoint={model}", f"evaluate.results_dir={tmp_path / name}")
            assert run("evaluate", trained[0], *overrides) == 0
        one, other = (scores_of(tmp_path / name / "evaluate.csv") for name in ("torch", "openvino"))
        assert one == pytest.approx(other, abs=1e-4)
        written = json.loads((tmp_path / "openvino" / "metrics.json").read_text())
        assert written["run"]["runtime"] == "openvino"

    def test_graph_and_metadata(self, exported):
        import onnx

        model = onnx.load(str(exported))
        shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
        assert shapes == {"input_1": ["batch", 3, 64, 32], "input_2": ["batch", 3, 64, 32]}
        assert [output.name for output in model.graph.output] == ["output"]
        said = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "fiducial"))
        assert said["mean"] == [0.485, 0.456, 0.406]
        assert said["input_map"] == {"SolderLight": 0, "WhiteLight": 1}

    def test_deepstream_files(self, exported):
        folder = exported.parent
        assert (folder / "labels.txt").read_text() == "0;1\n"
        assert "onnx-file: model.onnx" in (folder / "nvdsinfer_config.yaml").read_text()
        assert "tensor-name: input_2" in (folder / "nvdspreprocess_config_1.yaml").read_text()

    def test_existing_file_is_kept(self, trained, exported, capfd):
        before = exported.read_bytes()
        overrides = ("export.checkpoint=latest", f"export.onnx_file={exported}")
        assert run("export", trained[0], *overrides) == 1
        assert "export.overwrite=true" in capfd.readouterr().err
        assert exported.read_bytes() == before

    def test_other_lights_than_the_exported_are_refused(self, trained, exported, capfd):
        overrides = (f"evaluate.checkpoint={exported}", "dataset.classify.image_height=64")
        assert run("evaluate", trained[0], *overrides) == 1
        assert "input input_1 is [3, 64, 32], the spec composes [3, 128, 32]" in capfd.readouterr().err

    def test_another_order_of_the_lights_is_refused(self, trained, exported, capfd):
        overrides = (f"evaluate.checkpoint={exported}", "dataset.classify.input_map={WhiteLight: 1, SolderLight: 0}")
        assert run("evaluate", trained[0], *overrides) == 1
        assert "input_map · {'WhiteLight': 1, 'SolderLight': 0} in the spec" in capfd.readouterr().err


class TestBadInput:
    def test_results_folder_that_cannot_be_made(self, make_spec_file, tmp_path, capfd):
        (tmp_path / "file").write_text("in the way")
        assert run("train", make_spec_file(), f"results_dir={tmp_path / 'file' / 'results'}") == 1
        said = capfd.readouterr().err
        assert "results_dir · cannot write to" in said
        assert said.rstrip().endswith("Execution status: FAIL")

    def test_missing_image_is_named_before_training(self, make_spec_file, pair_data, tmp_path, capfd):
        shutil.copytree(pair_data, tmp_path / "data")
        (tmp_path / "data/train/b4/0000_WhiteLight.png").unlink()
        files = (f"{{csv_path: {tmp_path}/data/train.csv, images_dir: {tmp_path}/data}}").replace(" ", "")
        assert run("train", make_spec_file(), f"dataset.classify.train_dataset={files}") == 1
        said = capfd.readouterr().err
        assert f"{tmp_path}/data/train.csv:6 · Image file wasn't found at" in said
        assert not list((tmp_path / "results/train").glob("*.pth"))
        assert read_status(tmp_path / "results/train/status.json")[-1]["status"] == "FAILURE"

    @pytest.mark.parametrize("workers", [0, 1])
    def test_damaged_image_while_training(self, make_spec_file, pair_data, tmp_path, capfd, workers):
        """A glance before training does not decode images; the message is the same from a loading process."""
        shutil.copytree(pair_data, tmp_path / "data")
        for path in (tmp_path / "data/train").rglob("*_WhiteLight.png"):
            content = path.read_bytes()
            path.write_bytes(content[:60] + bytes(len(content) - 80) + content[-20:])
        files = {"csv_path": f"{tmp_path}/data/train.csv", "images_dir": f"{tmp_path}/data"}
        spec = make_spec_file(dataset__classify__train_dataset=files, dataset__classify__workers=workers)
        assert run("train", spec) == 1
        said = capfd.readouterr().err
        assert re.search(r"ERROR - \S+train\.csv:\d+: \S+_WhiteLight\.png · an image that cannot be read", said)
        assert "Traceback" not in said

    def test_wrong_architecture_at_evaluation(self, trained, capfd):
        overrides = ("evaluate.checkpoint=latest", "model.classify.difference_module=euclidean")
        assert run("evaluate", trained[0], *overrides) == 1
        assert "set model.classify.difference_module=learnable" in capfd.readouterr().err

    def test_no_checkpoint(self, trained, capfd):
        assert run("evaluate", trained[0], f"evaluate.checkpoint={trained[1]}/train/model_epoch_007.pth") == 1
        said = capfd.readouterr().err
        assert "evaluate.checkpoint · no file" in said
        assert "model_epoch_001_step_00012.pth" in said


class TestCheck:
    def test_good_data(self, make_spec_file, capfd):
        assert run("check train", make_spec_file()) == 0
        out = capfd.readouterr()
        assert "rows: 24" in out.out
        assert "MISSING: 8" in out.out
        assert "0 error(s)" in out.err

    def test_spec_only_lists_what_is_to_be_filled_in(self, make_spec_file, tmp_path, capfd):
        spec = make_spec_file(evaluate__checkpoint="???", train__num_epochs=0)
        assert run("check evaluate --spec-only", spec) == 1  # num_epochs
        assert "train.num_epochs" in capfd.readouterr().err
        spec = make_spec_file(evaluate__checkpoint="???")
        assert run("check evaluate --spec-only", spec) == 0
        said = capfd.readouterr()
        assert "evaluate.checkpoint: ???" in said.err
        assert "difference_module: learnable" in said.out
        assert not (tmp_path / "results").exists()

    def test_errors_of_spec_and_data_together(self, make_spec_file, pair_data, tmp_path, capfd):
        shutil.copytree(pair_data, tmp_path / "data")
        (tmp_path / "data/train/b4/0000_WhiteLight.png").write_bytes(b"no image")
        spec = make_spec_file(
            train__classify={"loss": "contrastive"},
            dataset__classify__train_dataset={
                "csv_path": f"{tmp_path}/data/train.csv",
                "images_dir": f"{tmp_path}/data",
            },
        )
        assert run("check train", spec) == 1
        said = capfd.readouterr().err
        assert "train.classify.loss" in said
        assert re.search(r"train\.csv:6 · .*0000_WhiteLight\.png: not an image", said)


def event_files(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "lightning_logs/version_1"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def step_losses(folder: Path) -> dict[int, float]:
    """The last value written for every step: a resumed run writes the steps after its checkpoint again."""
    return {event.step: event.value for event in event_files(folder).Scalars("train_loss_step")}
