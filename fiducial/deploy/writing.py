"""Model files that appear under their names when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fiducial.errors import CheckpointError

__all__ = ["beside"]


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own; whatever is in there at the end is moved beside ``path``.

    Raises: CheckpointError where the disk or its permissions end it; what stood at ``path`` is untouched then.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
        try:
            yield folder / path.name
            for file in sorted(
                folder.iterdir(), key=lambda file: file.name == path.name
            ):  # the graph after its weights
                os.replace(file, path.with_name(file.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        found = f"cannot be written ({error.strerror or error})"
        raise CheckpointError(
            str(path), found, f"check the folder's permissions and space ({free:,} MiB free)"
        ) from error
