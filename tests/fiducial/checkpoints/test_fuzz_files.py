"""Small files of every format, changed at random: they are read, or one line says what is wrong."""

import collections
import contextlib
import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fiducial.checkpoints.keys import family_of
from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError

RAW = {
    "state_dict": collections.OrderedDict(w=torch.arange(6.0).view(2, 3), b=torch.ones(3, dtype=torch.bfloat16)),
    "pytorch-lightning_version": "2.5.0",
    "hyper_parameters": omegaconf.OmegaConf.create({"a": [1, {"b": "c"}]}),
    "path": Path("a"),
    "counter": collections.Counter({1: 2}),
    "array": np.arange(3.0),
}


def _saved(**how):
    file = io.BytesIO()
    torch.save(RAW, file, **how)
    return file.getvalue()


def _deflated(content):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in given.namelist():
            packed.writestr(name, given.read(name))
    return file.getvalue()


def _archive(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("tlt_pytorch_model.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


ZIP = _saved()
FILES = {
    "zip": ZIP,
    "deflated zip": _deflated(ZIP),
    "legacy": _saved(_use_new_zipfile_serialization=False),
    "legacy, protocol 4": _saved(_use_new_zipfile_serialization=False, pickle_protocol=4),
    "pickle": pickle.dumps({"model": {"w": np.arange(6.0)}, "x": (1, {2}, b"3")}),
    "safetensors": save({"w": torch.arange(6.0), "b": torch.ones(2, 3)}, {"a": "b"}),
    "archive": _archive(ZIP),
}
OPCODES = bytes(code[0] for code in vars(pickle).values() if isinstance(code, bytes) and len(code) == 1)
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(("put", "insert", "cut", "copy")), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, changes, offset: int = 0) -> bytes:
    """The content after some bytes were overwritten, put in, left out, or copied to another place."""
    result = bytearray(content)
    for share, kind, data in changes:
        place = offset + int(share * (len(result) - offset))
        if kind == "put":
            result[place : place + len(data)] = data
        elif kind == "insert":
            result[place:place] = data
        elif kind == "cut":
            del result[place : place + 37 * len(data)]
        else:
            result[place:place] = result[max(place - 53 * len(data), 0) : place]
    return bytes(result)


def look(path: Path) -> None:
    """Read a file, and go over what it gave as those do who use it."""
    with contextlib.suppress(CheckpointError):
        checkpoint = read(path)
        repr(checkpoint.raw)
        family_of(checkpoint.state_dict)
        for tensor in checkpoint.state_dict.values():
            assert tensor.numel() < 1 << 25
            tensor.clone()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "m.pth"


few = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", FILES)
@few
@given(changes=CHANGES)
def test_changed_bytes(path, name, changes):
    content = changed(FILES[name], changes)
    path.write_bytes(gzip.compress(content, 1) if name == "archive" else content)
    look(path)


@few
@given(changes=CHANGES)
def test_changed_pickles(path, changes):
    """Within a whole zip file, so that nothing but the opcodes is wrong."""
    with zipfile.ZipFile(io.BytesIO(ZIP)) as given, zipfile.ZipFile(path, "w") as archive:
        for name in given.namelist():
            content = given.read(name)
            archive.writestr(name, changed(content, changes, 2) if name.endswith("data.pkl") else content)
    look(path)


@few
@given(opcodes=st.lists(st.one_of(st.sampled_from(OPCODES).map(lambda o: bytes((o,))), st.binary(max_size=5))))
def test_any_opcodes(path, opcodes):
    path.write_bytes(b"\x80\x04" + b"".join(opcodes) + b".")
    look(path)


@few
@given(changes=CHANGES)
def test_changed_headers_of_safetensors(path, changes):
    content = FILES["safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = changed(content[8 : 8 + length], changes, 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    look(path)
