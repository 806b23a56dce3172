"""What runs in evaluation: student, teacher or both, on crops, to probabilities within their boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiducial.prediction import Batch, Outputs, Predictor
from mal.decode import mask_prob
from mal.model import MaskNetwork

__all__ = ["BoxLabeler", "BoxPredictor"]


class BoxLabeler(nn.Module):
    """Crops, box masks and areas of boxes to mask probabilities.

    The logits of all ``networks`` are averaged; with ``flip`` also those of the mirrored crops.
    """

    def __init__(self, networks: list[MaskNetwork], *, flip: bool = False) -> None:
        super().__init__()
        self.networks, self.flip = nn.ModuleList(networks), flip

    def forward(self, image: Tensor, boxmask: Tensor, area: Tensor) -> Tensor:
        """``(B, 3, S, S)`` normalised, ``(B, 1, S, S)`` 0 and 1, ``(B,)`` in pixels, to ``(B, 1, S, S)`` in 0..1."""
        return mask_prob(self.logits(image, area), boxmask)

    def logits(self, image: Tensor, area: Tensor) -> Tensor:
        """Before they are resized."""
        found = [network(image, area) for network in self.networks]
        if self.flip:
            found += [network(image.flip(3), area).flip(3) for network in self.networks]
        return torch.stack(found).mean(0) if len(found) > 1 else found[0]


class BoxPredictor(Predictor):
    """Runs a :class:`BoxLabeler` in torch; with ``second`` also another network, for comparison."""

    runtime = "torch"

    def __init__(self, labeler: BoxLabeler, second: BoxLabeler | None = None) -> None:
        self.labeler, self.second = labeler.eval(), None if second is None else second.eval()
        self.network: nn.Module = self.labeler if second is None else nn.ModuleList([labeler, second])

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """``prob`` ``(B, 1, S, S)``, and ``second`` the same."""
        arguments = batch["image"], batch["boxmask"], batch["area"]
        outputs: dict[str, Tensor] = {"prob": self.labeler(*arguments)}
        if self.second is not None:
            outputs["second"] = self.second(*arguments)
        return outputs

    def facts(self) -> dict[str, str]:
        return {"networks": str(len(self.labeler.networks)), "flip": str(self.labeler.flip)}
