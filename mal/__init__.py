"""MAL, the Mask Auto-Labeler: boxes in, instance masks out.

As a library::

    import mal

    labeler = mal.load("results/train")                  # a run, a checkpoint (also TAO's) or an .onnx file
    found = labeler.label("street.jpg", [(40, 60, 180, 220)])   # corners x0, y0, x1, y1 in pixels
    print(found[0].mask.sum(), found[0].score, found[0].polygons)

    network = mal.build_labeler("vit-mae-base/16")       # an untrained nn.Module for your own loop

    result = mal.run("inference", "spec.yaml", "inference.checkpoint=results")   # an action, as its command does it
    print(result.kpis, result.files)

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fiducial import __version__
from fiducial.lazy import lazy

if TYPE_CHECKING:
    from fiducial.actions.result import Result
    from mal.api import Labeler, LabelledBox, load, run
    from mal.data import BoxBatch, BoxDataset
    from mal.lightning import MalModule
    from mal.model import build_labeler

_WHERE = {
    "BoxBatch": "mal.data",
    "BoxDataset": "mal.data",
    "LabelledBox": "mal.api",
    "Labeler": "mal.api",
    "MalModule": "mal.lightning",
    "Result": "fiducial.actions.result",
    "build_labeler": "mal.model",
    "load": "mal.api",
    "run": "mal.api",
}

__all__ = [
    "BoxBatch",
    "BoxDataset",
    "Labeler",
    "LabelledBox",
    "MalModule",
    "Result",
    "__version__",
    "build_labeler",
    "load",
    "run",
]

__getattr__, __dir__ = lazy(__name__, _WHERE)
