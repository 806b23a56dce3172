"""Names of Hugging Face Transformers, against its published layout."""

import pytest
import torch

from fiducial.backbones.mae import build_vit
from fiducial.backbones.vit_transformers import timm_names

PLACES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def as_transformers(weights, prefix):
    """What the library would have written."""
    found = {}
    for key, value in weights.items():
        block, _, rest = key.partition(".")[2].partition(".") if key.startswith("blocks.") else ("", "", key)
        if rest.startswith("head."):
            found[rest.replace("head.", "classifier.")] = value
            continue
        inside = f"encoder.layer.{block}." if block else ""
        if rest.startswith("attn.qkv."):
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{prefix}{inside}attention.attention.{name}.{rest[9:]}"] = part
        else:
            place = next(name for name in sorted(PLACES, reverse=True) if rest == name or rest.startswith(f"{name}."))
            found[f"{prefix}{inside}{PLACES[place]}{rest[len(place) :]}"] = value
    return found


@pytest.mark.parametrize("prefix", ["vit.", "deit.", ""])
def test_all_tensors_are_found(prefix):
    weights = build_vit("vit-deit-tiny/16").state_dict()
    given = as_transformers(weights, prefix)
    assert not set(given) & set(weights)
    found = timm_names(given)
    assert set(found) == set(weights)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_other_layouts_stay():
    weights = {"blocks.0.norm1.weight": torch.ones(2), "layernorm.weight": torch.ones(2)}
    assert timm_names(weights).keys() == weights.keys()


def test_a_part_that_is_missing_is_missing_as_a_whole():
    given = as_transformers(build_vit("vit-deit-tiny/16").state_dict(), "vit.")
    del given["vit.encoder.layer.3.attention.attention.key.bias"]
    assert "blocks.3.attn.qkv.bias" not in timm_names(given)
