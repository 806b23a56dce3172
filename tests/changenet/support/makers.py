"""What the tests of both tasks make their data and specs with."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def with_changes(spec: dict, changes: dict) -> dict:
    """``spec``, changed in place; the keys of ``changes`` are dotted keys with ``__`` for the dots."""
    for name, value in changes.items():
        *folders, last = name.split("__")
        place = spec
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return spec
