"""The train action with a network of a few weights: files, records, and continuing from every kind of checkpoint."""

import json
import os
import signal

import pytest
import tiny_runtime
from tiny_task import LINE

from fiducial import cli
from fiducial.checkpoints.reading import read
from fiducial.run.resume import Place, place_of
from fiducial.run.status import read_status


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs ``train`` in-process; returns its exit code and the training steps it made."""
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "spec.yaml"
    spec.write_text("wandb: {enable: false}\ntrain: {num_epochs: 4}\n")

    def run(results="a", *overrides, action="train"):
        tiny_runtime.SEEN.clear()
        code = cli.main([LINE], [action, "-e", str(spec), f"results_dir={results}", *overrides], prog="tiny")
        return code, list(tiny_runtime.SEEN)

    yield run
    tiny_runtime.STOP.clear()


@pytest.fixture
def whole(train):
    """The steps of a run that nothing interrupts."""
    code, steps = train("whole")
    assert code == 0
    assert len(steps) == 12
    return steps


def records(tmp_path, results="a", action="train"):
    return read_status(tmp_path / results / action / "status.json")


class TestFiles:
    def test_folder(self, train, tmp_path):
        assert train()[0] == 0
        folder = tmp_path / "a" / "train"
        names = {path.name for path in folder.iterdir()}
        files = {f"model_epoch_00{epoch}_step_{3 * epoch + 3:05d}.pth" for epoch in range(4)}
        assert names == files | {
            *("experiment.yaml", "status.json", "lightning_logs", "tiny_model_latest.pth", "tiny_model_best.pth")
        }
        assert os.readlink(folder / "tiny_model_latest.pth") == "model_epoch_003_step_00012.pth"
        assert (folder / "lightning_logs" / "version_1").is_dir()

    def test_records(self, train, tmp_path):
        train("a", "train.num_epochs=2")
        told = [(record["status"], record["message"]) for record in records(tmp_path)]
        epoch = ["Eval metrics generated.", "Training loop in progress", "Train metrics generated."]
        assert told == [
            ("STARTED", "Starting Tiny train."),
            ("STARTED", "Starting Training Loop."),
            *(("RUNNING", message) for message in epoch * 2),
            ("RUNNING", "Training loop complete."),
            ("RUNNING", "Train finished successfully."),
            ("SUCCESS", "Train finished successfully."),
        ]
        loop = records(tmp_path)[3]
        assert list(loop)[:4] == ["epoch", "step", "max_epoch", "max_step"]
        assert (loop["epoch"], loop["step"], loop["max_epoch"], loop["max_step"]) == (0, 3, 1, 6)
        assert set(loop["kpi"]) == {"val_loss"}
        assert loop["time_per_epoch"].startswith("0:00:0")

    def test_key_is_not_written(self, train, tmp_path):
        train("a", "train.num_epochs=1", "encryption_key=tlt_secret")
        assert "encryption_key: '********'" in (tmp_path / "a" / "train" / "experiment.yaml").read_text()

    def test_topk_replaces_periodic(self, train, tmp_path):
        train("a", "train.checkpointer.enable_topk=true", "train.checkpointer.replace_periodic=true")
        files = sorted(path.name for path in (tmp_path / "a" / "train").glob("*.pth"))
        assert len(files) == 2
        assert files[0].startswith("model_best_00")
        assert os.readlink(tmp_path / "a" / "train" / "tiny_model_latest.pth") == files[0]

    def test_monitor_that_is_not_logged(self, train, tmp_path):
        code, _ = train("a", "train.checkpointer.enable_topk=true", "train.checkpointer.monitor=val_acc")
        assert code == 1
        assert "Available metrics: ['train_loss'" in records(tmp_path)[-1]["message"]

    def test_keep(self, train, tmp_path):
        train("a", "train.keep_checkpoints=1", "train.checkpointer.monitor=train_loss", "train.lr=0")
        files = sorted(path.name for path in (tmp_path / "a" / "train").glob("model_epoch*"))
        assert "model_epoch_003_step_00012.pth" in files
        assert len(files) <= 2  # the newest, and the one that the best link points to


EVERY = {
    "epoch end": ("epoch", "model_epoch_001_step_00006.pth", Place(2, 0)),
    "step at an epoch end": ("step", "model_epoch_001_step_00006.pth", Place(2, 0)),
    "step in an epoch": ("step", "model_epoch_001_step_00005.pth", Place(1, 2)),
    "first step of an epoch": ("step", "model_epoch_002_step_00007.pth", Place(2, 1)),
}


class TestResume:
    @pytest.mark.parametrize("kind", EVERY)
    def test_from_named_file(self, train, whole, tmp_path, kind):
        unit, name, place = EVERY[kind]
        assert train("first", f"train.checkpoint_interval_unit={unit}")[0] == 0
        file = tmp_path / "first" / "train" / name
        assert place_of(read(file).raw, file) == place
        code, steps = train("second", f"train.resume_training_checkpoint_path={file}")
        assert code == 0
        assert steps == whole[3 * place.epoch + place.batch :]
        assert f"Resuming training from checkpoint: {file}" in [r["message"] for r in records(tmp_path, "second")]

    def test_from_best(self, train, whole, tmp_path):
        train("first", "train.checkpointer.enable_topk=true", "train.checkpointer.save_top_k=9")
        file = tmp_path / "first" / "train" / "model_best_001.pth"
        steps = train("second", f"train.resume_training_checkpoint_path={file}", "train.checkpointer.enable_topk=true")
        assert steps == (0, whole[6:])

    @pytest.mark.parametrize("where", [(0, 2), (1, 0), (1, 1), (1, 2), ("val", 1)])
    def test_after_an_exception(self, train, whole, tmp_path, where):
        tiny_runtime.STOP[where] = RuntimeError("broken")
        code, before = train()
        assert code == 1
        assert records(tmp_path)[-1]["status"] == "FAILURE"
        assert records(tmp_path)[-1]["message"] == "RuntimeError: broken"
        code, after = train()
        assert code == 0
        assert before + after == whole
        validated = [r["epoch"] for r in records(tmp_path) if r["message"] == "Eval metrics generated."]
        assert validated == [0, 1, 2, 3]
        for epoch in range(4):
            (file,) = (tmp_path / "a/train").glob(f"model_epoch_00{epoch}_step_{3 * epoch + 3:05d}.pth")
            assert place_of(read(file).raw, file) == Place(epoch + 1)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_after_a_signal(self, train, whole, tmp_path, number, capfd, interruptible):
        tiny_runtime.STOP[1, 1] = lambda: os.kill(os.getpid(), number)
        code, before = train()
        assert code == 130
        assert capfd.readouterr().err.rstrip().endswith("Execution status: FAIL")
        assert records(tmp_path)[-1]["message"] == "User/System interruption: Train was interrupted"
        assert len(before) == 5  # the batch is finished
        code, after = train()
        assert before + after == whole
        assert "epoch 1 was resumed: its train metrics are those of its last 1 of 3 batches" in capfd.readouterr().err
        assert {number: signal.getsignal(number) for number in interruptible} == interruptible

    def test_curves_continue(self, train, tmp_path):
        tiny_runtime.STOP[1, 1] = RuntimeError("broken")
        train()
        train()
        kpis = {r["epoch"]: r["kpi"]["val_loss"] for r in records(tmp_path) if r["message"].startswith("Eval")}
        train("whole")
        expected = {r["epoch"]: r["kpi"]["val_loss"] for r in records(tmp_path, "whole") if r["message"][:4] == "Eval"}
        assert kpis == expected

    def test_finished(self, train, tmp_path, capfd):
        train("a", "train.num_epochs=2")
        assert train("a", "train.num_epochs=2") == (0, [])
        assert "Already trained to epoch 2" in capfd.readouterr().err
        code, _ = train("a", "train.num_epochs=1")
        assert code == 1
        assert "already trained to epoch 2" in records(tmp_path)[-1]["message"]
        code, steps = train("a", "train.num_epochs=3")
        assert (code, len(steps)) == (0, 3)

    def test_state_of_best_survives(self, train, tmp_path):
        options = ("train.checkpointer.enable_topk=true", "train.checkpointer.save_top_k=2")
        train("whole", *options)
        train("a", *options, "train.num_epochs=2")
        train("a", *options)
        best = [sorted(p.name for p in (tmp_path / r / "train").glob("model_best*")) for r in ("whole", "a")]
        links = [os.readlink(tmp_path / r / "train" / "tiny_model_best.pth") for r in ("whole", "a")]
        assert best[0] == best[1]
        assert links[0] == links[1]

    def test_from_a_file_of_another_program(self, train, whole, tmp_path):
        """As TAO writes them: callbacks and data of its own, none of ours."""
        import torch

        train("first")
        file = tmp_path / "first" / "train" / "model_epoch_001_step_00006.pth"
        content = read(file).raw
        content["callbacks"] = {"ModelCheckpoint{'monitor': None}": {"best_model_score": None}}
        content["PairData"] = {"x": 1}
        foreign = tmp_path / "foreign.pth"
        torch.save(content, foreign)
        assert train("second", f"train.resume_training_checkpoint_path={foreign}") == (0, whole[6:])

    def test_weights_alone(self, train, tmp_path):
        import torch

        torch.save({"state_dict": tiny_runtime.Network().state_dict()}, tmp_path / "weights.pth")
        code, _ = train("a", f"train.resume_training_checkpoint_path={tmp_path / 'weights.pth'}")
        assert code == 1
        assert "not where its training stood" in records(tmp_path)[-1]["message"]

    def test_changed_architecture(self, train, tmp_path, monkeypatch):
        train("a", "train.num_epochs=1")
        monkeypatch.setattr(tiny_runtime, "Network", lambda: tiny_runtime.nn.Linear(3, 2))
        code, _ = train("a")
        assert code == 1
        assert "the architecture has changed" in records(tmp_path)[-1]["message"]

    def test_changed_optimizer(self, train, tmp_path, monkeypatch):
        train("a", "train.num_epochs=1")
        monkeypatch.setattr(
            tiny_runtime.Module,
            "configure_optimizers",
            lambda self: tiny_runtime.torch.optim.AdamW([self.model.out.bias]),
        )
        code, _ = train("a")
        assert code == 1
        assert "the architecture has changed" in records(tmp_path)[-1]["message"]

    def test_workers(self, train, whole):
        tiny_runtime.STOP[1, 1] = RuntimeError("broken")
        before = train("a", "dataset.workers=1")[1]
        assert before + train("a", "dataset.workers=1")[1] == whole


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "record", "advice"),
        [
            (MemoryError("no room"), "MemoryError: no room", "out of memory"),
            (
                RuntimeError("CUDA out of memory. Tried"),
                "RuntimeError: CUDA out of memory. Tried",
                "lower the batch size",
            ),
            (NotImplementedError("x"), "Feature not implemented: x", ""),
            (ValueError("x"), "Parameter validation error: x", ""),
            (OSError("x"), "File system error: x", ""),
        ],
    )
    def test_record(self, train, tmp_path, capfd, error, record, advice):
        tiny_runtime.STOP[0, 1] = error
        assert train()[0] == 1
        assert records(tmp_path)[-1]["message"] == record
        err = capfd.readouterr().err
        assert advice in err
        assert err.rstrip().splitlines()[-1].endswith("WARNING - Execution status: FAIL")

    def test_spec_error(self, train, tmp_path):
        assert train("a", "train.num_epoch=3")[0] == 1
        last = records(tmp_path)[-1]
        assert last["status"] == "FAILURE"
        assert last["message"].startswith("Configuration error: train.num_epoch · unknown key")


class TestPictures:
    @pytest.mark.parametrize(("every", "histograms", "images"), [(2, [3, 9], [0, 6]), (5, [3], [0]), (0, [], [])])
    def test_tensorboard(self, train, tmp_path, every, histograms, images):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        options = (f"train.pictures={every}",)
        assert train("a", "train.num_epochs=3", *options)[0] == 0
        events = EventAccumulator(str(tmp_path / "a/train/lightning_logs/version_1"), {"histograms": 0}).Reload()
        tags = events.Tags()
        weights = {"histogram/model.out.weight"} & set(tags["histograms"])
        assert [event.step for tag in weights for event in events.Histograms(tag)] == histograms
        assert tags["images"] == ["image/compare_sample"][: len(images)]
        assert [event.step for tag in tags["images"] for event in events.Images(tag)] == images
        assert {"train_loss_epoch", "train_loss_step", "val_loss"} <= set(tags["scalars"])


class TestConsole:
    def test_nothing_of_lightning(self, train, capfd):
        assert train("a", "train.num_epochs=2")[0] == 0
        lines = capfd.readouterr()
        assert lines.out == ""
        shown = [line for line in lines.err.splitlines() if " - [" in line]
        rest = [line for line in lines.err.splitlines() if " - [" not in line]
        assert shown[-1].endswith("INFO - Execution status: PASS")
        assert not [line for line in rest if "Lightning" in line or "weights_only" in line or "GPU" in line]
        assert "Warning" not in lines.err

    def test_progress(self, train, capfd):
        train("a", "train.num_epochs=2")
        assert "epoch 0/1 step 3/3 loss " in (text := capfd.readouterr().err)
        assert "batches/s left 0:00:00" in text


def test_status_is_json_lines(train, tmp_path):
    train("a", "train.num_epochs=1")
    for line in (tmp_path / "a" / "train" / "status.json").read_text().splitlines():
        assert json.loads(line)["verbosity"] == "INFO"
