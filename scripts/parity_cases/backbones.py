"""Backbones alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fiducial.backbones.names import BACKBONES, build_pyramid
from parity_cases import Case, NotBuilt, Output, runs

OPTIONS = ("feat_downsample", "use_summary_token")


@runs("pyramid_run")
def pyramid(case: Case) -> Mapping[str, Output]:
    """level0..3: the maps from fine to coarse."""
    name, images = case.config["name"], case.inputs()["x"]
    if name not in BACKBONES:
        raise NotBuilt(f"backbone {name}")
    options = {option: case.config[option] for option in OPTIONS if option in case.config}
    model = build_pyramid(name, image_size=(images.shape[-2], images.shape[-1]), **options)
    model.load_state_dict(case.weights())
    model.train(case.manifest.get("mode") == "train")
    with torch.no_grad():
        return {f"level{index}": x_BCHW for index, x_BCHW in enumerate(model(images))}
