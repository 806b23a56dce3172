"""Trading time for memory: what a block, or one cheap layer, gave is computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

__all__ = ["gelu_again", "run_block"]


def run_block(enabled: bool, block: nn.Module, x: Tensor, *size: int) -> Tensor:
    """``block(x, *size)``; when enabled, computed twice in training. Running statistics count each batch once."""
    if enabled and torch.is_grad_enabled():
        contexts = partial(_recomputation_contexts, block)
        out: Tensor = checkpoint(block, x, *size, use_reentrant=False, context_fn=contexts)
    else:
        out = block(x, *size)
    return out


def _recomputation_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_kept(block) if block.training else nullcontext()


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """The second run of a checkpointed block must not count its batch again in the running statistics."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def gelu_again(x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    """``then(gelu(x))``, equal in value and gradient; ``then``'s backward pass computes the GELU anew from ``x``.

    ``x`` is kept for the GELU's own gradient in any case, so this halves what the two keep, for the time of a GELU.
    """
    active = F.gelu(x)
    if not (x.requires_grad and torch.is_grad_enabled()) or _is_watched():
        return then(active)
    source, dtype, storage = x.detach(), active.dtype, active.untyped_storage().data_ptr()

    def keep(saved: Tensor) -> Tensor | _View:  # it lives as long as the backward pass: it must not refer to active
        if saved.untyped_storage().data_ptr() != storage or saved.dtype != dtype:
            return saved
        return _View(saved.shape, saved.stride(), int(saved.storage_offset()))

    def give(kept: Tensor | _View) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return F.gelu(source).as_strided(*kept)

    with saved_tensors_hooks(keep, give):
        return then(active)


class _View(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _is_watched() -> bool:
    """Whether others decide what is kept: compilers and tracers, transforms, hooks as those of checkpointed blocks."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch's own: it may go, or change
    return (
        hooks is None
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or hooks(True) is not None
    )
