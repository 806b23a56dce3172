"""Published files of plain vision transformers, as :class:`fiducial.backbones.mae.ViTEncoder` takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["as_plain_vit"]

_TRAINED = "base_encoder."
"""Before the names of the encoder that MoCo v3 trains; its average is beside it."""
_SCALE = re.compile(r"(blocks\.\d+\.)(?:ls|gamma_)([12])(?:\.gamma)?")
_SCALED = {"1": "attn.proj", "2": "mlp.fc2"}
"""The layers whose outputs DeiT III multiplies by a learned scale."""


def as_plain_vit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without what a plain transformer has no place for, which computes the same with them.

    Layer scales become part of the layer before them, and a position table without a place for the class token gets
    one that adds nothing (DeiT III). Of MoCo v3's two encoders the trained one is taken.
    """
    if any(key.startswith(_TRAINED) for key in weights):
        weights = {key.removeprefix(_TRAINED): v for key, v in weights.items() if key.startswith(_TRAINED)}
    plain = {key: value for key, value in weights.items() if not _SCALE.fullmatch(key)}
    for key, scale in weights.items():
        if found := _SCALE.fullmatch(key):
            layer = found[1] + _SCALED[found[2]]
            for name, shaped in ((f"{layer}.weight", scale[:, None]), (f"{layer}.bias", scale)):
                if name in plain:
                    plain[name] = plain[name] * shaped
    table = plain.get("pos_embed")
    if table is not None and table.ndim == 3 and round(table.shape[1] ** 0.5) ** 2 == table.shape[1]:
        plain["pos_embed"] = torch.cat((table.new_zeros(1, 1, table.shape[2]), table), 1)
    return plain
