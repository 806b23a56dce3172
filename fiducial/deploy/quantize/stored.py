"""A quantized checkpoint, read: its weights as floating-point numbers, and how the small numbers get into a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Stored", "submodule"]


@dataclass(frozen=True)
class Stored:
    """The weights of a quantized checkpoint."""

    weights: dict[str, Tensor]
    """Floating-point numbers, by the names of the file: what a network is loaded with first."""
    put: Callable[[nn.Module], None]
    """Makes that network a quantized one, in place."""


def submodule(network: nn.Module, name: str) -> nn.Module:
    """The layer of a name in the file, which may begin with ``model.``. Raises: AttributeError when there is none."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return network.get_submodule(name.removeprefix("model."))
