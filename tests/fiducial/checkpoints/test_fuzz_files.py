"""Whatever bytes a model file has, it is read or refused in one line."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError

TENSORS = {"backbone.w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.float16)}
CONTENT = {"state_dict": TENSORS, "epoch": 3, "hyper_parameters": {"lr": 1e-4, "names": ["a", "b"]}}


def torch_file(tree, **options):
    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def archive(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        member = tarfile.TarInfo("tlt_pytorch_model.pth")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FILES = {
    "zip": torch_file(CONTENT),
    "before zip": torch_file(CONTENT, _use_new_zipfile_serialization=False),
    "pickle": pickle.dumps({"w": np.arange(6.0).reshape(2, 3), "model": {"a": np.ones(2)}}),
    "safetensors": safetensors_bytes(TENSORS),
    "eff": archive(torch_file(CONTENT)),
}


def read_or_refuse(path, content):
    path.write_bytes(content)
    try:
        read(path)
    except CheckpointError as error:
        assert str(path) in str(error) or "." in str(error)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "model.pth"


quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", FILES)
def test_the_whole_file_is_read(path, kind):
    path.write_bytes(FILES[kind])
    assert read(path).state_dict


@pytest.mark.parametrize("kind", FILES)
@quick
@given(data=st.data())
def test_changed_bytes(path, kind, data):
    content = bytearray(FILES[kind])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = value
    read_or_refuse(path, bytes(content))


@pytest.mark.parametrize("kind", FILES)
@quick
@given(data=st.data())
def test_cut_and_doubled_bytes(path, kind, data):
    content = FILES[kind]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    read_or_refuse(path, content[:start] + data.draw(st.binary(max_size=12)) + content[stop:])


@quick
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x1f\x8b\x08"]))
def test_any_bytes(path, content, start):
    read_or_refuse(path, start + content)
