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

__all__ = ["gelu_again", "norm_again", "run_block", "swiglu_again"]


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
    return _again(x, F.gelu(x), F.gelu, then)


def swiglu_again(x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    """``then(silu(gate) * value)``, the two halves of ``x``'s last axis, as :func:`gelu_again` does it."""
    gate, value = x.chunk(2, dim=-1)
    product = _again(gate, F.silu(gate), F.silu, lambda active: active * value)
    return _again(x, product, _swiglu, then)


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def norm_again(norm: nn.Module, x: Tensor, then: Callable[[Tensor], Tensor], *, relu: bool = False) -> Tensor:
    """``then(norm(x))``, or with ``relu`` ``then(relu(norm(x)))``, as :func:`gelu_again` does it.

    Of a batch norm the running statistics count each batch once. Norms other than torch's batch and layer norm, as
    those that several processes share, are left as they are.
    """
    rest = (lambda normed: then(F.relu_(normed))) if relu else then
    if type(norm) not in (nn.BatchNorm2d, nn.LayerNorm):
        return rest(norm(x))
    make = partial(_normed, norm, norm.training)
    return _again(x, norm(x), (lambda x: F.relu_(make(x))) if relu else make, rest)


def _normed(norm: nn.Module, by_batch: bool, x: Tensor) -> Tensor:
    """What ``norm`` made of ``x`` when it was training or not, counting nothing."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    assert isinstance(norm, nn.BatchNorm2d)
    running = (None, None) if by_batch else (norm.running_mean, norm.running_var)
    return F.batch_norm(x, *running, norm.weight, norm.bias, by_batch, 0.0, norm.eps)


def _again(x: Tensor, active: Tensor, make: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor]) -> Tensor:
    """``then(active)``. What it keeps of ``active``, changed in place or not, is ``make(x)`` in the backward pass."""
    if not (x.requires_grad and torch.is_grad_enabled()) or active.dtype != x.dtype or _is_watched():
        return then(active)  # autocast made another type of it, and is over when the backward pass runs
    source, dtype, storage = x.detach(), active.dtype, active.untyped_storage()._cdata
    uses = 0
    made: list[Tensor] = []  # for the uses of one backward pass

    def keep(saved: Tensor) -> Tensor | _View:  # it lives as long as the backward pass: it must not refer to active
        nonlocal uses
        if saved.untyped_storage()._cdata != storage or saved.dtype != dtype:
            return saved
        uses += 1
        return _View(saved.shape, saved.stride(), int(saved.storage_offset()))

    def give(kept: Tensor | _View) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if not made:
            with torch.no_grad():
                made.extend([make(source)] * uses)
        return made.pop().as_strided(*kept)

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
