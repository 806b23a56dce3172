"""What checkpoints of ML Recog look like, for messages about files that do not fit. No torch."""

from __future__ import annotations

from fiducial.checkpoints.keys import Family

__all__ = ["FAMILIES"]

FAMILIES = (Family("ML Recog", (r"^(model\.)?embedder\.(net\.0|embedding_fc\.1)\.",)),)
