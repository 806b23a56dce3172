"""Sizes of plain vision transformers and the names that mean them. No torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VIT_SIZES", "ViTSize", "parse_vit"]


@dataclass(frozen=True)
class ViTSize:
    """Width, depth and heads of a vision transformer."""

    dim: int
    depth: int
    heads: int


VIT_SIZES = {
    "tiny": ViTSize(192, 12, 3),
    "small": ViTSize(384, 12, 6),
    "base": ViTSize(768, 12, 12),
    "large": ViTSize(1024, 24, 16),
    "huge": ViTSize(1280, 32, 16),
}


def parse_vit(arch: str) -> tuple[ViTSize, int]:
    """Size and patch of a name such as ``vit-mae-base/16``. Raises: ValueError for a name that says neither."""
    name, _, patch = arch.rpartition("/")
    size = next((size for word, size in VIT_SIZES.items() if name.startswith("vit") and word in name), None)
    if size is None or patch not in ("8", "14", "16"):
        sizes = ", ".join(VIT_SIZES)
        raise ValueError(f"{arch!r} is no vision transformer; write vit-mae-SIZE/PATCH with SIZE one of {sizes}")
    return size, int(patch)
