"""Visual ChangeNet: is this part like its golden reference (classify), which pixels changed (segment).

As a library::

    import changenet

    inspector = changenet.load("results/train")                # a run, a checkpoint (also TAO's) or an .onnx file
    result = inspector.score("part.png", "golden.png")         # paths, PIL images or arrays
    print(result.score, result.decision)

    detector = changenet.load("results/train")                 # of a run of task segment
    change = detector.detect("2019.tif", "2024.tif")           # of any size
    print(change.mask.mean(), change.changed.max())

    model = changenet.build_classifier(                        # an untrained nn.Module for your own loop
        backbone="fan_tiny_8_p4_hybrid", difference_module="learnable", image_size=(224, 224))
    model = changenet.build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(256, 256))

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from changenet.api import load
    from changenet.classify.api import Inspector, PairScore
    from changenet.classify.model import build_classifier
    from changenet.segment.api import Change, ChangeDetector
    from changenet.segment.model import build_segmenter

_WHERE = {
    "Change": "changenet.segment.api",
    "ChangeDetector": "changenet.segment.api",
    "Inspector": "changenet.classify.api",
    "PairScore": "changenet.classify.api",
    "build_classifier": "changenet.classify.model",
    "build_segmenter": "changenet.segment.model",
    "load": "changenet.api",
}

__all__ = ["Change", "ChangeDetector", "Inspector", "PairScore", "build_classifier", "build_segmenter", "load"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
