"""Trading time for memory: activations of a block are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_block"]


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
