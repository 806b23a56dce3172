"""The train action with a network of a few weights: files, records, and continuing from every kind of checkpoint."""

import errno
import json
import os
import signal
import time

import pytest
import tiny_runtime
from tiny_task import LINE

from fiducial import cli
from fiducial.checkpoints.reading import read
from fiducial.run.devices import Devices
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


@pytest.mark.parametrize(
    ("accelerator", "supported", "said"), [("gpu", True, True), ("gpu", False, False), ("cpu", True, False)]
)
def test_bfloat16_is_recommended_where_a_gpu_has_it(train, monkeypatch, capfd, accelerator, supported, said):
    from fiducial.actions import train as action

    has_bf16 = action._has_bf16
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(action, "_has_bf16", lambda _: has_bf16(Devices(accelerator, 1)))
    assert train()[0] == 0
    assert (
        "faster in bfloat16, with nearly the same result: train.precision=bf16-mixed" in capfd.readouterr().err
    ) == said


class TestFiles:
    def test_folder(self, train, tmp_path):
        assert train()[0] == 0
        folder = tmp_path / "a" / "train"
        names = {path.name for path in folder.iterdir()}
        files = {f"model_epoch_00{epoch}_step_{3 * epoch + 3:05d}.pth" for epoch in range(4)}
        assert names == files | {
            *("experiment.yaml", "status.json", ".lock", "lightning_logs"),
            *("tiny_model_latest.pth", "tiny_model_best.pth"),
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


def ending(tmp_path, results="a"):
    last = records(tmp_path, results)[-1]
    return last["status"], last["message"]


def poison(file, value=float("nan")):
    """Write the checkpoint again with one weight that is no number."""
    import torch

    content = read(file, mmap=False).raw
    content["state_dict"]["model.out.weight"][0, 1] = value
    torch.save(content, file)


class TestDivergence:
    BREAK = ("train.lr=1e30",)

    @pytest.mark.parametrize("interval", [1, 4])
    def test_ends_as_failed_and_keeps_the_last_finite_file(self, train, tmp_path, capfd, interval):
        train("a", "train.num_epochs=1")
        good = tmp_path / "a/train/model_epoch_000_step_00003.pth"
        options = (*self.BREAK, "train.keep_checkpoints=1", f"train.checkpoint_interval={interval}")
        assert train("a", *options)[0] == 1
        status, message = ending(tmp_path)
        assert status == "FAILURE"
        assert "diverged: model." in message
        assert "lower learning rate" in message
        assert "Traceback" not in capfd.readouterr().err
        kept = list((tmp_path / "a/train").glob("*.pth"))
        assert good in kept
        assert (tmp_path / "a/train/tiny_model_latest.pth").resolve() == good
        for file in kept:
            assert all(value.isfinite().all() for value in read(file).state_dict.values()), file

    def test_in_the_last_epoch_it_is_not_trained(self, train, tmp_path):
        train("a", "train.num_epochs=1")
        assert train("a", "train.num_epochs=2", *self.BREAK)[0] == 1
        code, steps = train("a", "train.num_epochs=2")
        assert (code, len(steps)) == (0, 3)
        assert ending(tmp_path)[0] == "SUCCESS"

    @pytest.mark.parametrize("options", [(), ("train.checkpointer.replace_periodic=true",)])
    def test_best_files_are_finite(self, train, tmp_path, options):
        best = ("train.checkpointer.enable_topk=true", "train.checkpointer.monitor=train_loss", *options)
        train("a", "train.num_epochs=1", *best)
        assert train("a", *best, *self.BREAK)[0] == 1
        for file in (tmp_path / "a/train").glob("*.pth"):
            assert all(value.isfinite().all() for value in read(file).state_dict.values()), file

    def test_a_new_rate_counts_at_once_and_through_the_schedule(self, train, whole, tmp_path, capfd):
        train("a", "train.num_epochs=1")
        capfd.readouterr()
        code, steps = train("a", "train.lr=0.01")
        assert code == 0
        rates = [rate for *_, rate in whole[3:]]
        assert [rate for *_, rate in steps] == pytest.approx([rate / 10 for rate in rates], rel=1e-6)
        said = capfd.readouterr().err
        assert (
            "train.lr: 0.1 when model_epoch_000_step_00003.pth was written, now 0.01; continuing with the new" in said
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_files_that_are_not_finite_are_passed_over(self, train, whole, tmp_path, capfd, value):
        train("a", "train.num_epochs=3")
        for name in ("model_epoch_002_step_00009.pth", "model_epoch_001_step_00006.pth"):
            poison(tmp_path / "a/train" / name, value)
        code, steps = train("a")
        assert (code, steps) == (0, whole[3:])
        said = capfd.readouterr().err
        assert said.count("diverged: model.out.weight is not finite · continuing from model_epoch_000") == 2

    def test_none_is_left(self, train, tmp_path):
        train("a", "train.num_epochs=1")
        file = tmp_path / "a/train/model_epoch_000_step_00003.pth"
        poison(file)
        assert train("a")[0] == 1
        assert "model.out.weight is not finite" in ending(tmp_path)[1]
        assert train("b", f"train.resume_training_checkpoint_path={file}")[0] == 1


class TestWhereItContinues:
    @pytest.fixture
    def begun(self, train, tmp_path):
        assert train("a", "train.num_epochs=2")[0] == 0
        return tmp_path / "a/train"

    @pytest.mark.parametrize("lost", [("latest",), ("latest", "best")])
    def test_lost_links(self, train, whole, begun, lost):
        """As rsync without -l leaves a folder."""
        for name in lost:
            (begun / f"tiny_model_{name}.pth").unlink()
        times = {file: file.stat().st_mtime_ns for file in begun.glob("model_epoch*")}
        assert train("a") == (0, whole[6:])
        assert all(file.stat().st_mtime_ns == time for file, time in times.items())

    def test_links_as_copies(self, train, whole, begun):
        import shutil

        link = begun / "tiny_model_latest.pth"
        target = link.resolve()
        link.unlink()
        shutil.copyfile(target, link)
        assert train("a") == (0, whole[6:])

    @pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", None])
    def test_damaged_latest(self, train, whole, begun, capfd, damage):
        newest = begun / "model_epoch_001_step_00006.pth"
        newest.write_bytes(newest.read_bytes()[:5000] if damage is None else damage)
        assert train("a") == (0, whole[3:])
        assert "continuing from model_epoch_000_step_00003.pth instead" in capfd.readouterr().err

    def test_only_damaged_files(self, train, begun, tmp_path):
        for file in begun.glob("model_epoch*"):
            file.write_bytes(b"")
        code, steps = train("a")
        assert (code, steps) == (1, [])
        assert "empty file" in ending(tmp_path)[1]

    @pytest.mark.parametrize(
        ("value", "begins"),
        [("a", 6), ("a/train", 6), ("latest", 6), ("best", None), ("epoch:0", 3), ("a/train/tiny_model_latest.pth", 6)],
    )
    def test_named(self, train, whole, begun, value, begins):
        results = "a" if value in ("latest", "best") or value.startswith("epoch:") else "b"
        code, steps = train(results, f"train.resume_training_checkpoint_path={value}")
        assert code == 0
        assert steps == (whole[begins:] if begins else whole[len(whole) - len(steps) :])

    @pytest.mark.parametrize("value", ["none", "b", "epoch:7", "https://x/y.pth"])
    def test_named_and_not_there(self, train, begun, tmp_path, value):
        (tmp_path / "b").mkdir()
        assert train("a", f"train.resume_training_checkpoint_path={value}") == (1, [])
        assert "train.resume_training_checkpoint_path · " in ending(tmp_path)[1]

    @pytest.mark.parametrize(("before", "now"), [("adamw", "sgd"), ("sgd", "adamw"), ("adam", "adamw")])
    def test_another_optimizer(self, train, tmp_path, capfd, before, now):
        train("a", "train.num_epochs=1", f"train.optim={before}")
        assert train("a", f"train.optim={now}") == (1, [])
        assert (
            f"train.optim · {now}, but model_epoch_000_step_00003.pth was trained with {before}" in ending(tmp_path)[1]
        )
        assert "Traceback" not in capfd.readouterr().err

    def test_another_optimizer_in_a_file_that_does_not_say_so(self, train, tmp_path):
        import torch

        train("a", "train.num_epochs=1")
        content = read(tmp_path / "a/train/model_epoch_000_step_00003.pth", mmap=False).raw
        del content["hyper_parameters"]
        torch.save(content, tmp_path / "bare.pth")
        named = f"train.resume_training_checkpoint_path={tmp_path / 'bare.pth'}"
        assert train("b", named, "train.optim=sgd") == (1, [])
        assert "the state of another optimizer: SGD needs dampening, momentum" in ending(tmp_path, "b")[1]

    @pytest.mark.parametrize("content", [b"", b'{"half', b"\xff\xfe\x00", b"[1]\nnull\n"])
    def test_damaged_records(self, train, whole, begun, tmp_path, content):
        (begun / "status.json").write_bytes(content)
        (begun / "experiment.yaml").write_bytes(b"\xff: [")
        assert train("a") == (0, whole[6:])
        assert records(tmp_path)[0]["message"] == "Starting Tiny train."

    def test_a_file_to_keep_is_dropped_when_another_is_continued_from(self, train, begun):
        train("a", "train.num_epochs=3", "train.keep_checkpoints=1")
        assert (begun / "model_epoch_001_step_00006.pth").exists()  # what this run was continued from
        train("a", "train.num_epochs=4", "train.keep_checkpoints=1")
        assert not (begun / "model_epoch_001_step_00006.pth").exists()


class TestInterruptedSave:
    """An exception in the middle of a periodic save: it is made again, and its rank counts."""

    def test_again(self, train, whole, tmp_path, monkeypatch):
        from fiducial.run.resume import ResumingCheckpointIO

        save, calls = ResumingCheckpointIO.save_checkpoint, []

        def once(self, checkpoint, path, storage_options=None):
            calls.append(path.name)
            if len(calls) == 2:
                raise RuntimeError("the second one is cut off")
            save(self, checkpoint, path, storage_options)

        monkeypatch.setattr(ResumingCheckpointIO, "save_checkpoint", once)
        code, before = train()
        assert code == 1
        assert calls == ["model_epoch_000_step_00003.pth", *["model_epoch_001_step_00006.pth"] * 2]
        folder = tmp_path / "a/train"
        assert os.readlink(folder / "tiny_model_latest.pth") == calls[-1]
        state = read(folder / calls[-1]).raw["callbacks"]["PeriodicCheckpoint"]
        values = [r["kpi"]["val_loss"] for r in records(tmp_path) if r["message"].startswith("Eval")]
        assert state["best_value"] == pytest.approx(min(values))
        assert before + train()[1] == whole


class TestLock:
    def test_a_second_run_is_refused(self, train, tmp_path):
        from fiducial.run.lock import only_run

        (tmp_path / "a").mkdir()
        with only_run(tmp_path / "a", "train"):
            assert train("ignored", f"train.results_dir={tmp_path / 'a'}") == (1, [])
            assert not (tmp_path / "a/status.json").exists()
            assert train("ignored", f"train.results_dir={tmp_path / 'a'}", "train.typo=1")[0] == 1
            assert not (tmp_path / "a/status.json").exists()
        assert train("ignored", f"train.results_dir={tmp_path / 'a'}")[0] == 0


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


class TestMachine:
    """What the machine does to a run is one line, on the console and in status.json."""

    def test_a_killed_loader_process(self, train, tmp_path, capfd):
        import multiprocessing

        def kill():
            multiprocessing.active_children()[0].kill()
            time.sleep(1)

        tiny_runtime.STOP[1, 0] = kill
        assert train("a", "dataset.workers=1")[0] == 1
        assert "Traceback" not in (said := capfd.readouterr().err)
        assert "ERROR - a loader process · killed, most likely for memory" in said
        assert ending(tmp_path)[1].startswith("MachineError: a loader process · killed")
        assert train("a", "dataset.workers=1")[0] == 0

    @pytest.mark.parametrize(
        ("number", "said"), [(errno.ENOSPC, "no space left in"), (errno.EDQUOT, "your quota is used up in")]
    )
    @pytest.mark.parametrize("where", ["checkpoint", "status", "events"])
    def test_a_disk_that_takes_no_more(self, train, tmp_path, capfd, monkeypatch, number, said, where):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        from fiducial.run.status import StatusWriter

        train("a", "train.num_epochs=1")
        kind, name = {
            "checkpoint": (os, "fsync"),
            "status": (StatusWriter, "write"),
            "events": (EventFileWriter, "add_event"),
        }[where]
        real = getattr(kind, name)

        def full(*arguments, **options):
            if where != "status" or arguments[1].startswith("Training loop in"):
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        before = (tmp_path / "a/train/model_epoch_000_step_00003.pth").read_bytes()
        monkeypatch.setattr(kind, name, full)
        capfd.readouterr()
        assert train("a", "train.num_epochs=2")[0] == 1
        err = capfd.readouterr().err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if " - ERROR - " in line and "current state" not in line]
        assert said in line
        assert ending(tmp_path)[1].startswith("File system error: ")
        monkeypatch.undo()
        assert (tmp_path / "a/train/model_epoch_000_step_00003.pth").read_bytes() == before
        assert not list((tmp_path / "a/train").glob("*.tmp"))

    def test_where_links_fail(self, train, whole, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(errno.EPERM, "not permitted")

        monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
        monkeypatch.setattr(os, "link", refuse)
        train("a", "train.num_epochs=2")
        assert (tmp_path / "a/train/tiny_model_latest.pth").is_file()
        assert train("a") == (0, whole[6:])


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

    def test_a_long_validation_is_not_silent(self, train, capfd, monkeypatch):
        monkeypatch.setattr("fiducial.progress.LINE_EVERY_S", 0.0)
        train("a", "train.num_epochs=1")
        said = capfd.readouterr().err
        assert "validation batch 2/3 " in said
        assert "batches/s left 0:00:00" in said.partition("validation batch 3/3 ")[2].splitlines()[0]

    def test_progress(self, train, capfd):
        train("a", "train.num_epochs=2")
        assert "epoch 0/1 step 3/3 loss " in (text := capfd.readouterr().err)
        assert "batches/s left 0:00:00" in text


def test_status_is_json_lines(train, tmp_path):
    train("a", "train.num_epochs=1")
    for line in (tmp_path / "a" / "train" / "status.json").read_text().splitlines():
        assert json.loads(line)["verbosity"] == "INFO"
