"""The kinds of model files, and what runs each. No torch: :mod:`fiducial.actions` asks before anything is loaded.

A suffix is a hint, not a kind: a runtime may look into the file before it claims it. The first that does has it, so a
new kind is registered before those whose suffix it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES
from fiducial.deploy.digest import ENGINE_SUFFIXES, IR_SUFFIX
from fiducial.deploy.quantize.artefacts import is_quantized
from fiducial.errors import CheckpointError

if TYPE_CHECKING:
    from fiducial.prediction import Predictor
    from fiducial.task import TaskRuntime

__all__ = [
    "RUNTIMES",
    "ModelRuntime",
    "is_named",
    "open_predictor",
    "register",
    "runs_an_engine",
    "runtime_of",
    "suffixes",
]

Open = Callable[["Path", "TaskRuntime", "str | None"], "Predictor"]
"""``(model file, the task's runtime, encryption key) -> predictor``."""


@dataclass(frozen=True)
class ModelRuntime:
    """What runs one kind of model file."""

    name: str
    suffixes: tuple[str, ...]
    open: Open | None = None
    """Makes a predictor that has let the task's runtime adopt the file's card; imports what it needs."""
    claims: Callable[[Path], bool] | None = None
    """Whether a file with one of the suffixes is of this kind; None: any is."""
    many_processes: bool = False
    """Whether an action may run it in several processes."""
    refusal: tuple[str, str] = ("", "")
    """Why this version cannot run such a file, and what to do instead."""

    def takes(self, path: Path) -> bool:
        """Whether the file is of this kind."""
        fits = path.name.lower().endswith(self.suffixes)
        return fits and (self.claims is None or self.claims(path))


def _torch(path: Path, runtime: TaskRuntime, key: str | None) -> Predictor:
    from fiducial.checkpoints.reading import read

    return runtime.torch_predictor(read(path, key=key))


def _onnx(path: Path, runtime: TaskRuntime, key: str | None) -> Predictor:
    from fiducial.deploy.onnx_predictor import OnnxPredictor

    return OnnxPredictor(path, runtime)


def _engine(path: Path, runtime: TaskRuntime, key: str | None) -> Predictor:
    from fiducial.deploy.tensorrt.predictor import TensorRTPredictor

    return TensorRTPredictor(path, runtime, allow_code=getattr(runtime.section, "allow_engine_code", False))


def _openvino(path: Path, runtime: TaskRuntime, key: str | None) -> Predictor:
    from fiducial.deploy.openvino_predictor import OpenVinoPredictor

    return OpenVinoPredictor(path, runtime)


def _quantized(path: Path, runtime: TaskRuntime, key: str | None) -> Predictor:
    from fiducial.deploy.quantize.loading import open_quantized

    return open_quantized(path, runtime, key)


RUNTIMES: list[ModelRuntime] = [
    ModelRuntime("torch", CHECKPOINT_SUFFIXES, _quantized, claims=is_quantized, many_processes=True),
    ModelRuntime("torch", CHECKPOINT_SUFFIXES, _torch, many_processes=True),
    ModelRuntime("onnxruntime", (".onnx",), _onnx),
    ModelRuntime("tensorrt", ENGINE_SUFFIXES, _engine),
    ModelRuntime("openvino", (IR_SUFFIX,), _openvino),
]
"""In the order in which they are asked."""


def register(runtime: ModelRuntime) -> None:
    """Let actions run another kind of model file; it is asked before those that are there."""
    RUNTIMES.insert(0, runtime)


def runtime_of(path: Path) -> ModelRuntime:
    """What runs a file. Raises: CheckpointError when nothing does, or this version does not."""
    found = next((runtime for runtime in RUNTIMES if runtime.takes(path)), None)
    if found is None:
        fix = f"model files end in {', '.join(suffixes())}"
        raise CheckpointError(str(path), "of a kind that nothing here runs", fix)
    if found.open is None:
        raise CheckpointError(str(path), *found.refusal)
    return found


def open_predictor(path: Path, runtime: TaskRuntime, key: str | None = None) -> Predictor:
    """What runs a model file, whatever its kind, and has let the task's runtime adopt its card.

    Raises: CheckpointError when nothing runs it, it cannot be loaded, or it is no model of this task.
    """
    kind = runtime_of(path)
    assert kind.open is not None
    return kind.open(path, runtime, key)


def suffixes() -> tuple[str, ...]:
    """Every suffix of a model file that has a runtime, built or not."""
    return tuple(dict.fromkeys(suffix for runtime in RUNTIMES for suffix in runtime.suffixes))


def runs_an_engine(section: Mapping[str, Any]) -> bool:
    """Whether an action with these keys runs a TensorRT engine, by TAO's rule: only ``trt_engine`` is set, or
    ``checkpoint`` names one."""
    checkpoint, engine = section.get("checkpoint"), section.get("trt_engine")
    return str(checkpoint).lower().endswith(ENGINE_SUFFIXES) if is_named(checkpoint) else is_named(engine)


def is_named(value: Any) -> bool:
    """Whether the value of a key names a file, and not that the key is to be set."""
    return str(value or "") not in ("", "???")
