"""Whatever stands in an ONNX file: numbers come out, or an error that a user can read."""

import json

import onnx_models
import pytest
import tiny_runtime
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_task import Spec

from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.errors import UserError

# the same files in every run: what ends onnxruntime, ends the tests
BOUNDED = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = sorted(ModelCard.__dataclass_fields__)


def run(path):
    try:
        outputs = OnnxPredictor(path, tiny_runtime.Runtime(Spec())).predict({"x": torch.ones(2, 3)})
    except UserError:
        return
    assert len(outputs["y"]) == 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path, runtime = tmp_path_factory.mktemp("fuzz") / "m.onnx", tiny_runtime.Runtime(Spec())
    export_onnx(tiny_runtime.Network(), path, runtime.graph(), ExportSettings(17, -1), card=runtime.card(), samples=[])
    return path.read_bytes()


@BOUNDED
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    run(path)


@BOUNDED
@given(data=st.data())
def test_an_exported_file_with_other_bytes_in_it(tmp_path, exported, data):
    content = bytearray(exported)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.sampled_from([0, 1, 1, 1, 4, 60]))
        content[start : start + length] = data.draw(st.binary(max_size=4))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    run(path)


@BOUNDED
@given(card=JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_card(tmp_path, card):
    run(onnx_models.write(tmp_path / "m.onnx", card=json.dumps(card)))


@BOUNDED
@given(text=st.text(max_size=40))
def test_any_text_as_a_card(tmp_path, text):
    run(onnx_models.write(tmp_path / "m.onnx", card=text))
