"""Message passing between neighbouring pixels that are either background or foreground: a compiled kernel, or torch."""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor

from fiducial.ops import compiled
from fiducial.ops.kernel import UnavailableError
from fiducial.ops.kernels import ENVIRONMENT

__all__ = ["message_passing", "neighbourhood"]

log = logging.getLogger(__name__)

_EPS = 1e-6


def neighbourhood(radius: int) -> list[tuple[int, int]]:
    """Top left corners of the neighbours' windows in a picture with a border of ``radius``; the pixel is left out."""
    side = range(2 * radius + 1)
    return [(y, x) for y in side for x in side if (y, x) != (radius, radius)]


@torch.no_grad()
def message_passing(
    affinity_JBHW: Tensor, box_BHW: Tensor, prob_BHW: Tensor, *, radius: int, num_iter: int, low: float, high: float
) -> Tensor:
    """``num_iter`` times, of every pixel: each label's probability becomes the product of those around it.

    The factors are ``p ** affinity``, of the pixel itself ``p``; the foreground's product is multiplied by ``box``,
    both are normalised, and the foreground's probability is held within ``low`` and ``high``. It begins as ``prob``
    times ``box``. ``affinity`` is of the neighbours in :func:`neighbourhood`'s order; those beyond the picture say
    nothing. Returns ``(B, H, W)``.

    Raises: ValueError when the shapes do not go together.
    """
    expected = ((2 * radius + 1) ** 2 - 1, *prob_BHW.shape)
    if affinity_JBHW.shape != expected or box_BHW.shape != prob_BHW.shape:
        raise ValueError(f"affinities of {tuple(affinity_JBHW.shape)}, boxes of {tuple(box_BHW.shape)}, not {expected}")
    x_BHW = (prob_BHW * box_BHW).clamp_(low, high)
    arguments = affinity_JBHW.contiguous(), box_BHW.contiguous(), x_BHW
    if all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in arguments) and _is_compiled():
        torch.ops.fiducial.message_passing_into(*arguments, num_iter, radius, low, high)
        return x_BHW
    return by_torch(*arguments, radius=radius, num_iter=num_iter, low=low, high=high)


def by_torch(
    affinity_JBHW: Tensor, box_BHW: Tensor, x_BHW: Tensor, *, radius: int, num_iter: int, low: float, high: float
) -> Tensor:
    """:func:`message_passing` without a kernel, of probabilities ``x`` within their bounds."""
    batch, height, width = x_BHW.shape
    # log-probabilities of background and foreground, with a border that contributes nothing
    padded = x_BHW.new_zeros(2, batch, height + 2 * radius, width + 2 * radius)
    inner = padded[:, :, radius : radius + height, radius : radius + width]
    message = torch.empty_like(inner, memory_format=torch.contiguous_format)
    neighbours = [padded[:, :, y : y + height, x : x + width] for y, x in neighbourhood(radius)]
    for _ in range(num_iter):
        torch.log(1 - x_BHW, out=inner[0])
        torch.log(x_BHW, out=inner[1])
        message.copy_(inner)  # a pixel is its own neighbour, with affinity 1
        for weight, neighbour in zip(affinity_JBHW, neighbours, strict=True):
            message.addcmul_(weight, neighbour)
        background, foreground = message.exp_()
        foreground.mul_(box_BHW)
        x_BHW = (foreground / background.add_(foreground).add_(_EPS)).clamp_(low, high)
    return x_BHW


@functools.cache
def _is_compiled() -> bool:
    """Whether the kernel serves here. The first use may compile it; said once where it cannot."""
    try:
        if os.environ.get(ENVIRONMENT) == "torch":
            raise UnavailableError(f"{ENVIRONMENT}=torch")
        compiled.load_library("cpu")
    except UnavailableError as reason:
        log.info("message passing on cpu: torch, slower than the compiled kernel (%s)", reason)
        return False
    return True
