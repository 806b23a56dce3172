"""The classify task as a library: load a trained model, score pairs of pictures.

>>> inspector = changenet.load("results/train")
>>> inspector.score("part.png", "golden.png").decision
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from changenet.classify.data import registered
from changenet.classify.model import score as score_of
from changenet.classify.outputs import DECISIONS
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.task import CLASSIFY
from changenet.classify.transform import Pixels, compose_lights
from changenet.config import ExperimentSpec
from fiducial.checkpoints.reading import read
from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES, resolve_model_file
from fiducial.data.images import read_rgb, to_rgb
from fiducial.deploy.predictors import METADATA, OnnxPredictor
from fiducial.errors import CheckpointError, DatasetError
from fiducial.spec.compose import Source, compose, read_source

if TYPE_CHECKING:
    from fiducial.task import Predictor

__all__ = ["Inspector", "PairScore", "load"]

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file, a PIL image, or a uint8 array ``(H, W, 3)`` RGB or ``(H, W)`` grey, 0..255."""
Lights = Picture | Sequence[Picture] | Mapping[str, Picture]
"""One image: a picture, or one per light (in the order of ``Inspector.lights``, or by light name)."""


@dataclass(frozen=True)
class PairScore:
    """How likely a part is defective. ``score``: a probability (0..1) or an embedding distance (>= 0)."""

    score: float
    decision: str
    """``PASS`` or ``FAIL``: whether the score is above the margin."""


class Inspector:
    """A trained classify model with the preprocessing it was trained with. Make one with :func:`load`.

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

    def score(self, test: Lights, golden: Lights | Sequence[Lights]) -> PairScore:
        """Compare one part with its golden (with several: a sequence of ``dataset.classify.num_golden`` goldens).

        Raises: DatasetError for a picture that cannot be read, or a wrong number of lights or goldens.
        """
        return self.score_many([(test, golden)])[0]

    def score_many(
        self, pairs: Iterable[tuple[Lights, Lights | Sequence[Lights]]], *, batch_size: int = 16
    ) -> list[PairScore]:
        """Compare many parts with their goldens; results in the order of ``pairs``, which may be a generator."""
        results: list[PairScore] = []
        batch: list[tuple[torch.Tensor, torch.Tensor]] = []
        for test, golden in pairs:
            batch.append(self._prepare(test, golden))
            if len(batch) == batch_size:
                results += self._run(batch)
                batch = []
        return results + (self._run(batch) if batch else [])

    def _run(self, batch: list[tuple[torch.Tensor, torch.Tensor]]) -> list[PairScore]:
        device = next((p.device for p in getattr(self._predictor, "network", torch.nn.Module()).parameters()), None)
        test, golden = (torch.stack(images).to(device or "cpu") for images in zip(*batch, strict=True))
        unknown = torch.full((len(batch),), -1)  # nothing says which goldens are the same
        output = self._predictor.predict({"test": test, "golden": golden, "golden_id": unknown})
        margin = np.float32(self.margin)
        scores = score_of(output).float().cpu().numpy()
        return [PairScore(float(score), DECISIONS[int(score > margin)]) for score in scores]

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
        return [np.asarray(_rgb(p).resize((width, height), Image.Resampling.BILINEAR)) for p in pictures]


def load(path: str | Path, *, spec: str | Path | None = None, device: str | torch.device | None = None) -> Inspector:
    """Load a trained classify model.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported ``.onnx`` file. ``spec``:
    the training's YAML; only needed for TAO checkpoints that have no ``experiment.yaml`` beside them. ``device``: where
    torch runs it, a GPU when there is one.

    Raises: CheckpointError when there is no such model, it is damaged or unsafe, or what it is cannot be told.
    """
    found = resolve_model_file(
        path,
        results_dir=None,
        prefix=CLASSIFY.prefix,
        key="path",
        suffixes=(*CHECKPOINT_SUFFIXES, ".onnx"),
    ).path
    if found.suffix.lower() == ".onnx":
        runtime = ClassifyRuntime(_validated(_spec_of_onnx(found)))
        return Inspector(runtime, OnnxPredictor(found, runtime))
    checkpoint = read(found)
    stored = checkpoint.meta.get("hyper_parameters") if "fiducial" in checkpoint.raw else None
    runtime = ClassifyRuntime(_validated(_spec_tree(found, stored, spec)))
    predictor = runtime.torch_predictor(checkpoint)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor.network.to(chosen)
    return Inspector(runtime, predictor)


def _rgb(picture: Picture) -> Image.Image:
    if isinstance(picture, (str, Path)):
        return read_rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            found = f"{picture.dtype} array of shape {picture.shape}"
            raise DatasetError("image", found, "give uint8 (H, W, 3) RGB or (H, W) grey")
        picture = Image.fromarray(picture)
    return to_rgb(picture)


def _validated(tree: dict[str, Any]) -> ExperimentSpec:
    return compose(ExperimentSpec, Source(tree)).spec


def _spec_tree(path: Path, stored: Any, spec: str | Path | None) -> dict[str, Any]:
    beside = path.resolve().parent / "experiment.yaml"
    if spec is not None:
        return read_source(ExperimentSpec, Path(spec), ["task=classify"]).tree
    if isinstance(stored, Mapping) and "model" in stored:
        return dict(stored)
    if beside.is_file():
        return read_source(ExperimentSpec, beside, ["task=classify"]).tree
    raise CheckpointError(str(path), "does not say what it was trained with", "give spec=, the training's YAML file")


def _spec_of_onnx(path: Path) -> dict[str, Any]:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise CheckpointError(str(path), f"not an ONNX file: {error}", "export the model again") from None
    said = {item.key: item.value for item in model.metadata_props}
    if METADATA not in said:
        raise CheckpointError(
            str(path), "does not say how its inputs are prepared", "export it with `changenet export`"
        )
    meta = json.loads(said[METADATA])
    data = {key: meta[key] for key in ("image_height", "image_width", "input_map", "concat_type", "grid_map")}
    data |= {"num_golden": meta["num_golden"], "align": meta["align"], "num_input": len(meta["input_map"] or ()) or 1}
    data["augmentation_config"] = {"rgb_input_mean": meta["mean"], "rgb_input_std": meta["std"]}
    return {
        "task": "classify",
        "model": {
            "backbone": {"type": meta["backbone"]},
            "classify": {"difference_module": meta["difference_module"], "eval_margin": meta["eval_margin"]},
        },
        "dataset": {"classify": data},
    }
