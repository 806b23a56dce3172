"""Visual ChangeNet: is this part like its golden reference (classify), which pixels changed (segment).

As a library::

    import changenet

    inspector = changenet.load_inspector("results/train")      # a run, a checkpoint (also TAO's) or an .onnx file
    result = inspector.score("part.png", "golden.png")         # paths, PIL images or arrays
    print(result.score, result.decision)

    detector = changenet.load_detector("results/train")        # of a run of task segment
    change = detector.detect("2019.tif", "2024.tif")           # of any size
    print(change.mask.mean(), change.changed.max())

    model = changenet.build_classifier(                        # an untrained nn.Module for your own loop
        backbone="fan_tiny_8_p4_hybrid", difference_module="learnable", image_size=(224, 224))
    model = changenet.build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(256, 256))

    result = changenet.run("train", "spec.yaml", "train.num_epochs=3")  # an action, as its command does it
    print(result.kpis, result.files)

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fiducial import __version__
from fiducial.lazy import lazy

if TYPE_CHECKING:
    from changenet.api import load, load_detector, load_inspector, run
    from changenet.classify.api import Inspector, PairScore
    from changenet.classify.data import PairBatch, PairDataset
    from changenet.classify.lightning import ClassifyModule
    from changenet.classify.model import build_classifier
    from changenet.segment.api import Change, ChangeDetector
    from changenet.segment.data import SceneBatch, SceneDataset
    from changenet.segment.lightning import SegmentModule
    from changenet.segment.model import build_segmenter
    from fiducial.actions.result import Result

_WHERE = {
    "Change": "changenet.segment.api",
    "ChangeDetector": "changenet.segment.api",
    "ClassifyModule": "changenet.classify.lightning",
    "Inspector": "changenet.classify.api",
    "PairBatch": "changenet.classify.data",
    "PairDataset": "changenet.classify.data",
    "PairScore": "changenet.classify.api",
    "Result": "fiducial.actions.result",
    "SceneBatch": "changenet.segment.data",
    "SceneDataset": "changenet.segment.data",
    "SegmentModule": "changenet.segment.lightning",
    "build_classifier": "changenet.classify.model",
    "build_segmenter": "changenet.segment.model",
    "load": "changenet.api",
    "load_detector": "changenet.api",
    "load_inspector": "changenet.api",
    "run": "changenet.api",
}

__all__ = [
    "Change",
    "ChangeDetector",
    "ClassifyModule",
    "Inspector",
    "PairBatch",
    "PairDataset",
    "PairScore",
    "Result",
    "SceneBatch",
    "SceneDataset",
    "SegmentModule",
    "__version__",
    "build_classifier",
    "build_segmenter",
    "load",
    "load_detector",
    "load_inspector",
    "run",
]

__getattr__, __dir__ = lazy(__name__, _WHERE)
