"""What the card beside an engine says of it: what it was built with, from and for. No torch, no TensorRT.

An engine is code for one GPU, which its library runs as it is: one without a card of its own is not loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.tensorrt.flavour import TITLES, Flavour
from fiducial.deploy.tensorrt.rules import capability
from fiducial.errors import CheckpointError, Problem

__all__ = ["DETAIL", "EngineFacts"]

DETAIL = "engine"
"""The card's entry."""
_AGAIN = "build the engine again with gen_trt_engine"


@dataclass(frozen=True)
class EngineFacts:
    """How an engine was built."""

    flavor: str
    version: str
    """Of the library, whole."""
    precision: str
    types: Mapping[str, int]
    """How many layers compute in each type."""
    batches: tuple[int, int, int]
    """The smallest, the usual and the largest."""
    onnx: str
    """SHA-256 of the file that it was built from."""
    compute_capability: tuple[str, ...] = ()
    """Of the GPUs that it is for; empty: every one that the library knew."""
    gpu: str = ""
    """The GPU that it was built on."""
    system: str = ""
    hardware_compatibility: str = "none"
    version_compatible: bool = False

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "batches": list(self.batches), "compute_capability": list(self.compute_capability)}

    @classmethod
    def read(cls, path: Path) -> tuple[EngineFacts, ModelCard]:
        """What the card of an engine says, and the card.

        Raises: CheckpointError when there is none, it is another file's, or it says nothing of an engine.
        """
        if not path.is_file():
            raise CheckpointError(str(path), "no such file", "name an engine that is there")
        if not sidecar(path).is_file():
            fix = f"copy {sidecar(path).name} beside it, which gen_trt_engine wrote with it; or {_AGAIN}"
            raise CheckpointError(str(path), "an engine without its card: nobody knows what it runs, and on what", fix)
        card = ModelCard.beside(path)
        said: Any = card.details.get(DETAIL)
        try:
            if not card.file or said["flavor"] not in TITLES:
                raise KeyError("file")
            known = {item.name for item in fields(cls)}
            parts = {name: value for name, value in said.items() if name in known}
            for name in ("batches", "compute_capability"):
                parts[name] = tuple(parts[name])
            parts["compute_capability"] = tuple(f"{a}.{b}" for a, b in map(capability, parts["compute_capability"]))
            smallest, usual, largest = (int(size) for size in parts["batches"])
            return cls(**{**parts, "batches": (smallest, usual, largest), "version": str(parts["version"])}), card
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(str(sidecar(path)), "says nothing of how an engine was built", _AGAIN) from None

    def check(self, flavour: Flavour, gpu: str, found: tuple[int, int], path: Path) -> Iterator[Problem]:
        """Why a library cannot run the engine on this machine's GPU."""
        if self.version != flavour.version and not (self.version_compatible and self._is_later(flavour)):
            said = f"built by {flavour.title} {self.version}, and {flavour.version} is installed"
            yield Problem(str(path), said, f"{_AGAIN}, or install that version")
        here = "{}.{}".format(*found)
        if not self._runs_on(found):
            built_for = " or ".join(self.compute_capability) + (f" ({self.gpu})" if self.gpu else "")
            said = f"built for a GPU of compute capability {built_for}, and this one, {gpu}, has {here}"
            yield Problem(str(path), said, f"{_AGAIN} on this machine")
        elif self.gpu and self.gpu != gpu and self.hardware_compatibility == "none" and self.flavor == "tensorrt":
            said = f"built on another model of GPU, {self.gpu}; this is {gpu}"
            yield Problem(str(path), said, f"it may be slow, or not run: {_AGAIN}", "warning")
        if self.system and self.system != platform.system():
            yield Problem(str(path), f"built on {self.system}, and this is {platform.system()}", f"{_AGAIN} here")

    def _is_later(self, flavour: Flavour) -> bool:
        """Whether the library may run an engine of any later version of the same major one, or of the one after it."""
        numbers = [int(part) for part in self.version.split(".") if part.isdecimal()]
        here = [int(part) for part in flavour.version.split(".") if part.isdecimal()]
        return numbers <= here and here[:1] <= [numbers[0] + 1]

    def _runs_on(self, found: tuple[int, int]) -> bool:
        if not self.compute_capability:
            return True
        if self.hardware_compatibility == "ampere_plus":
            return found >= (8, 0)
        return found in map(capability, self.compute_capability)
