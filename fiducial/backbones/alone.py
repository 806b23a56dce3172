"""Whether images can share a pass through a network, and be left out where they come twice, without another result."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["is_frozen", "sees_images_alone"]


def sees_images_alone(network: nn.Module) -> bool:
    """Whether what becomes of an image depends on that image alone: on no other of its batch, and on no draw.

    In eval mode always; in training unless a part of it is in training and takes batch statistics, drops at random, or
    draws in another way (``draws_in_training``). Compiled graphs are not asked: False.
    """
    if not network.training:
        return True
    if torch.compiler.is_compiling():
        return False
    return not any(part.training and _mixes(part) for part in network.modules())


def is_frozen(network: nn.Module) -> bool:
    """Whether nothing of it is trained and every image is seen alone, so that an image always gives the same."""
    return not any(parameter.requires_grad for parameter in network.parameters()) and sees_images_alone(network)


def _mixes(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, DropPath):
        return bool(part.drop_prob)
    return isinstance(part, _BatchNorm) or getattr(part, "draws_in_training", False)
