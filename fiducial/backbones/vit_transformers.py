"""Vision transformers as Hugging Face Transformers names their tensors: the hub's files of ViT-MAE, DeiT and ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["timm_names"]

_PREFIX = re.compile(r"^(vit|deit)\.")
_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classif[a-z]+\.", "head."),
)
_PART = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")
_PARTS = ("query", "key", "value")


def timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; those of another layout stay as they are.

    timm has the projections to queries, keys and values as one.
    """
    if not any("embeddings.patch_embeddings.projection" in key for key in weights):
        return dict(weights)
    named: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        key = _PREFIX.sub("", key)
        if found := _PART.match(key):
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = value
            continue
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        named[key] = value
    for key, three in parts.items():
        if three.keys() == set(_PARTS):  # else it is missing, which is told
            named[key] = torch.cat([three[part] for part in _PARTS])
    return named
