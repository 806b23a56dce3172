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
    """Replace a method of ``network`` by its compiled one, forward and backward; sizes that change become open."""
    import torch._inductor.config  # takes seconds

    torch._inductor.config.fallback_random = True  # dropout draws the numbers that it draws uncompiled
    setattr(network, call, _Compiled(getattr(network, call), None if isinstance(mode, bool) else mode))


class _Compiled:
    """Goes back to the method itself where it cannot be compiled, or for no more shapes.

    Any other error, once it has worked, is one of the training.
    """

    def __init__(self, eager: Callable[..., Any], mode: str | None) -> None:
        self._eager = eager
        self._call: Callable[..., Any] = torch.compile(eager, fullgraph=True, mode=mode)
        self._has_worked = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._call is not self._eager:
            try:
                found = self._call(*arguments, **options)
                self._has_worked = True
                return found
            except Exception as error:  # whatever a compiler says: where the network is wrong, the last line says so
                from torch._dynamo.exc import FailOnRecompileLimitHit  # takes a second

                if self._has_worked and not isinstance(error, FailOnRecompileLimitHit):
                    raise
                self._call = self._eager
                told = one_line(f"{type(error).__name__}: {error}", 200)
                log.warning("the network trains uncompiled: it cannot be compiled (%s)", told)
        return self._eager(*arguments, **options)
