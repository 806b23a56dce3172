"""The GPU that an engine is built on, and runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Gpu", "count", "find"]


@dataclass(frozen=True)
class Gpu:
    """One that is there."""

    device: torch.device
    name: str
    capability: tuple[int, int]

    @property
    def said(self) -> str:
        """Its compute capability: ``8.6``."""
        return "{}.{}".format(*self.capability)


def count() -> int:
    """How many there are that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find(index: int | None = None) -> Gpu | None:
    """One by its number, which this process uses from then on; else the one that it uses. None where there is none."""
    if not count():
        return None
    if index is not None:
        torch.cuda.set_device(index)
    device = torch.device("cuda", torch.cuda.current_device())
    return Gpu(device, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
