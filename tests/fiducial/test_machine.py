"""What is the machine's doing, and what is not."""

import errno
import os

import pytest

from fiducial.errors import DatasetError, MachineError, StorageError
from fiducial.machine import explained, storage_error


def chained(outer, inner):
    try:
        try:
            raise inner
        except type(inner):
            raise outer  # noqa: B904 - how libraries lose the cause
    except type(outer) as error:
        return error


class TestStorage:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("ENOSPC", "no space left in {} ("),
            ("EDQUOT", "your quota is used up in {}"),
            ("EFBIG", "a file in {} grew"),
            ("EROFS", "{} can only be read"),
            ("ENAMETOOLONG", "a name is too long for the disk of {}"),
        ],
    )
    def test_numbers(self, tmp_path, name, found):
        error = explained(OSError(getattr(errno, name), "x"), tmp_path)
        assert isinstance(error, StorageError)
        assert found.format(tmp_path) in error.problems[0].found
        assert "MiB free)" in str(error) or name != "ENOSPC"

    @pytest.mark.parametrize(
        "text",
        [
            "[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662",
            "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: failed",
            "basic_ios::clear: iostream error",
            "12000000 requested and 2097024 written",
            "Write failed. See previous exception for details.",
        ],
    )
    def test_libraries_that_lose_the_number(self, tmp_path, text):
        assert f"a write in {tmp_path} was cut off (" in str(explained(RuntimeError(text), tmp_path))

    def test_the_cause_counts(self, tmp_path):
        torch_says = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662")
        assert "grew beyond" in str(explained(chained(torch_says, OSError(errno.EFBIG, "x")), tmp_path))

    def test_the_folder_of_the_file(self, tmp_path):
        (tmp_path / "there").mkdir()
        error = OSError(errno.ENOSPC, "x", str(tmp_path / "there" / "not" / "a.png"))
        assert f"no space left in {tmp_path / 'there'} (" in str(storage_error(error, tmp_path / "other"))

    def test_long_names_have_no_folder_of_their_own(self, tmp_path):
        path = tmp_path / ("x" * 300) / "a"
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.mkdir(path)
        assert f"a name is too long for the disk of {tmp_path}" in str(explained(raised.value, path))


class TestProcesses:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "DataLoader worker (pid 5542) is killed by signal: Killed. ",
                "a loader process · killed, most likely for",
            ),
            ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "a loader process · killed, most likely for"),
            (
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit.",
                "a loader process · killed by a bus error",
            ),
            ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "crashed in a library"),
            ("DataLoader timed out after 5 seconds", "gave no batch in time"),
            ("unable to write to file </torch_55_1_0>: No space left on device (28)", "shared memory is full"),
            ("unable to open shared memory object </torch_5_6_7> in read-write mode: x", "shared memory is full"),
            ("received 0 items of ancdata", "has too many open files"),
            ("[Errno 24] Too many open files: 'a.png'", "has too many open files"),
            (
                "[/x/gloo/transport/tcp/pair.cc:545] Read error [::1]:4: Connection reset by peer",
                "process of this run · is",
            ),
            (
                "[/x/gloo/transport/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation",
                "no answer in time",
            ),
            ("NCCL communicator was aborted on rank 1.", "another process of this run · is gone"),
            ("Some NCCL operations have failed or timed out.", "another process of this run · gave no answer"),
        ],
    )
    def test_told(self, tmp_path, text, said):
        error = explained(RuntimeError(text), tmp_path)
        assert isinstance(error, MachineError)
        assert said in str(error)
        assert "\n" not in str(error)

    def test_the_worker_behind_an_empty_queue(self, tmp_path):
        error = chained(
            RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"),
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "),
        )
        assert "bus error" in str(explained(error, tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("igloo.png"),
        FileNotFoundError(errno.ENOENT, "no such file", "a"),
        PermissionError(errno.EACCES, "denied", "a"),
        OSError("broken data stream"),
        ValueError("store 3 is closed"),
        MemoryError("no room"),
        KeyboardInterrupt(),
        DatasetError("a", "No space left on device", "c"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    assert explained(error, tmp_path) is None


def test_a_cause_that_leads_back_to_itself(tmp_path):
    error = ValueError("x")
    other = ValueError("y")
    error.__cause__, other.__cause__ = other, error
    assert explained(error, tmp_path) is None
