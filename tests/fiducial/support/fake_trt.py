"""TensorRT without a GPU: the part of its bindings that is used, over onnxruntime.

An engine of it is the ONNX file with its profile; it runs on the CPU, through the addresses that it is given, as the
true one does on a GPU. What it offers is compared with the true bindings' names in a test.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum, IntEnum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort

TYPES = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 16: "BF16"}
KINDS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "QuantizeLinear": "QUANTIZE"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def enum(name, *members):
    return Enum(name, {member: place for place, member in enumerate(members)})


Severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
DataType = enum("DataType", *TYPES.values())
LayerType = enum("LayerType", "CONVOLUTION", "MATRIX_MULTIPLY", "QUANTIZE", "ELEMENTWISE")


class ILogger:
    Severity = Severity

    def log(self, severity, message):
        raise NotImplementedError


class ITensor:
    def __init__(self, name, kind, shape):
        self.name, self.dtype, self.shape = name, DataType[TYPES[kind]], tuple(shape)


class ILayer:
    def __init__(self, node, output):
        self.name, self.type, self._output = node.name, LayerType[KINDS.get(node.op_type, "ELEMENTWISE")], output
        self.num_inputs, self.num_outputs = len(node.input), 1

    def get_input(self, index):
        return None

    def get_output(self, index):
        return self._output


def tensor(value):
    kind = value.type.tensor_type
    return ITensor(value.name, kind.elem_type, [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim])


class INetworkDefinition:
    def __init__(self, flags):
        self.flags, self.content = flags, b""

    def read(self, path):
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        self.content, known = model.SerializeToString(), {}
        for value in (*model.graph.value_info, *model.graph.output):
            known[value.name] = tensor(value)
        self._layers = [ILayer(node, known[node.output[0]]) for node in model.graph.node if node.output[0] in known]
        self._inputs, self._outputs = map(tensor, model.graph.input), map(tensor, model.graph.output)
        self._inputs, self._outputs = list(self._inputs), list(self._outputs)

    @property
    def num_layers(self):
        return len(self._layers)

    @property
    def num_inputs(self):
        return len(self._inputs)

    @property
    def num_outputs(self):
        return len(self._outputs)

    def get_layer(self, index):
        return self._layers[index]

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._outputs[index]


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, min, opt, max):
        self.shapes[name] = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, held):
        self.held = held

    def serialize(self):
        return self.held or b"timings"


class IBuilderConfig:
    builder_optimization_level, profiling_verbosity = 3, None

    def __init__(self):
        self.asked = {"flags": ["TF32"], "profile": None, "hardware": "NONE"}

    @property
    def hardware_compatibility_level(self):
        return self.asked["hardware"]

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level):
        self.asked["hardware"] = level.name

    def set_flag(self, flag):
        self.asked["flags"].append(flag.name)

    def clear_flag(self, flag):
        self.asked["flags"].remove(flag.name)

    def set_memory_pool_limit(self, pool, pool_size):
        self.asked[pool.name] = pool_size

    def add_optimization_profile(self, profile):
        self.asked["profile"] = profile.shapes
        return 0

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return cache.held in (b"", b"timings")

    def get_timing_cache(self):
        return self._cache


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        lowest, _, highest = self._engine.get_tensor_profile_shape(name, 0)
        if not all(low <= side <= high for low, side, high in zip(lowest, shape, highest, strict=True)):
            self._engine.logger.log(Severity.ERROR, f"{name}: {list(shape)} is not in the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        batch = next(iter(self._shapes.values()))[0]
        return tuple(batch if side < 0 else side for side in self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def _array(self, name):
        shape, dtype = self.get_tensor_shape(name), np.dtype(NUMPY[self._engine.get_tensor_dtype(name).name])
        shape = self._shapes.get(name, shape)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream_handle):
        engine = self._engine
        results = engine.session.run(None, {name: self._array(name) for name in self._shapes})
        for entry, result in zip(engine.session.get_outputs(), results, strict=True):
            self._array(entry.name)[...] = result + engine.fault
        return True


class EngineInspector:
    def get_engine_information(self, format):
        return json.dumps({"Layers": [{"Name": "all", "Outputs": [{"Format/Datatype": "Half"}]}, "a name alone"]})


class ICudaEngine:
    fault = 0.0

    def __init__(self, said, content, logger):
        self.said, self.logger, graph = said, logger, onnx.load_from_string(content).graph
        self.session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = [tensor(v) for v in graph.input], [tensor(v) for v in graph.output]
        self._tensors = {t.name: t for t in (*self._inputs, *self._outputs)}

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in [t.name for t in self._inputs] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._tensors[name].dtype

    def get_tensor_shape(self, name):
        return self._tensors[name].shape

    def get_tensor_profile_shape(self, name, profile_index):
        fixed = list(self.get_tensor_shape(name))
        return self.said["profile"][name] if self.said["profile"] else [fixed] * 3

    def create_execution_context(self):
        return IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector()


TensorIOMode = enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")


class ParserError:
    def __init__(self, text):
        self.text = text

    def desc(self):
        return self.text

    def node_name(self):
        return ""

    def node_operator(self):
        return ""


def bindings(version):
    """The module ``tensorrt`` of a version."""

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags=0):
            if version.startswith("10") and flags != 2:
                raise AssertionError("weakly typed")
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            module.built = {**config.asked, "version": version}
            if module.refuses:
                self.logger.log(Severity.ERROR, "no tactic")
                return None
            return memoryview(json.dumps(module.built).encode() + b"\n" + network.content)

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self._error = network, None

        def parse_from_file(self, path):
            try:
                self.network.read(path)
            except Exception as error:
                self._error = ParserError(str(error))
            return self._error is None

        @property
        def num_errors(self):
            return int(self._error is not None)

        def get_error(self, index):
            return self._error

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            head, _, content = bytes(serialized_engine).partition(b"\n")
            said = json.loads(head)
            if "VERSION_COMPATIBLE" in said["flags"] and not self.engine_host_code_allowed:
                self.logger.log(Severity.ERROR, "host code is not allowed")
                return None
            return ICudaEngine(said, content, self.logger)

    flags = {"STRONGLY_TYPED": 0} if version.startswith("11") else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        BuilderFlag=enum("BuilderFlag", "TF32", "VERSION_COMPATIBLE"),
        HardwareCompatibilityLevel=enum("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        LayerInformationFormat=enum("LayerInformationFormat", "ONELINE", "JSON"),
        MemoryPoolType=enum("MemoryPoolType", "WORKSPACE"),
        NetworkDefinitionCreationFlag=IntEnum("NetworkDefinitionCreationFlag", flags),
        ProfilingVerbosity=enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED"),
        init_libnvinfer_plugins=lambda logger, namespace: True,
        built={},
        refuses=False,
    )
    return module
