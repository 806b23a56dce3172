"""An engine in memory, which maps tensors to tensors on its GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial.deploy.graph_predictor import Port
from fiducial.deploy.tensorrt.flavour import Flavour, Said
from fiducial.deploy.tensorrt.surface import Engine
from fiducial.errors import CheckpointError

__all__ = ["Runner"]

_TYPES = {
    **{"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16},
    **{"INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool, "UINT8": torch.uint8},
}


class Runner:
    """Deserialises an engine and runs it, one call at a time.

    Args:
        flavour: The library, of the version that built it.
        content: The engine. It is code: only one that this program built, and its card is of, comes here.
        path: What errors say.
        device: Its GPU.
        allow_code: Whether the library may run the code of another version that the engine brings with it.

    Raises: CheckpointError when the library does not load it.
    """

    def __init__(
        self, flavour: Flavour, content: Any, path: Path, device: torch.device, *, allow_code: bool = False
    ) -> None:
        self.flavour, self.path, self.device = flavour, path, device
        self._said = Said(flavour.trt)
        if flavour.name == "tensorrt":
            flavour.trt.init_libnvinfer_plugins(self._said.logger, "")
        self._runtime = flavour.trt.Runtime(self._said.logger)
        if allow_code:
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(content)
        context = engine.create_execution_context() if engine is not None else None
        if engine is None or context is None:
            raise self._error(f"{flavour.title} {flavour.version} does not load it", "build the engine again")
        self.engine: Engine = engine
        self._context = context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == flavour.trt.TensorIOMode.INPUT for name in names}
        self.inputs = [self._port(name) for name in names if is_input[name]]
        self.outputs = [self._port(name) for name in names if not is_input[name]]
        # its default stream would make it wait for everything else
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def _port(self, name: str) -> Port:
        kind = self.engine.get_tensor_dtype(name).name
        dtype = str(_TYPES[kind]).removeprefix("torch.") if kind in _TYPES else kind.lower()
        sides = [side if side >= 0 else None for side in self.engine.get_tensor_shape(name)]
        return Port(name, sides, dtype)

    @property
    def batches(self) -> tuple[int, int] | None:
        """The smallest and the largest batch that it takes; None where it is fixed to one."""
        open_ports = [port for port in self.inputs if port.shape and port.shape[0] is None]
        limits = [self.engine.get_tensor_profile_shape(port.name, 0) for port in open_ports]
        return (max(l[0][0] for l in limits), min(l[2][0] for l in limits)) if limits else None  # noqa: E741

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """The named outputs, on the GPU, for inputs of the engine's own types and sizes. Raises: CheckpointError."""
        held = {name: value.to(self.device).contiguous() for name, value in feeds.items()}
        for name, value in held.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise self._error(f"does not take {name} of {list(value.shape)}", "set a smaller batch_size")
        results = {port.name: self._empty(port) for port in self.outputs}
        for name, value in (held | results).items():
            if not self._context.set_tensor_address(name, value.data_ptr()):
                raise self._error(f"does not take the memory of {name}", "build the engine again")
        if not self._execute():
            raise self._error("stopped", "set a smaller batch_size, or build the engine again")
        return [results[name] for name in wanted]

    def _empty(self, port: Port) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(port.name))
        if any(side < 0 for side in shape):
            raise self._error(f"does not say how large {port.name} is", "build the engine again")
        return torch.empty(shape, dtype=getattr(torch, port.dtype), device=self.device)

    def _execute(self) -> bool:
        if self._stream is None:
            return self._context.execute_async_v3(0)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        done = self._context.execute_async_v3(self._stream.cuda_stream)
        current.wait_stream(self._stream)  # whoever uses the outputs, or the memory of the inputs again, comes after
        return done

    def _error(self, found: str, fix: str) -> CheckpointError:
        said = self._said.last("")
        return CheckpointError(str(self.path), f"{found}: {said}" if said else found, fix)
