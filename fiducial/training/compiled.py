"""A network that trains compiled: ``torch.compile`` of the methods that its module calls, by their names.

The weights keep their names, as nothing is wrapped. What cannot be compiled trains as it is, and one line says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fiducial.errors import one_line
from fiducial.spec.common import CompileMode

__all__ = ["compile_training"]

log = logging.getLogger("fiducial")


def compile_training(network: nn.Module, call: str, mode: CompileMode | bool = True) -> None:
    """Replace a method of ``network`` by its compiled one, forward and backward, for batches of one size at a time."""
    import torch._inductor.config  # takes seconds

    torch._inductor.config.fallback_random = True  # dropout draws the numbers that it draws uncompiled
    setattr(network, call, _Compiled(getattr(network, call), None if isinstance(mode, bool) else mode))


class _Compiled:
    """Falls back to the method itself until it has worked once: later, an error is an error of the training."""

    def __init__(self, eager: Callable[..., Any], mode: str | None) -> None:
        self._eager = self._call = eager
        self._compiled: Callable[..., Any] | None = torch.compile(eager, fullgraph=True, mode=mode)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._compiled is not None:
            try:
                found = self._compiled(*arguments, **options)
                self._call, self._compiled = self._compiled, None
                return found
            except Exception as error:  # whatever a compiler says: where the network is wrong, the next line says so
                self._compiled = None
                told = one_line(f"{type(error).__name__}: {error}", 200)
                log.warning("the network trains uncompiled: it cannot be compiled (%s)", told)
        return self._call(*arguments, **options)
