"""The trunks that ``model.backbone`` can name, and what must be known of them before one is built. No torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RESNET", "TRUNKS", "TrunkInfo"]

RESNET, FAN, NVDINOV2 = "ResNet", "FAN", "NVDINOv2"


@dataclass(frozen=True)
class TrunkInfo:
    """One trunk."""

    family: str
    arch: str
    """What the family's module calls it."""
    width: int
    """Numbers of its output."""
    multiple: int = 1
    """Height and width of an image must be multiples of this."""

    @property
    def has_linear_head(self) -> bool:
        """Whether the embedder is one linear layer; else it is the dual head, whose width TAO never asks the spec."""
        return self.family == RESNET


TRUNKS = {
    "resnet_50": TrunkInfo(RESNET, "resnet_50", 2048),
    "resnet_101": TrunkInfo(RESNET, "resnet_101", 2048),
    "fan_tiny": TrunkInfo(FAN, "fan_tiny_8_p4_hybrid", 192, multiple=16),
    "fan_small": TrunkInfo(FAN, "fan_small_12_p4_hybrid", 384, multiple=16),
    "fan_base": TrunkInfo(FAN, "fan_base_16_p4_hybrid", 448, multiple=16),
    "fan_large": TrunkInfo(FAN, "fan_large_16_p4_hybrid", 480, multiple=16),
    "nvdinov2_vit_large_legacy": TrunkInfo(NVDINOV2, "vit_large_nvdinov2", 1024, multiple=14),
}
"""By the name in the spec."""
