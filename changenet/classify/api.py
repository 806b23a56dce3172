"""The classify task as a library: load a trained model, score pairs of pictures.

>>> inspector = changenet.load("results/train")
>>> inspector.score("part.png", "golden.png").decision
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from changenet.classify.data import registered
from changenet.classify.model import score as score_of
from changenet.classify.outputs import decide, unsound
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.transform import Pixels, compose_lights
from changenet.config import ExperimentSpec
from fiducial.data.pictures import Picture, as_rgb
from fiducial.deploy.card import ModelCard
from fiducial.errors import DatasetError
from fiducial.prediction import Predictor

__all__ = ["Inspector", "Lights", "PairScore"]

Lights = Picture | Sequence[Picture] | Mapping[str, Picture]
"""One image: a picture, or one per light (in the order of ``Inspector.lights``, or by light name)."""


@dataclass(frozen=True)
class PairScore:
    """How likely a part is defective. ``score``: a probability (0..1) or an embedding distance (>= 0)."""

    score: float
    decision: str
    """``PASS`` or ``FAIL``: whether the score is above the margin."""


class Inspector:
    """A trained classify model with the preprocessing it was trained with. Make one with :func:`changenet.load`.

    ``margin`` may be changed; scores above it are FAIL.
    """

    def __init__(self, runtime: ClassifyRuntime, predictor: Predictor) -> None:
        self._runtime, self._predictor = runtime, predictor
        self.margin = runtime.margin
        self.lights = runtime.layout.lights
        """Names of the lights that every image consists of; empty when an image is one picture."""

    @property
    def spec(self) -> ExperimentSpec:
        """The spec the model was trained with."""
        return self._runtime.spec

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode. Raises: ValueError for an exported model, which has none."""
        return self._predictor.module

    def __repr__(self) -> str:
        model, (height, width) = self.spec.model, self._runtime.layout.composed
        lights = f", lights {', '.join(self.lights)}" if self.lights else ""
        what = f"{model.backbone.type}, {model.classify.difference_module}, {height} x {width}{lights}"
        return f"<Inspector: {what}, margin {self.margin:g}, {self._predictor.runtime} on {self._predictor.device}>"

    @staticmethod
    def spec_of(card: ModelCard) -> dict[str, Any]:
        """A spec's tree from what an exported model says of itself. Raises: KeyError when it says too little."""
        about = card.details
        data = {key: about[key] for key in ("image_height", "image_width", "input_map", "concat_type", "grid_map")}
        lights = len(about["input_map"] or ()) or 1
        data |= {"num_golden": about["num_golden"], "align": about["align"], "num_input": lights}
        data["augmentation_config"] = {"rgb_input_mean": list(card.mean), "rgb_input_std": list(card.std)}
        decision = {"difference_module": about["difference_module"], "eval_margin": card.threshold}
        return {
            "task": "classify",
            "model": {"backbone": {"type": card.backbone}, "classify": decision},
            "dataset": {"classify": data},
        }

    def score(self, test: Lights, golden: Lights | Sequence[Lights]) -> PairScore:
        """Compare one part with its golden (with several: a sequence of ``dataset.classify.num_golden`` goldens).

        Raises: DatasetError for a picture that cannot be read, or a wrong number of lights or goldens; MetricError when
            the score, or the margin, is not a finite number.
        """
        return self.score_many([(test, golden)])[0]

    def score_many(
        self, pairs: Iterable[tuple[Lights, Lights | Sequence[Lights]]], *, batch_size: int = 16
    ) -> list[PairScore]:
        """Compare many parts with their goldens; results in the order of ``pairs``, which may be a generator.

        Raises: as :meth:`score`; MetricError naming the pairs, counted from 0, whose score is not a number, or for a
            margin that is none.
        """
        results: list[PairScore] = []
        batch: list[tuple[torch.Tensor, torch.Tensor]] = []
        for test, golden in pairs:
            batch.append(self._prepare(test, golden))
            if len(batch) == batch_size:
                results += self._run(batch, len(results))
                batch = []
        return results + (self._run(batch, len(results)) if batch else [])

    def _run(self, batch: list[tuple[torch.Tensor, torch.Tensor]], first: int) -> list[PairScore]:
        """``first``: the place of the batch's first pair among all, from 0, for messages."""
        device = self._predictor.device
        test, golden = (torch.stack(images).to(device) for images in zip(*batch, strict=True))
        unknown = torch.full((len(batch),), -1)  # nothing says which goldens are the same
        output = self._predictor.predict({"test": test, "golden": golden, "golden_id": unknown})
        scores = score_of(output["output"]).float().cpu().numpy()
        if bad := np.flatnonzero(~np.isfinite(scores)).tolist():
            raise unsound(bad, lambda place: f"pair {first + place}")
        return [PairScore(*result) for result in zip(scores.tolist(), decide(scores, self.margin), strict=True)]

    def _prepare(self, test: Lights, golden: Lights | Sequence[Lights]) -> tuple[torch.Tensor, torch.Tensor]:
        count = self._runtime.layout.num_golden
        goldens: Sequence[Any] = [golden] if count == 1 else list(golden)  # type: ignore[arg-type]
        if len(goldens) != count:
            raise DatasetError("golden", f"{len(goldens)} goldens", f"the model compares with {count}")
        tiles = [self._tiles(image) for image in (test, *goldens)]
        if self._runtime.data.align == "shift":
            tiles[0] = registered(tiles[0], tiles[1])
        test_pixels, *golden_pixels = (compose_lights(image, self._runtime.layout) for image in tiles)
        normalize = self._runtime.normalization
        return normalize(test_pixels), normalize(golden_pixels[0] if count == 1 else np.stack(golden_pixels))

    def _tiles(self, image: Lights) -> list[Pixels]:
        if isinstance(image, Mapping):
            missing = [name for name in self.lights if name not in image]
            if missing:
                raise DatasetError("image", f"no light {', '.join(missing)}", f"give {', '.join(self.lights)}")
            pictures: list[Any] = [image[name] for name in self.lights]
        else:
            single = isinstance(image, (str, Path, Image.Image, np.ndarray))
            pictures = [image] if single else list(image)  # type: ignore[arg-type]
        wanted = max(1, len(self.lights))
        if len(pictures) != wanted:
            names = f" ({', '.join(self.lights)})" if self.lights else ""
            raise DatasetError("image", f"{len(pictures)} pictures", f"the model takes {wanted} per image{names}")
        height, width = self._runtime.layout.tile
        return [np.asarray(as_rgb(p).resize((width, height), Image.Resampling.BILINEAR)) for p in pictures]
