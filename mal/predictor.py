"""What runs in evaluation: student, teacher or both, on crops, to probabilities within their boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiducial.deploy.compiled import compile_calls
from fiducial.prediction import Batch, Outputs, Predictor
from fiducial.spec.common import CompileMode
from mal.decode import mask_prob
from mal.model import MaskNetwork

__all__ = ["BoxLabeler", "BoxPredictor"]


class BoxLabeler(nn.Module):
    """Crops, box masks and areas of boxes to mask probabilities.

    The logits of all ``networks`` are averaged; with ``flip`` also those of the mirrored crops. ``second`` is carried
    along, for a comparison; ``features``: whether those of the first network's backbone are looked at, too.
    """

    def __init__(
        self,
        networks: list[MaskNetwork],
        *,
        flip: bool = False,
        second: BoxLabeler | None = None,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.networks, self.flip, self.second, self.features = nn.ModuleList(networks), flip, second, features

    def forward(self, image: Tensor, boxmask: Tensor, area: Tensor) -> Tensor:
        """``(B, 3, S, S)`` normalised, ``(B, 1, S, S)`` 0 and 1, ``(B,)`` in pixels, to ``(B, 1, S, S)`` in 0..1."""
        return mask_prob(self.logits(image, area), boxmask)

    def logits(self, image: Tensor, area: Tensor) -> Tensor:
        """Before they are resized."""
        found = [network(image, area) for network in self.networks]
        if self.flip:
            found += [network(image.flip(3), area).flip(3) for network in self.networks]
        return torch.stack(found).mean(0) if len(found) > 1 else found[0]

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """``prob`` ``(B, 1, S, S)``, ``second`` the same, ``feature`` ``(B, D, h, w)``."""
        arguments = batch["image"], batch["boxmask"], batch["area"]
        found: dict[str, Tensor] = {"prob": self(*arguments)}
        if self.second is not None:
            found["second"] = self.second(*arguments)
        if self.features:
            found["feature"] = self.networks[0].backbone(batch["image"])  # type: ignore[operator]
        return found


class BoxPredictor(Predictor):
    """Runs a :class:`BoxLabeler` in torch, and its ``second`` where it has one."""

    runtime = "torch"

    def __init__(self, labeler: BoxLabeler) -> None:
        self.network: nn.Module = labeler.eval()
        self.labeler = labeler

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """:meth:`BoxLabeler.outputs`."""
        return self.labeler.outputs(batch)

    def compile(self, mode: CompileMode | bool = True) -> None:
        super().compile(mode)
        if self.labeler.second is not None:
            compile_calls(self.labeler.second, self.compiled_calls, mode)

    def facts(self) -> dict[str, str]:
        return {"networks": str(len(self.labeler.networks)), "flip": str(self.labeler.flip)}
