"""ML Recog: recognise a product by its nearest neighbours in a gallery of reference pictures.

As a library::

    import mlrecog

    recognizer = mlrecog.load("results/train")     # a run, a checkpoint (also TAO's) or an .onnx file
    embeddings = recognizer.embed(["a.jpg", "b.jpg"])          # unit vectors, (2, D)
    found = recognizer.search("a.jpg", "shop", k=3)  # what `mlrecog gallery build` keeps
    print(found[0].label, found[0].matches[0].distance)

    network = mlrecog.build_recognizer("resnet_50", feat_dim=256)   # an untrained nn.Module for your own loop

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fiducial import __version__
from fiducial.lazy import lazy

if TYPE_CHECKING:
    from fiducial.actions.result import Result
    from mlrecog.api import Match, Recognition, TrainedRecognizer, load, run
    from mlrecog.data import ClassImages, ImageBatch
    from mlrecog.gallery import Gallery, open_gallery
    from mlrecog.lightning import RecogModule
    from mlrecog.model import build_recognizer

_WHERE = {
    "ClassImages": "mlrecog.data",
    "Gallery": "mlrecog.gallery",
    "ImageBatch": "mlrecog.data",
    "Match": "mlrecog.api",
    "RecogModule": "mlrecog.lightning",
    "Recognition": "mlrecog.api",
    "Result": "fiducial.actions.result",
    "TrainedRecognizer": "mlrecog.api",
    "build_recognizer": "mlrecog.model",
    "load": "mlrecog.api",
    "open_gallery": "mlrecog.gallery",
    "run": "mlrecog.api",
}

__all__ = [
    "ClassImages",
    "Gallery",
    "ImageBatch",
    "Match",
    "RecogModule",
    "Recognition",
    "Result",
    "TrainedRecognizer",
    "__version__",
    "build_recognizer",
    "load",
    "open_gallery",
    "run",
]

__getattr__, __dir__ = lazy(__name__, _WHERE)
