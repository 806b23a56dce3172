"""Unpacking a data set that came as one file, and finding the images in it.

An archive is somebody else's list of file names, so nothing in it is trusted: only plain files and folders below the
target are written, and everything else is refused by name. Owners, modes and times are not carried over.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self

from fiducial.errors import SourceError

__all__ = ["ARCHIVE_SUFFIXES", "archive_stem", "extract", "folder_holding", "images_root", "safe_relative"]

log = logging.getLogger("fiducial")

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAX_BYTES = 1 << 40
"""Unpacked size (1 TiB) above which an archive is refused."""
MAX_MEMBERS = 10_000_000
MAX_DEPTH = 4
"""How many folders deep the images of a data set are looked for."""

_CHUNK = 1 << 20
_DAMAGE = (
    *(tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError),
    *(NotImplementedError, UnicodeDecodeError),  # zipfile, for methods and names that make no sense to it
)
_UNPACK_YOURSELF = "unpack it yourself and give the folder"


@dataclass(frozen=True)
class _Member:
    """One entry, whatever the format. ``kind`` is "file", "folder", or the name of what we refuse."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def archive_stem(name: str) -> str | None:
    """``name`` without its archive suffix, or None if it has none: ``train.tar.gz`` -> ``train``."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


def safe_relative(name: str) -> PurePosixPath | None:
    """``name`` as a path below some folder, or None if it could lead out of it.

    Backslashes separate, as Windows programs write them. Absolute names, drive letters, ``..`` and NUL give None.
    """
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        return None
    return path


def extract(archive: Path, into: Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> None:
    """Unpack a tar (plain or gzip) or zip archive into the folder ``into``, which is made if need be.

    Plain files and folders only; ``__MACOSX``, ``._*`` and ``.DS_Store`` entries are left out. After an error ``into``
    holds what was unpacked before it: give a scratch folder, and keep it only on success.

    Raises: SourceError for an absolute name, ``..``, a link, a device or a pipe, an encrypted or damaged archive, and
        for one that would unpack to more than ``max_bytes``, ``max_members`` entries or the free space of the disk.
    """
    into.mkdir(parents=True, exist_ok=True)
    budget = _Budget(archive, min(max_bytes, shutil.disk_usage(into).free), max_bytes, max_members)
    parents: set[Path] = set()
    try:
        for member in _members(archive):
            target = into / _checked(archive, member)
            if _is_finder_litter(target.relative_to(into)):
                continue
            budget.take(member)
            _enter(archive, member, target if member.kind == "folder" else target.parent, into, parents)
            if member.kind == "file":
                _write(archive, member, target)
    except _DAMAGE as error:
        raise SourceError(
            str(archive), f"damaged archive ({error or type(error).__name__})", "fetch it again"
        ) from error
    except OSError as error:
        raise SourceError(str(archive), f"could not be unpacked ({error})", _UNPACK_YOURSELF) from error


@dataclass
class _Budget:
    archive: Path
    bytes_left: int
    max_bytes: int
    members_left: int

    def take(self, member: _Member) -> None:
        """Account for a member before anything of it is written."""
        self.bytes_left -= member.size
        self.members_left -= 1
        if self.bytes_left < 0:
            limit = f"{self.max_bytes / 2**30:,.1f} GiB, or the free space of the disk"
            raise SourceError(str(self.archive), f"unpacks to more than {limit}", _UNPACK_YOURSELF)
        if self.members_left < 0:
            raise SourceError(str(self.archive), "has more entries than are unpacked here", _UNPACK_YOURSELF)


def _checked(archive: Path, member: _Member) -> PurePosixPath:
    relative = safe_relative(member.name)
    if relative is None:
        raise SourceError(str(archive), f"entry {member.name!r} leads out of the folder", "do not use this archive")
    if member.kind not in ("file", "folder"):
        fix = "pack the files themselves, for example with tar --dereference --hard-dereference"
        raise SourceError(str(archive), f"entry {member.name!r} is {member.kind}", fix)
    return relative


def _is_finder_litter(relative: Path) -> bool:
    return "__MACOSX" in relative.parts or relative.name == ".DS_Store" or relative.name.startswith("._")


def _enter(archive: Path, member: _Member, folder: Path, root: Path, known: set[Path]) -> None:
    """Make ``folder``, and make sure that no link that was there before leads it out of ``root``."""
    if folder in known:
        return
    if not folder.resolve().is_relative_to(root.resolve()):
        raise SourceError(str(archive), f"entry {member.name!r} leads out of the folder", "use an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    known.add(folder)


def _write(archive: Path, member: _Member, target: Path) -> None:
    if target.is_symlink():
        raise SourceError(str(archive), f"entry {member.name!r} leads out of the folder", "use an empty folder")
    source = member.open()
    if source is None:
        raise EOFError(f"no data for {member.name!r}")
    left = member.size
    with source, target.open("wb") as sink:
        while left and (chunk := source.read(min(left, _CHUNK))):
            sink.write(chunk)
            left -= len(chunk)
        # reading past the declared end makes zipfile compare checksums
        if left or source.read(1):
            raise EOFError(f"{member.name!r} does not have the size that it declares")


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    else:
        yield from _tar_members(archive)


class _StrictHeader(tarfile.TarInfo):
    """A header; where tarfile would take a cut or garbled one for the end of the archive, this one complains."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # unknown to typeshed
            if tar.offset:
                log.warning("%s has no end mark: it may have been cut off", tar.name)
            raise
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the true end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _tar_members(archive: Path) -> Iterator[_Member]:
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a named pipe",
    }
    with tarfile.open(archive, "r:*", tarinfo=_StrictHeader) as tar:
        for info in tar:
            kind = "file" if info.isreg() else "folder" if info.isdir() else kinds.get(info.type, "of an unknown kind")
            yield _Member(info.name, kind, info.size if info.isreg() else 0, partial(tar.extractfile, info))
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header until the end
        while tar.fileobj and tar.fileobj.read(_CHUNK):
            """The checksum of gzip stands behind the last byte."""


def _zip_members(archive: Path) -> Iterator[_Member]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a symbolic link"}
    kinds |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a named pipe"}
    with zipfile.ZipFile(archive) as box:
        for info in box.infolist():
            if info.flag_bits & 1:
                raise SourceError(str(archive), f"entry {info.filename!r} is encrypted", _UNPACK_YOURSELF)
            kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "of an unknown kind")
            if info.filename.endswith(("/", "\\")) and kind == "file":
                kind = "folder"
            yield _Member(info.filename, kind, info.file_size, partial(box.open, info))


def images_root(folder: Path, samples: Sequence[str]) -> Path:
    """The folder at or below ``folder`` that the relative paths ``samples`` start from.

    ``samples`` are a few paths as the data set's rows write them: of files, of folders, or of the beginning of a file
    name. The folder where most of them exist wins; ``folder`` itself first, then inner ones, nearest first, so one
    missing image does not hide the rest.

    Raises: SourceError if none of them exists anywhere down to :data:`MAX_DEPTH` folders; ValueError for no samples.
    """
    if not samples:
        raise ValueError("images_root needs at least one sample path")
    listings: dict[Path, frozenset[str]] = {}

    def found(root: Path) -> int:
        return sum(_begins_a_name(root / sample, listings) for sample in samples)

    best, count = _best(folder, found, enough=len(samples))
    if not count:
        given = ", ".join(repr(sample) for sample in samples[:3])
        raise SourceError(str(folder), f"neither it nor its folders hold {given}", "compare the rows with the folder")
    return best


def folder_holding(folder: Path, names: Sequence[str]) -> Path:
    """The folder at or below ``folder``, nearest first, with sub-folders of all these ``names``.

    Raises: SourceError if there is none down to :data:`MAX_DEPTH` folders, naming what the nearest candidate lacks.
    """
    best, count = _best(folder, lambda root: sum((root / name).is_dir() for name in names), enough=len(names))
    if count < len(names):
        lacking = ", ".join(name for name in names if not (best / name).is_dir())
        raise SourceError(str(best), f"no folder {lacking}", f"it should hold {', '.join(names)}")
    return best


def _best(folder: Path, score: Callable[[Path], int], *, enough: int) -> tuple[Path, int]:
    """The first folder with the highest score, root first, then level by level; stops at ``enough``."""
    best, best_score = folder, score(folder)
    candidates = _inner_folders(folder)
    while best_score < enough and (candidate := next(candidates, None)):
        if (candidate_score := score(candidate)) > best_score:
            best, best_score = candidate, candidate_score
    return best, best_score


def _inner_folders(folder: Path) -> Iterator[Path]:
    """Folders below ``folder``, nearest first, each level sorted and listed only when asked for."""
    level = [folder]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _subfolders(outer)]
        yield from level


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        return []


def _begins_a_name(path: Path, listings: dict[Path, frozenset[str]]) -> bool:
    if path.exists():
        return True
    parent = path.parent
    if parent not in listings:
        listings[parent] = frozenset(entry.name for entry in parent.iterdir()) if parent.is_dir() else frozenset()
    return any(name.startswith(path.name) for name in listings[parent])
