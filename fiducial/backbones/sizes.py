"""Inputs of a wrong size are refused where they come in, by their numbers, not by whichever layer fails first."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_images", "shape_of"]


def shape_of(x: Tensor) -> tuple[int, ...]:
    """The shape as numbers to compare; while torch.jit traces, sizes are tensors and would become part of the graph."""
    return tuple(int(size) if isinstance(size, Tensor) else size for size in x.shape)


def check_images(images: Tensor, *, multiple: int) -> tuple[int, int]:
    """Height and width of images ``(B, 3, H, W)``.

    Raises: ValueError for another shape, or when a side is no multiple of ``multiple`` pixels.
    """
    shape = shape_of(images)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), found shape {shape}")
    height, width = shape[2:]
    if height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple} pixels, found {height}×{width}")
    return height, width
