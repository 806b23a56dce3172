"""Small ONNX models, also such as no exporter writes."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from fiducial.deploy.card import ENTRY


def value(name, shape=("batch", 3), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, content, kind=np.float32):
    return onnx.numpy_helper.from_array(np.array(content, dtype=kind), name)


def outside(name, location, **more):
    """A constant of three numbers that stands in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, said in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(said))
    return tensor


SUM = (helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0),)
AXIS = (constant("axis", [1], np.int64),)


def write(path: Path, nodes=SUM, constants=AXIS, inputs=None, outputs=None, card=None, opset=17) -> Path:
    """A model of the input ``x`` ``(batch, 3)`` and the output ``y`` ``(batch,)``: the sum of each row."""
    graph = helper.make_graph(
        nodes, "g", inputs or [value("x")], outputs or [value("y", ("batch",))], initializer=constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    if card is not None:
        model.metadata_props.add(key=ENTRY, value=card if isinstance(card, str) else json.dumps(card))
    path.write_bytes(model.SerializeToString())
    return path
