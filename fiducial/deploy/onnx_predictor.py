"""Running an exported model with onnxruntime."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.deploy.graph_predictor import GraphPredictor, Port
from fiducial.deploy.onnx_file import AGAIN, OnnxFile, one_line, read_onnx
from fiducial.deploy.providers import chosen_providers, short_name
from fiducial.errors import CheckpointError
from fiducial.run.console import LOGGER

__all__ = ["OnnxPredictor"]

LOOP_SECONDS = 60.0
"""How long a batch may take in a graph with loops, which no exported network has and which may never end."""
_TYPES = {"float": "float32", "double": "float64"}
"""onnxruntime's names of types, where torch has others."""
EXACT_INT8 = "session.x64quantprecision"
"""On processors without VNNI, products of int8 are added in int16, which overflows: the option has them added apart."""


class OnnxPredictor(GraphPredictor):
    """Runs an exported model with onnxruntime; see :class:`GraphPredictor`."""

    runtime = "onnxruntime"

    def read(self) -> tuple[ModelCard, str]:
        """The card inside the file, and the digest of the file without weights that stand beside it."""
        self.file = read_onnx(self.path)
        return ModelCard.of_onnx(self.file), self.file.digest

    def open(self) -> tuple[Sequence[Port], Sequence[Port]]:
        """Make the session."""
        import onnxruntime as ort

        self.session = _session(self.file, self.providers)
        LOGGER.info("onnxruntime %s with %s", ort.__version__, ", ".join(self.session.get_providers()))
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        return [_port(entry) for entry in inputs], [_port(entry) for entry in outputs]

    def run(self, feeds: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """One batch."""
        import onnxruntime as ort

        options = ort.RunOptions()
        arrays = {name: value.contiguous().numpy() for name, value in feeds.items()}
        try:
            with _time_limit(options) if self.file.has_loops else contextlib.nullcontext():
                outputs = self.session.run(list(self.graph.results), arrays, options)
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            fix = "set a smaller batch_size" if "llocate" in str(error) else AGAIN
            if options.terminate:
                error, fix = Exception(f"its loops did not end within {LOOP_SECONDS:g} s"), "export it without loops"
            raise CheckpointError(str(self.path), f"onnxruntime stopped: {one_line(error)}", fix) from None
        return [torch.from_numpy(output) for output in outputs]

    def facts(self) -> Mapping[str, str]:
        """What a report says about how it ran."""
        return {"providers": ", ".join(map(short_name, self.session.get_providers()))}


def _port(entry: Any) -> Port:
    name = entry.type.removeprefix("tensor(").removesuffix(")") if entry.type.startswith("tensor(") else entry.type
    return Port(entry.name, list(entry.shape), _TYPES.get(name, name))


def _session(file: OnnxFile, named: Sequence[str]) -> Any:
    """Raises: CheckpointError when no session can be made, or onnxruntime leaves out a provider that is named."""
    providers = chosen_providers(named)
    while True:
        try:
            session = _made(file, providers)
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            found = f"onnxruntime cannot load it: {one_line(error)}"
            if named or len(providers) < 2:
                raise CheckpointError(str(file.path), found, AGAIN) from None
            LOGGER.warning("%s: %s: trying the CPU", file.path, found)
            providers = providers[1:]
            continue
        missing = [short_name(name) for name, _ in providers if named and name not in session.get_providers()]
        if missing:
            found = f"onnxruntime has the provider {', '.join(missing)}, but not the libraries that it needs"
            raise CheckpointError(str(file.path), found, "install them, or leave the key providers out")
        return session


def _made(file: OnnxFile, providers: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """A session; of a graph of symmetric int8, one that does not saturate, where there can be one.

    Where onnxruntime's own rewriting of a graph fails, as it does for int8 of operator set 21 and above on processors
    without VNNI (seen in 1.32), the graph is run as it is written.
    """
    import onnxruntime as ort

    exact, rewritten, as_written = range(3)
    for way in (exact, rewritten, as_written) if file.symmetric_int8 else (rewritten, as_written):
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what it logs as an error, it raises, too
        if way == exact:
            options.add_session_config_entry(EXACT_INT8, "1")
        elif way == as_written:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            # without onnxruntime's own second try, which prints
            session = ort.InferenceSession(str(file.path), options, providers=list(providers), enable_fallback=0)
        except Exception:  # some graphs do not load in each way
            if way == as_written:
                raise
            continue
        if way == as_written:
            LOGGER.warning("%s: onnxruntime cannot fuse its nodes: it runs as it is written, and slower", file.path)
        return session
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _time_limit(options: Any) -> Iterator[None]:
    """Have onnxruntime stop, between two nodes, after :data:`LOOP_SECONDS`."""

    def stop() -> None:
        options.terminate = True

    timer = threading.Timer(LOOP_SECONDS, stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
