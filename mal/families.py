"""What checkpoints of MAL look like, for messages about files that do not fit. No torch."""

from __future__ import annotations

from fiducial.checkpoints.keys import Family

__all__ = ["FAMILIES"]

_PATTERNS = (r"^(model\.)?student\.", r"\bmask_head\.convs\.\d", r"\broi_head\.mlp1\.")

FAMILIES = (Family("MAL", _PATTERNS, "student.backbone."),)
