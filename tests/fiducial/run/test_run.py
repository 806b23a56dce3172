"""The small parts of a run: status records, names, seeds, console, loggers, folders."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_task import Spec

from fiducial.errors import CheckpointError, DatasetError, MachineError, SpecError, StorageError, TrainingError
from fiducial.run import callbacks, loggers
from fiducial.run.console import FAIL, LOGGER, PASS, last_line, set_up_console
from fiducial.run.keep import best_name, checkpoint_name, is_better
from fiducial.run.resume import Place, place_of
from fiducial.run.run import failure_message, results_folder
from fiducial.run.seeds import derive_seed
from fiducial.run.status import StatusWriter, read_status


class TestStatus:
    def test_record(self, tmp_path):
        StatusWriter(tmp_path).write("hello", epoch=3, kpi={"a": np.float32(0.5), "b": torch.tensor(float("nan"))})
        text = (tmp_path / "status.json").read_text()
        record = json.loads(text)
        assert text.endswith("}\n")
        assert list(record) == ["epoch", "date", "time", "status", "verbosity", "message", "kpi"]
        assert record["kpi"] == {"a": 0.5, "b": None}
        assert not any(part.startswith("0") and part != "0" for part in record["time"].split(":"))

    def test_kpis_stick_and_lines_append(self, tmp_path):
        StatusWriter(tmp_path).write("before")
        status = StatusWriter(tmp_path)
        status.write("a", kpi={"x": 1})
        status.write("b", "FAILURE")
        records = read_status(tmp_path / "status.json")
        assert [record.get("kpi") for record in records] == [None, {"x": 1}, {"x": 1}]
        assert records[-1]["verbosity"] == "ERROR"

    def test_cut_line(self, tmp_path):
        (tmp_path / "status.json").write_text('{"a": 1}\n{"b"')
        assert read_status(tmp_path / "status.json") == [{"a": 1}]

    @pytest.mark.parametrize("before", [b"", b'{"a": 1}\n', b'{"a": 1}\n{"cut', b"\xff\n[1]\nnull\n", b"\0\0\0"])
    def test_what_was_damaged_hides_no_record(self, tmp_path, before):
        (tmp_path / "status.json").write_bytes(before)
        StatusWriter(tmp_path).write("one")
        StatusWriter(tmp_path).write("two")
        records = [record for record in read_status(tmp_path / "status.json") if "a" not in record]
        assert [record["message"] for record in records] == ["one", "two"]

    def test_none(self, tmp_path):
        assert read_status(tmp_path / "status.json") == []

    def test_other_ranks_write_nothing(self):
        StatusWriter(None).write("x", kpi={"a": 1})


class TestNames:
    def test_periodic(self):
        assert checkpoint_name(4, 120) == "model_epoch_004_step_00120.pth"

    @pytest.mark.parametrize(
        ("template", "insert", "name"),
        [
            ("model_best_{epoch:03d}", False, "model_best_004.pth"),
            ("model_best_{epoch:03d}", True, "model_best_epoch_004.pth"),
            ("{step}-{val/loss:.2f}", False, "120-0.25.pth"),
            ("m_{val/loss:.2f}", True, "m_val_loss_0.25.pth"),
        ],
    )
    def test_best(self, template, insert, name):
        values = {"epoch": 4, "step": 120, "val/loss": 0.25}
        assert best_name(template, values, insert_names=insert) == name

    def test_is_better(self):
        assert is_better(1.0, None, "min")
        assert is_better(1.0, 2.0, "min")
        assert is_better(2.0, 1.0, "max")
        assert not is_better(1.0, 1.0, "max")
        assert not is_better(float("nan"), None, "min")
        assert not is_better(float("inf"), 1.0, "max")
        assert not is_better(float("-inf"), 1.0, "min")


class TestFailureMessage:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (KeyboardInterrupt(), "User/System interruption: Train was interrupted"),
            (SystemError("x"), "User/System interruption: Train was interrupted"),
            (SpecError("a", "b", "c"), "Configuration error: a · b · c"),
            (DatasetError("a", "b", "c"), "Parameter validation error: a · b · c"),
            (CheckpointError("a", "b", "c"), "Parameter validation error: a · b · c"),
            (NotImplementedError("x"), "Feature not implemented: x"),
            (TypeError("x"), "Parameter validation error: x"),
            (PermissionError("x"), "File system error: x"),
            (StorageError("a", "b", "c"), "File system error: a · b · c"),
            (MachineError("a", "b", "c"), "MachineError: a · b · c"),
            (TrainingError("a", "b", "c"), "TrainingError: a · b · c"),
            (AssertionError(), "AssertionError: AssertionError"),
        ],
    )
    def test_prefix(self, error, text):
        assert failure_message("Train", error) == text


class TestConsole:
    @pytest.mark.parametrize(("level", "shown"), [("WARN", ["w", "e"]), ("FATAL", []), ("odd", ["i", "w", "e"])])
    def test_level(self, monkeypatch, capfd, level, shown):
        monkeypatch.setenv("TAO_LOGGING_LEVEL", level)
        set_up_console()
        LOGGER.info("i")
        LOGGER.warning("w")
        LOGGER.error("e")
        last_line(FAIL)
        lines = [line.rpartition(" - ")[2] for line in capfd.readouterr().err.splitlines()]
        assert lines == [*shown, FAIL]

    def test_other_ranks_are_quiet(self, monkeypatch, capfd):
        monkeypatch.setenv("LOCAL_RANK", "1")
        set_up_console()
        LOGGER.warning("w")
        last_line(PASS)
        LOGGER.error("e")
        assert [line[-1] for line in capfd.readouterr().err.splitlines()] == ["e"]


class TestLoggers:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("NETRC", raising=False)
        return tmp_path

    def test_logged_in(self, home, monkeypatch):
        assert not loggers._logged_in()
        (home / ".netrc").write_text("machine other login x password y")
        assert not loggers._logged_in()
        (home / ".netrc").write_text("machine api.wandb.ai login x password y")
        assert loggers._logged_in()
        monkeypatch.setenv("NETRC", str(home / "none"))
        assert not loggers._logged_in()
        monkeypatch.setenv("WANDB_API_KEY", "k")
        assert loggers._logged_in()

    def test_tensorboard_always_wandb_never_without_credentials(self, home, monkeypatch, tmp_path):
        monkeypatch.setattr(loggers, "_wandb", lambda *_: pytest.fail("no credentials"))
        (made,) = loggers.build_loggers(Spec(wandb={"enable": True}), tmp_path)
        assert made.log_dir == str(tmp_path / "lightning_logs" / "version_1")

    def test_wandb_only_where_the_spec_asks_for_it(self, home, monkeypatch, tmp_path):
        monkeypatch.setenv("WANDB_API_KEY", "k")
        monkeypatch.setattr(loggers, "_wandb", lambda *_: pytest.fail("nobody asked"))
        for wandb in ({}, {"project": "x"}, {"enable": False}):
            assert len(loggers.build_loggers(Spec(wandb=wandb), tmp_path)) == 1

    @pytest.mark.parametrize("error", [RuntimeError("no network"), None])
    def test_wandb_never_stops_a_run(self, home, monkeypatch, tmp_path, error):
        def answer(*_):
            if error:
                raise error
            return "logger"

        monkeypatch.setenv("WANDB_API_KEY", "k")
        monkeypatch.setattr(loggers, "_wandb", answer)
        assert len(loggers.build_loggers(Spec(wandb={"enable": True}), tmp_path)) == (1 if error else 2)


class TestFolder:
    def test_made(self, tmp_path):
        assert results_folder(str(tmp_path / "a" / "b"), "train") == tmp_path / "a" / "b"
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_not_writable(self, tmp_path):
        (tmp_path / "a").touch()
        with pytest.raises(SpecError, match=r"--map-path /results=./results"):
            results_folder(str(tmp_path / "a" / "b"), "train")


class TestSharedMemory:
    def test_small(self, monkeypatch):
        monkeypatch.setattr(callbacks.shutil, "disk_usage", lambda _: type("U", (), {"total": 64 << 20})())
        assert callbacks.small_shared_memory(0) == callbacks.small_shared_memory(1) == ""
        assert "64 MiB for 2 loader process(es)" in callbacks.small_shared_memory(2)

    def test_none(self, tmp_path):
        assert callbacks.small_shared_memory(4, str(tmp_path / "none")) == ""


def counters(**values):
    return {name: values.get(name, values.get("all", 0)) for name in ("ready", "started", "processed", "completed")}


def loops(epoch, batch, last=False, validation=None):
    progress = {"total": validation or counters(), "current": counters(), "is_last_batch": validation is not None}
    return {
        "loops": {
            "fit_loop": {
                "epoch_progress": {"current": epoch},
                "epoch_loop.batch_progress": {"current": batch, "is_last_batch": last},
                "epoch_loop.val_loop.batch_progress": progress,
            }
        }
    }


class TestPlace:
    """The counters of each moment that Lightning saves at, 3 batches per epoch, in its third epoch (2)."""

    IN_EPOCH = counters(ready=3, started=3, processed=2, completed=2)
    ALL = counters(all=3)

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            (loops(counters(ready=3, started=3, processed=3, completed=2), ALL, True), Place(3)),
            (loops(counters(all=3), ALL, True), Place(3)),
            (loops(IN_EPOCH, counters(ready=2, started=2, processed=2, completed=1)), Place(2, 2)),
            (loops(IN_EPOCH, counters(ready=2, started=2, processed=1, completed=1)), Place(2, 1)),
            (loops(IN_EPOCH, counters(ready=3, started=3, processed=2, completed=2), True), Place(2, 2)),
            (loops(IN_EPOCH, ALL, True), Place(2, 3, validate=True)),
            (loops(IN_EPOCH, ALL, True, counters(all=5)), Place(3)),
            (loops(IN_EPOCH, ALL, True, counters(ready=2, started=2, processed=1, completed=1)), Place(2, 3, True)),
            (loops(IN_EPOCH, counters(all=0)), Place(2)),
        ],
    )
    def test_moment(self, content, place):
        assert place_of(content, "x") == place

    @pytest.mark.parametrize("content", [{}, {"loops": {}}, {"loops": None}, []])
    def test_no_moment(self, content):
        with pytest.raises(CheckpointError, match="x · holds weights, but not where"):
            place_of(content, "x")


def test_seeds_differ():
    assert len({derive_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64


@pytest.fixture(autouse=True)
def _console():
    yield
    LOGGER.handlers, LOGGER.propagate = [], True
    LOGGER.setLevel(logging.NOTSET)
