"""What is used of TensorRT's Python bindings, as types: that of TensorRT 10 and 11, and of TensorRT for RTX.

A test asks the installed bindings for every name in here. What only some versions have is looked for where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Bindings", "Builder", "Config", "Context", "Engine", "Layer", "Network", "Parser", "Profile", "Tensor"]


class Tensor(Protocol):
    """``ITensor``."""

    name: str
    dtype: Any
    shape: Sequence[int]


class Layer(Protocol):
    """``ILayer``."""

    name: str
    type: Any
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...

    def get_output(self, index: int) -> Tensor | None: ...


class Network(Protocol):
    """``INetworkDefinition``."""

    num_layers: int
    num_inputs: int
    num_outputs: int

    def get_layer(self, index: int) -> Layer: ...

    def get_input(self, index: int) -> Tensor: ...

    def get_output(self, index: int) -> Tensor: ...


class Profile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(self, name: str, /, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class TimingCache(Protocol):
    """``ITimingCache``."""

    def serialize(self) -> Any: ...


class Config(Protocol):
    """``IBuilderConfig``."""

    builder_optimization_level: int
    hardware_compatibility_level: Any
    profiling_verbosity: Any

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...

    def add_optimization_profile(self, profile: Profile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None: ...

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> TimingCache | None: ...


class Builder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int, /) -> Network: ...

    def create_builder_config(self) -> Config: ...

    def create_optimization_profile(self) -> Profile: ...

    def build_serialized_network(self, network: Network, config: Config) -> Any: ...


class ParserError(Protocol):
    """``ParserError``."""

    def desc(self) -> str: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...


class Parser(Protocol):
    """``OnnxParser``."""

    num_errors: int

    def parse_from_file(self, path: str) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class Inspector(Protocol):
    """``EngineInspector``."""

    def get_engine_information(self, format: Any) -> str: ...


class Context(Protocol):
    """``IExecutionContext``."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...

    def get_tensor_shape(self, name: str) -> Sequence[int]: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """``ICudaEngine``."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Any: ...

    def get_tensor_dtype(self, name: str) -> Any: ...

    def get_tensor_shape(self, name: str) -> Sequence[int]: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...

    def create_execution_context(self) -> Context | None: ...

    def create_engine_inspector(self) -> Inspector: ...


class Runtime(Protocol):
    """``Runtime``."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> Engine | None: ...


class Bindings(Protocol):
    """The module: ``tensorrt``, or ``tensorrt_rtx_bindings``."""

    __version__: str
    ILogger: Any
    BuilderFlag: Any
    HardwareCompatibilityLevel: Any
    LayerInformationFormat: Any
    MemoryPoolType: Any
    NetworkDefinitionCreationFlag: Any
    ProfilingVerbosity: Any
    TensorIOMode: Any

    def Builder(self, logger: Any) -> Builder: ...  # noqa: N802

    def OnnxParser(self, network: Network, logger: Any) -> Parser: ...  # noqa: N802

    def Runtime(self, logger: Any) -> Runtime: ...  # noqa: N802

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool: ...
