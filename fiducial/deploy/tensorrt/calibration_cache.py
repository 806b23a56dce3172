"""The ranges that calibration finds, and the file that keeps them (``calibration.cal_cache_file``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fiducial.checkpoints.atomic import save_atomically
from fiducial.errors import CheckpointError
from fiducial.run.console import LOGGER

__all__ = ["Ranges", "observe"]

_KIND = "fiducial calibration"


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each tensor, in a file that is of one ONNX file alone."""

    path: Path
    digest: str
    """SHA-256 of the ONNX file."""

    def held(self) -> dict[str, tuple[float, float]] | None:
        """What the file holds; None where there is none, or it is of another model, or another program's."""
        try:
            said = json.loads(self.path.read_bytes())
            found = {str(name): (float(low), float(high)) for name, (low, high) in said["ranges"].items()}
            is_ours = said["kind"] == _KIND and all(math.isfinite(side) for pair in found.values() for side in pair)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_ours = False
        if is_ours and said["onnx"] == self.digest:
            LOGGER.info("calibrated as %s says, without images", self.path)
            return found
        why = (
            "of another ONNX file" if is_ours else "not this program's: a TensorRT cache has no scales for such engines"
        )
        LOGGER.warning("cal_cache_file %s: %s; calibrating with images", self.path, why)
        return None

    def keep(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Write the file, unless another program's stands there."""
        try:
            ours = not self.path.exists() or json.loads(self.path.read_bytes()).get("kind") == _KIND
        except (OSError, ValueError, AttributeError, RecursionError):
            ours = False
        if not ours:
            LOGGER.warning("cal_cache_file %s: left as it is", self.path)
            return
        text = json.dumps({"kind": _KIND, "onnx": self.digest, "ranges": {k: list(v) for k, v in ranges.items()}})
        save_atomically(self.path, lambda file: file.write(text.encode()))


def observe(
    path: Path, batches: Iterable[Mapping[str, NDArray[Any]]], kinds: Sequence[str], work: Path, *, large: bool = False
) -> dict[str, tuple[float, float]]:
    """Run batches through a graph; the smallest and largest value of every input and output of some kinds of nodes.

    Not with onnxruntime's calibrator, which ModelOpt replaces in the whole process. ``work``: a file that is written on
    the way; ``large``: its weights beside it.

    Raises: CheckpointError where values are no numbers, or there are no batches.
    """
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(path))
    names = _watched(model, kinds)
    onnx.save(model, str(work), save_as_external_data=large, location=f"{work.name}.data")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    available = ort.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    session = ort.InferenceSession(str(work), options, providers=providers)
    found: dict[str, tuple[float, float]] = {}
    count = 0
    for feeds in batches:
        values = iter(session.run([output for pair in names.values() for output in pair], dict(feeds)))
        for name in names:
            low, high = float(next(values)), float(next(values))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise CheckpointError(str(path), f"{name} is NaN or infinite on calibration data", "check the weights")
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]))
        count += 1
    if not count:
        raise CheckpointError(str(path), "no batch to calibrate with", "name calibration images")
    LOGGER.info("calibrated with %d batches: %d tensors", count, len(found))
    return found


def _watched(model: Any, kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Add outputs for the smallest and the largest value of each tensor that is no constant; their names by its own."""
    from onnx import TensorProto, helper

    constants = {tensor.name for tensor in model.graph.initializer}
    known = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input)}
    nodes = [node for node in model.graph.node if node.op_type in kinds]
    tensors = dict.fromkeys(name for node in nodes for name in (*node.input[:2], *node.output) if name)
    names: dict[str, tuple[str, str]] = {}
    for tensor in tensors:
        if tensor in constants or known.get(tensor, TensorProto.FLOAT) != TensorProto.FLOAT:
            continue
        names[tensor] = (f"{tensor}/smallest", f"{tensor}/largest")
        for kind, output in zip(("ReduceMin", "ReduceMax"), names[tensor], strict=True):
            model.graph.node.append(helper.make_node(kind, [tensor], [output], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return names
