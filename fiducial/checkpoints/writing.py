"""Lightning's checkpoint files: a crash at any moment leaves the old one or the new one, never half of one."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fiducial.checkpoints.atomic import save_atomically
from fiducial.checkpoints.keys import unwrapped
from fiducial.checkpoints.reading import read_raw
from fiducial.checkpoints.resolving import real_file
from fiducial.errors import CheckpointError

log = logging.getLogger(__name__)

_CONTAINERS = (list, tuple, set, torch.Size)
_DICTS = (dict, OrderedDict, Counter)
_LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device),
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all and read without running code from them.

    ``encryption_key`` opens files that TAO encrypted; nothing is written encrypted. Remote paths (``s3://``) are left
    to Lightning's own code, with ``weights_only=True``.
    """

    def __init__(self, encryption_key: str | None = None) -> None:
        super().__init__()
        self.encryption_key = encryption_key

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises: CheckpointError when the file cannot be written; the one that was there before stays."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        odd = list(not_plain(checkpoint))
        if odd:
            log.warning("%s: will not open with weights_only=True: %s", path, ", ".join(odd[:3]))
        save_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The whole content as tensors and plain data; ``weights_only`` changes nothing, as no code is ever run.

        Raises: CheckpointError, as :func:`fiducial.checkpoints.reading.read`.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
        raw, _ = read_raw(real_file(path), device=device, mmap=False, key=self.encryption_key)
        if not isinstance(raw, dict) or not isinstance(raw.get("state_dict"), dict):
            raise CheckpointError(str(path), "not a Lightning checkpoint", "resume from a file that training wrote")
        weights = unwrapped({str(name): value for name, value in raw["state_dict"].items()})
        return {**cast(dict[str, Any], raw), "state_dict": weights}


def not_plain(tree: Any, path: str = "checkpoint") -> Iterator[str]:
    """Where a tree holds what ``torch.load(weights_only=True)`` refuses: ``checkpoint['x'][0] (pathlib.PosixPath)``."""
    kind = type(tree)
    if kind in _DICTS:
        for key, value in tree.items():
            yield from not_plain(key, f"{path} key")
            yield from not_plain(value, f"{path}[{key!r}]")
    elif kind in _CONTAINERS:
        for index, value in enumerate(tree):
            yield from not_plain(value, f"{path}[{index}]")
    elif kind not in _LEAVES:
        yield f"{path} ({kind.__module__}.{kind.__qualname__})"
