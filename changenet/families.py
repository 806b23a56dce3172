"""What checkpoints of ChangeNet look like, for messages about files that do not fit. No torch."""

from __future__ import annotations

from fiducial.checkpoints.keys import Family

__all__ = ["FAMILIES"]

_BACKBONE = "model.backbone."

FAMILIES = (
    Family("ChangeNet segment", (r"\bdecoder\.change_probability\.",), _BACKBONE),
    Family("ChangeNet classify", (r"\bdecoder\.diff_c\d\.",), _BACKBONE),
    Family("ChangeNet classify", (r"^(model\.)?fc1\.\d\.", r"^(model\.)?backbone\."), _BACKBONE),
)
