"""DINOv3 with four blocks of 32 channels, under a published name."""

import dataclasses
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from fiducial.backbones import dinov3, names

NAME, WIDTH = "vit_small_dinov3", 32
SIZES = {"embed_dim": WIDTH, "depth": 4, "num_heads": 4}


def shrink(monkeypatch) -> None:
    """Builds of the name give the small network from now on."""
    monkeypatch.setattr(dinov3, "build_vit", partial(dinov3.build_vit, **SIZES))
    info = dataclasses.replace(names.BACKBONES[NAME], channels=(WIDTH,) * 4, depth=4, embedding_dim=WIDTH)
    monkeypatch.setitem(names.BACKBONES, NAME, info)


def write_weights(folder: Path) -> Path:
    """A file in timm's layout, as its hub has it."""
    path = folder / "model.safetensors"
    save_file(dinov3.build_vit(NAME).state_dict(), path)
    return path
