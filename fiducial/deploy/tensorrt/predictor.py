"""Running an engine of TensorRT, or of TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.deploy.graph_predictor import GraphPredictor, Port
from fiducial.deploy.tensorrt import gpu
from fiducial.deploy.tensorrt.engine_card import EngineFacts
from fiducial.deploy.tensorrt.flavour import Flavour, load
from fiducial.deploy.tensorrt.runner import Runner
from fiducial.errors import CheckpointError, Problem
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime

__all__ = ["TensorRTPredictor"]


class TensorRTPredictor(GraphPredictor):
    """Runs an engine, on tensors that stay on its GPU; see :class:`GraphPredictor`.

    The card beside it says what built it, and for which GPU; it is loaded only where both are here.
    """

    runtime = "tensorrt"

    def __init__(self, path: Path, runtime: TaskRuntime, *, allow_code: bool = False) -> None:
        self.allow_code = allow_code
        super().__init__(path, runtime)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "allow_code": self.allow_code}

    @property
    def device(self) -> torch.device:
        """The engine's GPU."""
        return self._gpu.device

    def read(self) -> tuple[ModelCard, str]:
        """The card beside the file, which is of just this file."""
        self.built, card = EngineFacts.read(self.path)
        return card, card.file

    def open(self) -> tuple[Sequence[Port], Sequence[Port]]:
        """Load the engine onto the GPU."""
        found = gpu.find()
        if found is None:
            said = "an engine runs on an NVIDIA GPU, and this machine has none that torch can use"
            raise CheckpointError(str(self.path), said, "run the checkpoint, or the .onnx file that it was built from")
        self._gpu = found
        flavour = load("rtx" if self.built.flavor == "rtx" else "tensorrt")
        self._check(flavour)
        content, allow_code = self.path.read_bytes(), self.built.version_compatible
        self._runner = Runner(flavour, content, self.path, found.device, allow_code=allow_code)
        if self._runner.batches:
            self.padded_to, self.most = self._runner.batches
        self.title = f"{flavour.title} {flavour.version}"
        LOGGER.info("%s, an engine in %s, on %s", self.title, self.built.precision, found.name)
        return self._runner.inputs, self._runner.outputs

    def _check(self, flavour: Flavour) -> None:
        problems = list(self.built.check(flavour, self._gpu.name, self._gpu.capability, self.path))
        if self.built.version_compatible and not self.allow_code:
            said = "built version_compatible: it brings code of its own, which runs when it is loaded"
            fix = "for a file that you trust set allow_engine_code=true, or build it without version_compatible"
            problems.append(Problem(str(self.path), said, fix))
        for problem in problems:
            if problem.level == "warning":
                LOGGER.warning("%s", problem)
        if errors := [problem for problem in problems if problem.level == "error"]:
            raise CheckpointError.of(errors)

    def run(self, feeds: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """One batch."""
        return self._runner.run(feeds, self.graph.results)

    def facts(self) -> Mapping[str, str]:
        """What a report says about how it ran."""
        return {"tensorrt": self.title, "precision": self.built.precision}
