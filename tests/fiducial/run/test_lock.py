"""One run per folder, whatever happened to the one before."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fiducial.errors import SpecError, StorageError
from fiducial.run import lock
from fiducial.run.lock import LOCK, is_taken, only_run, was_abandoned

HOLD = """
import os, pathlib, sys, time
from fiducial.run.lock import only_run
with only_run(pathlib.Path(sys.argv[1]), "train"):
    child = os.fork() if len(sys.argv) > 2 else 1  # a loader process
    if child:
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder; ``forks``: with a child that outlives it."""
    started = []

    def start(*forks):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *forks]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_refused_and_told_by_whom(tmp_path, holder):
    process = holder()
    with pytest.raises(SpecError) as raised, only_run(tmp_path, "evaluate"):
        pytest.fail("two runs in one folder")
    told = str(raised.value)
    assert (
        f"{tmp_path} is in use by train, process {process.pid} of {socket.gethostname()} (this machine), since 2"
        in told
    )
    assert "set evaluate.results_dir to another folder" in told
    assert is_taken(tmp_path)


@pytest.mark.parametrize("forks", [(), ("forks",)])
def test_nothing_stays_of_a_killed_one(tmp_path, holder, forks):
    process = holder(*forks)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while is_taken(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)  # a child lets go of what it has from its parent when it first runs
    assert not is_taken(tmp_path)
    assert was_abandoned(tmp_path)
    with only_run(tmp_path, "train"):
        assert json.loads((tmp_path / ".lock-owner.json").read_text())["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_within_one_process(tmp_path):
    with only_run(tmp_path, "train"):
        raised = []

        def second():
            try:
                with only_run(tmp_path, "train"):
                    pass
            except SpecError as error:
                raised.append(error)

        for _ in range(2):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert len(raised) == 2
        (tmp_path / "other").mkdir()
        with only_run(tmp_path / "other", "evaluate"):
            assert is_taken(tmp_path)
    for _ in range(2):
        with only_run(tmp_path, "train"):
            pass


def test_freed_by_an_exception(tmp_path):
    with pytest.raises(ValueError, match="x"), only_run(tmp_path, "train"):
        raise ValueError("x")
    assert not is_taken(tmp_path)
    assert not was_abandoned(tmp_path)


@pytest.mark.parametrize(
    "owner", [None, "", "{", "[]", '{"pid": 3}', '{"host": "other", "pid": 3, "since": "s", "action": "a"}']
)
def test_whatever_the_record_says(tmp_path, owner):
    """The lock counts, not the record: it may be another program's, or left by a killed run."""
    with only_run(tmp_path, "train"):
        record = tmp_path / ".lock-owner.json"
        record.unlink() if owner is None else record.write_text(owner)
        with (
            pytest.raises(SpecError, match=r"is in use by (another run|a, process 3 of other, since s)"),
            only_run(tmp_path, "t"),
        ):
            pass


class TestWithoutLocks:
    @pytest.fixture
    def fails(self, monkeypatch):
        def with_error(error):
            def acquire(*_, **__):
                raise error

            monkeypatch.setattr(lock.FileLock, "acquire", acquire)

        return with_error

    @pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(37, "No locks available")])
    def test_it_runs_with_a_warning(self, tmp_path, fails, error, caplog):
        fails(error)
        with only_run(tmp_path, "train"):
            assert not is_taken(tmp_path)
        assert "cannot be locked" in caplog.text
        assert "start no second run" in caplog.text

    def test_a_full_disk_is_one(self, tmp_path, fails):
        fails(OSError(28, "No space left on device"))
        with pytest.raises(StorageError, match="no space left in"), only_run(tmp_path, "train"):
            pass
