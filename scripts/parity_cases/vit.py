"""ViT backbones alone: embeddings, checkpoint keys, and how the tensors of a file are made to fit a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fiducial.backbones.dinov2 import DinoV2Embedding
from fiducial.backbones.names import BACKBONES, build_embedding
from fiducial.backbones.radio import VARIANTS, RadioEmbedding, RadioViT
from fiducial.backbones.weights import adapt_state_dict
from fiducial.checkpoints.keys import backbone_keys
from parity_cases import Case, CaseError, NotBuilt, Output, runs

SIZE = (224, 224)
"""Given to builders whose result does not depend on it."""
HUB_MODEL = "c_radio_v2_vit_base_patch16_224"


def _spec_name(name: str) -> str:
    """The name a spec uses; the cases of bare networks leave out the input size that it carries."""
    by_short = {full.replace("_224", ""): full for full in BACKBONES}
    if name in BACKBONES or name in by_short:
        return by_short.get(name, name)
    raise NotBuilt(f"backbone {name}")


def _radio(case: Case) -> RadioEmbedding:
    model = build_embedding(_spec_name(case.config["name"]), image_size=SIZE)
    assert isinstance(model, RadioEmbedding)
    return model.eval()


@runs("radio_run")
@torch.no_grad()
def radio(case: Case) -> Mapping[str, Output]:
    """summary and features, under the keys of a checkpoint of TAO."""
    model = _radio(case)
    model.load_state_dict(case.weights())
    summary, features = model.summary_and_features(case.inputs()["x"])
    return {"summary": summary, "features": features}


@runs("nvradio_run")
@torch.no_grad()
def nvradio(case: Case) -> Mapping[str, Output]:
    """The same with the file of the hub, its own input normalisation and its own way to resize positions."""
    weights = case.weights()
    model = RadioEmbedding(RadioViT(replace(VARIANTS[HUB_MODEL], align_corners=False))).eval()
    model.load_state_dict(adapt_state_dict(HUB_MODEL, "embedding", weights, SIZE))
    mean, std = (weights[f"radio_model.input_conditioner.norm_{kind}"] for kind in ("mean", "std"))
    summary, features = model.summary_and_features((case.inputs()["x"] - mean) / std)
    return {"summary": summary, "features": features}


@runs(None, build="radio")
def radio_keys(case: Case) -> Mapping[str, Output]:
    """Names, order, shapes and dtypes of the checkpoint; there are no outputs."""
    with torch.device("meta"):
        model = _radio(case)
    ours = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    theirs = [list(entry) for entry in case.manifest["state_dict"]]
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            raise CaseError(f"{mine} instead of {other}")
    if len(ours) != len(theirs):
        raise CaseError(f"{len(ours)} keys instead of {len(theirs)}")
    return {}


@runs("forward_run", build="dinov2")
@torch.no_grad()
def dinov2(case: Case) -> Mapping[str, Output]:
    """output: the class token."""
    model = build_embedding(_spec_name(case.config["name"]), image_size=SIZE)
    assert isinstance(model, DinoV2Embedding)
    model.load_state_dict(case.weights())
    return {"output": model.eval()(case.inputs()["x"])}


@runs("interp")
def interpolation(case: Case) -> Mapping[str, Output]:
    """Patch kernel and position table of a checkpoint, resized for the adapter's patch of 16 and an input size."""
    if case.config["target_patch_size"] != 16:
        raise NotBuilt(f"patches of {case.config['target_patch_size']}")
    side = case.config["target_resolution"]
    return adapt_state_dict("vit_large_nvdinov2", "pyramid", case.inputs(), (side, side))


@runs("keymap")
def keymap(case: Case) -> Mapping[str, Output]:
    """count: of the renamed keys; their names and order must be the case's."""
    indices = {key: index for index, key in enumerate(case.config["keys"])}
    found = [list(pair) for pair in backbone_keys(indices).items()]
    if found != case.config["result"]:
        raise CaseError(f"{found} instead of {case.config['result']}")
    return {"count": torch.tensor(len(found))}
