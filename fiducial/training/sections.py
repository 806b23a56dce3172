"""Sections and keys of a spec that several networks have, beside those that all have (``fiducial.spec.common``)."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field

from fiducial.backbones.names import BACKBONES
from fiducial.spec.common import CacheKind, OptionalText
from fiducial.spec.knob import Section, knob

__all__ = ["BackboneSection", "OptimSection", "TensorboardSection"]
__all__ += ["cache_knob", "cache_mb_knob", "precision_knob", "sync_batchnorm_knob"]


class BackboneSection(Section):
    """``model.backbone``: the network that turns each image into feature maps."""

    type: str = knob("fan_small_12_p4_hybrid", "Architecture of the backbone.", options=tuple(BACKBONES), shown=True)
    feat_downsample: bool = knob(False, "Halve the last feature map once more (FAN only).")
    pretrained_backbone_path: OptionalText = knob(
        None,
        "Backbone weights to start from: a file (.pth, .ckpt, .pt, .safetensors), a URL, a hub id, or a run's folder.",
        template="",
        shown=True,
        weights=True,
        actions=("train",),
    )
    freeze_backbone: bool = knob(
        False,
        "Keep the backbone as it is while training; needs pretrained_backbone_path. DINOv3 is meant to be frozen.",
        shown=True,
        actions=("train",),
    )
    activation_checkpointing: bool = knob(
        False, "Recompute activations in the backward pass: less memory, slower steps.", schema=False
    )

    @property
    def weights(self) -> str | None:
        """What training begins with: the file that is named; else, of a frozen DINOv3, the published one, as in TAO."""
        info = BACKBONES.get(self.type)
        return self.pretrained_backbone_path or (info.published if info and self.freeze_backbone else None)


class OptimSection(Section):
    """``train.optim``: optimiser and learning rate."""

    monitor_name: str = knob(
        "val_loss", "Metric that chooses the best checkpoint where train.checkpointer.monitor does not say another."
    )
    optim: Literal["adamw", "adam", "sgd"] = knob("adamw", "Optimiser.")
    lr: float = knob(1e-4, "Learning rate of the first epoch.", ge=0, schema_range=(0, inf), automl=True, shown=True)
    policy: Literal["linear", "step"] = knob(
        "linear", "linear lowers the rate evenly towards zero; step divides it by 10 after each third of the epochs."
    )
    momentum: float = knob(
        0.9,
        "Momentum of sgd; the others do not use it.",
        ge=0,
        usual=(0, 1),
        automl=True,
        search=(0.8, 0.99),
        math_cond="> 0.0",
    )
    weight_decay: float = knob(
        0.01,
        "How strongly weights are pulled towards zero.",
        ge=0,
        usual=(0, 1),
        automl=True,
        search=(1e-4, 0.3),
        math_cond="> 0.0",
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = knob(
        None, "Averaging factors of adam and adamw; null takes 0.9 and 0.999.", schema=False
    )


class TensorboardSection(Section):
    """``train.tensorboard``: pictures and histograms. Scalars are always written."""

    enabled: bool = knob(False, "Write input pictures and histograms of the weights.", aliases=("enable",))
    infrequent_logging_frequency: int = knob(
        2, "Write them every this many epochs; 0 never.", ge=0, schema_range=(0, inf)
    )


def precision_knob() -> str:
    """``precision`` of a ``train`` section."""
    made: str = knob(
        "32-true",
        "Number format of training, in Lightning's words.",
        options=("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"),
        value_type="string",
    )
    return made


def sync_batchnorm_knob() -> bool:
    """``sync_batchnorm`` of a ``train`` section."""
    made: bool = knob(False, "Compute batch statistics over all GPUs.")
    return made


def cache_knob() -> CacheKind:
    """``cache`` of a ``dataset`` section."""
    made: CacheKind = knob(
        "off",
        "Keep decoded and resized pictures for all processes that load data: ram for one run, disk in the cache folder "
        "for later runs, too. Pictures are the same with and without; one whose file changed is read anew.",
        schema=False,
    )
    return made


def cache_mb_knob() -> int:
    """``cache_mb`` of a ``dataset`` section."""
    made: int = knob(
        4096,
        "Most that cache keeps, in MB for each process that trains; what finds no room is read each time.",
        ge=0,
        schema=False,
    )
    return made
