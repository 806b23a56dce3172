"""Writing checkpoints so that a crash at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fiducial.checkpoints.reading import read_raw
from fiducial.checkpoints.resolving import real_file
from fiducial.errors import CheckpointError

log = logging.getLogger(__name__)

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
_writing: set[Path] = set()
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
        if not isinstance(raw, dict) or "state_dict" not in raw:
            raise CheckpointError(str(path), "not a Lightning checkpoint", "resume from a file that training wrote")
        return cast(dict[str, Any], raw)


def save_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file through a temporary one in the same folder: complete on the disk before it gets its name.

    What killed processes of this machine left behind in the folder is removed first.
    Raises: CheckpointError when the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        with _temporary(path) as temporary:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        raise CheckpointError(
            str(path), f"cannot be written ({error})", f"check the folder's permissions and space ({free:,} MiB free)"
        ) from error


def link(target: Path, link_path: Path) -> None:
    """Makes ``link_path`` a relative symlink to ``target``, in one step; where links fail a hard link, else a copy.

    Raises: CheckpointError when ``target`` is no file, or is ``link_path`` itself.
    """
    real = real_file(target).resolve()
    path = Path(os.path.abspath(link_path))
    if real == path.parent.resolve() / path.name:
        raise CheckpointError(str(path), "a link to itself was asked for", "link to the checkpoint's own file")
    relative = os.path.relpath(real, path.parent.resolve())
    ways: tuple[Callable[[Path], object], ...] = (
        lambda temporary: temporary.symlink_to(relative),
        lambda temporary: os.link(real, temporary),
        lambda temporary: shutil.copyfile(real, temporary),
    )
    with _temporary(path) as temporary:
        for attempt, way in enumerate(ways):
            try:
                way(temporary)
                break
            except (OSError, NotImplementedError) as error:
                log.debug("%s: %s", path, error)
                if attempt == len(ways) - 1:
                    raise CheckpointError(str(path), f"cannot be written ({error})", "check the folder") from error
        os.replace(temporary, path)
    _sync_folder(path.parent)


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


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    _writing.add(temporary)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _writing.discard(temporary)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f".*.{_HOST}.*.tmp"):
        number = path.name.split(".")[-2]
        if path not in _writing and number.isdecimal() and not _runs(int(number)):
            path.unlink(missing_ok=True)
            log.info("removed %s, left by a process that was killed", path)


def _runs(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process, or a system that cannot tell
        return True
    return True


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where folders cannot be synced
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
