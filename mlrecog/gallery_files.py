"""The gallery that a user keeps: a folder of embeddings and a table of whose they are.

::

    embeddings.safetensors   float32 (N, D), unit length
    table.csv                row, label, source, sha256, added
    gallery.json             the model, threshold and margin, counts, and the SHA-256 of the two other files

A writer makes all three in ``.writing`` and renames that to ``.next``: from then on they are the gallery, and are moved
to their places. Whoever finds a ``.next`` reads what is in it first, and the next writer moves it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fiducial.checkpoints.atomic import save_atomically
from fiducial.data.cache import digest
from fiducial.errors import DatasetError, one_line
from mlrecog.gallery_card import GalleryCard
from mlrecog.gallery_table import Entry, read_table, table_bytes

__all__ = ["LOCK", "State", "check_free", "move_next", "read", "write"]

EMBEDDINGS, TABLE, CARD = "embeddings.safetensors", "table.csv", "gallery.json"
_FILES = (EMBEDDINGS, TABLE, CARD)
_NEXT, _WRITING, LOCK = ".next", ".writing", ".lock"
_AGAIN = "copy the gallery again, or build it anew"
_MAX_CARD = 1 << 20
_MAX_ROW = 1 << 15
"""Bytes of a row of the table."""


class State(NamedTuple):
    card: GalleryCard
    entries: tuple[Entry, ...]
    embeddings_ND: Tensor


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raises: DatasetError when a gallery in ``folder`` would take the place of something else."""
    if folder.is_dir():
        names = {entry.name for entry in os.scandir(folder)}
        if CARD in names or _NEXT in names:
            if not overwrite:
                fix = "add to it, or set gallery.overwrite=true"
                raise DatasetError(str(folder), "there is a gallery", fix)
        elif others := sorted(names - {*_FILES, LOCK, _WRITING}):
            raise DatasetError(str(folder), f"a folder with other files ({others[0]})", "name a new folder")
    elif folder.exists():
        raise DatasetError(str(folder), "is a file", "name a folder")


def read(folder: Path) -> State:
    """The gallery, whole: where a writer was quicker, its new one. Raises: DatasetError."""
    while True:
        stamp = _stamp(folder)
        try:
            return _read_once(folder)
        except (OSError, DatasetError) as error:
            if _stamp(folder) != stamp:
                continue
            if isinstance(error, FileNotFoundError):
                raise _incomplete(folder, error) from None
            if isinstance(error, DatasetError):
                raise
            found = f"cannot be read ({error.strerror or error})"
            raise DatasetError(str(folder), found, "check the folder and its permissions") from None


def _stamp(folder: Path) -> tuple[object, ...]:
    """What changes whenever a writer changes something."""
    found: list[object] = []
    for path in (folder / _NEXT, *(folder / name for name in _FILES)):
        try:
            stat = path.stat()
            found += [stat.st_ino, stat.st_mtime_ns]
        except OSError:
            found.append(None)
    return tuple(found)


def _incomplete(folder: Path, error: FileNotFoundError) -> DatasetError:
    if not (folder / CARD).exists():
        return DatasetError(str(folder), "no gallery there", "make one with `gallery build`, or check gallery.path")
    return DatasetError(str(folder), f"{Path(str(error.filename)).name} is missing", _AGAIN)


def _place(folder: Path, name: str) -> Path:
    """Where a file of the gallery is now."""
    fresh, place = folder / _NEXT / name, folder / name
    if not fresh.exists() and not place.is_file():
        raise FileNotFoundError(errno.ENOENT, "no file", str(place))
    return fresh if fresh.exists() else place


def _read_once(folder: Path) -> State:
    path = folder / CARD
    with _place(folder, CARD).open("rb") as file:
        text = file.read(_MAX_CARD + 1)
    try:
        said = json.loads(text) if len(text) <= _MAX_CARD else {}
        shas, num = dict(said["files"]), int(said["pictures"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise DatasetError(str(path), "is no gallery's description", _AGAIN) from None
    card = GalleryCard.of(said, str(path))
    embeddings_ND = _read_embeddings(folder, shas.get(EMBEDDINGS), (num, card.dim))
    entries = _read_entries(folder, shas.get(TABLE), num)
    return State(card, entries, embeddings_ND)


def _read_embeddings(folder: Path, sha256: object, shape: tuple[int, int]) -> Tensor:
    place, where = _place(folder, EMBEDDINGS), str(folder / EMBEDDINGS)
    _check_sha256(place, sha256, where)
    try:
        with safe_open(place, "pt") as file:
            found = file.get_slice("embeddings")
            if tuple(found.get_shape()) != shape or found.get_dtype() != "F32":
                said = f"{found.get_dtype()} {tuple(found.get_shape())} in place of F32 {shape}"
                raise DatasetError(where, said, _AGAIN)
            embeddings_ND: Tensor = file.get_tensor("embeddings").clone()
    except SafetensorError as error:
        raise DatasetError(where, f"cannot be read ({one_line(error, 100)})", _AGAIN) from None
    length_N = embeddings_ND.norm(dim=1)
    if not bool(((length_N - 1).abs() < 1e-3).all()):  # nor those that are no numbers
        raise DatasetError(where, "embeddings that have not length 1", _AGAIN)
    return embeddings_ND


def _read_entries(folder: Path, sha256: object, num: int) -> tuple[Entry, ...]:
    place, where = _place(folder, TABLE), str(folder / TABLE)
    size = place.stat().st_size
    if size > (num + 1) * _MAX_ROW:
        raise DatasetError(where, f"{size} bytes for {num} pictures", _AGAIN)
    _check_sha256(place, sha256, where)
    entries = read_table(place.read_bytes(), where)
    if len(entries) != num:
        raise DatasetError(where, f"{len(entries)} rows for {num} pictures", _AGAIN)
    return entries


def _check_sha256(place: Path, sha256: object, where: str) -> None:
    if digest(place) != sha256:
        found = "is not the file that was written with the gallery"
        raise DatasetError(where, found, f"{_AGAIN}; labels are changed with `gallery remove` and `gallery add`")


def write(folder: Path, state: State) -> None:
    """Write the gallery, whole or not at all; the lock is held, and :func:`move_next` was called."""
    writing = folder / _WRITING
    shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed
    try:
        contents = {
            EMBEDDINGS: save({"embeddings": state.embeddings_ND.contiguous()}),
            TABLE: table_bytes(state.entries),
        }
        for name, data in contents.items():
            save_atomically(writing / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        counts = {"pictures": len(state.entries), "classes": len({entry.label for entry in state.entries})}
        said = {**state.card.plain(), **counts, "files": {name: digest(writing / name) for name in contents}}
        text = json.dumps(said, indent=1, ensure_ascii=False).encode()
        save_atomically(writing / CARD, lambda file: file.write(text))
        os.rename(writing, folder / _NEXT)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    move_next(folder)


def move_next(folder: Path) -> None:
    """Move a new gallery that is complete to its place."""
    fresh = folder / _NEXT
    if not fresh.is_dir():
        return
    for name in _FILES:
        if (fresh / name).exists():
            os.replace(fresh / name, folder / name)
    shutil.rmtree(fresh)
