"""Visual ChangeNet: is this part like its golden reference (classify), which pixels changed (segment).

As a library::

    import changenet

    inspector = changenet.load("results/train")                # a run, a checkpoint (also TAO's) or an .onnx file
    result = inspector.score("part.png", "golden.png")         # paths, PIL images or arrays
    print(result.score, result.decision)

    model = changenet.build_classifier(                        # an untrained nn.Module for your own loop
        backbone="fan_tiny_8_p4_hybrid", difference_module="learnable", image_size=(224, 224))

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from changenet.classify.api import Inspector, PairScore, load
    from changenet.classify.model import build_classifier

_WHERE = {
    "Inspector": "changenet.classify.api",
    "PairScore": "changenet.classify.api",
    "build_classifier": "changenet.classify.model",
    "load": "changenet.classify.api",
}

__all__ = ["Inspector", "PairScore", "build_classifier", "load"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
