"""Unpacking a data set that came as one file, and finding the images in it.

An archive is somebody else's list of file names, so nothing in it is trusted: only plain files and folders below the
target are written, and everything else is refused by name. Owners, modes and times are not carried over.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fiducial.data.files import HEAD, is_folder, what_bytes_are
from fiducial.data.tar_headers import StrictHeader
from fiducial.errors import SourceError, UserError
from fiducial.machine import storage_error
from fiducial.progress import Pace

__all__ = ["ARCHIVE_SUFFIXES", "archive_stem", "extract", "images_root", "safe_relative"]

log = logging.getLogger("fiducial")

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAX_BYTES = 1 << 40
"""Unpacked size (1 TiB) above which an archive is refused."""
MAX_MEMBERS = 10_000_000
MAX_DEPTH = 4
"""How many folders deep the images of a data set are looked for."""

MAX_RATIO = 250
"""How many times its own size an archive may unpack to, once that is more than :data:`SMALL_BYTES`."""
SMALL_BYTES = 1 << 30

_CHUNK = 1 << 20
_TAR_MAGIC = slice(257, 262)
_MOST_BEHIND = 64 << 20
"""Bytes behind the end of a tar that are read."""
_COMPRESSED = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\0": "r:xz"}
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

    Raises: SourceError for an absolute name, ``..``, a link, a device or a pipe, a sparse, encrypted or damaged
        archive, names that the disk cannot tell apart, and for one that would unpack to more than ``max_bytes``,
        ``max_members`` entries, the free space of the disk or :data:`MAX_RATIO` times its size. A zip is refused by
        what its directory states, before anything is written.
    """
    into.mkdir(parents=True, exist_ok=True)
    budget = _Budget(archive, _limits(archive, into, max_bytes), max_members)
    pace = Pace()
    parents: set[Path] = set()
    written: dict[str, Path] = {}
    try:
        for member in _members(archive, budget):
            target = into / _checked(archive, member)
            budget.take(member)
            if _is_finder_litter(target.relative_to(into)):
                continue
            _enter(archive, member, target if member.kind == "folder" else target.parent, into, parents)
            if member.kind == "file":
                _check_twin(archive, member, target, written)
                for size in _write(archive, member, target):
                    if pace.step(size / 2**20):
                        log.info("unpacking %s: %.0f MiB, %.0f MiB/s", archive.name, pace.done, pace.rate)
        if not written:
            raise _damaged(archive, EOFError("no files in it"))
    except UserError:
        raise
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise _damaged(archive, error) from error
        if known := storage_error(error, into):
            raise known from error
        raise SourceError(str(archive), f"could not be unpacked ({error})", _UNPACK_YOURSELF) from error
    except Exception as error:  # whatever tarfile and zipfile stumble over in damaged headers
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> SourceError:
    with archive.open("rb") as file:
        other = what_bytes_are(file.read(HEAD))
    if other and not zipfile.is_zipfile(archive) and not other[0].startswith("gzip"):
        return SourceError(str(archive), f"damaged archive: it is {other[0]}", other[1])
    told = " ".join(str(error).split()) or type(error).__name__
    return SourceError(str(archive), f"damaged archive ({told})", "fetch it again")


def _limits(archive: Path, into: Path, max_bytes: int) -> dict[str, int]:
    """What bounds the unpacked size: in words, and in bytes."""
    return {
        "the limit of {:,.1f} GiB": max_bytes,
        "the {:,.1f} GiB that are free on the disk": shutil.disk_usage(into).free,
        f"{MAX_RATIO} times its own size ({{:,.1f}} GiB)": max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size),
    }


@dataclass
class _Budget:
    archive: Path
    limits: dict[str, int]
    members_left: int
    taken: int = field(default=0, init=False)

    def take(self, member: _Member) -> None:
        """Account for a member before anything of it is written."""
        self.taken += member.size
        self.members_left -= 1
        self.check(self.taken, -self.members_left)

    def check(self, num_bytes: int, members_too_many: int) -> None:
        """Raises: SourceError for more bytes than there may be, or any members too many."""
        words, limit = min(self.limits.items(), key=lambda item: item[1])
        if num_bytes > limit:
            raise SourceError(
                str(self.archive), f"unpacks to more than {words.format(limit / 2**30)}", _UNPACK_YOURSELF
            )
        if members_too_many > 0:
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


def _write(archive: Path, member: _Member, target: Path) -> Iterator[int]:
    """Write a file; gives the size of each part that is written."""
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
            yield len(chunk)
        # reading past the declared end makes zipfile compare checksums
        if left or source.read(1):
            raise EOFError(f"{member.name!r} does not have the size that it declares")


def _check_twin(archive: Path, member: _Member, target: Path, written: dict[str, Path]) -> None:
    """Refuse a name that this disk takes for another one: it would hide that file without a word."""
    twin = written.setdefault(unicodedata.normalize("NFC", str(target)).casefold(), target)
    if twin != target and target.exists() and target.samefile(twin):
        found = f"entry {member.name!r} is {twin.name!r} to this disk, which does not tell capitals or accents apart"
        raise SourceError(str(archive), found, "rename one of them, or unpack on another disk")


def _members(archive: Path, budget: _Budget) -> Iterator[_Member]:
    with archive.open("rb") as file:
        head = file.read(HEAD)
    compressed = next((mode for signature, mode in _COMPRESSED.items() if head.startswith(signature)), None)
    is_tar = compressed or head[_TAR_MAGIC] == b"ustar"  # a zip is one by its end: a tar's last member may be one
    if not is_tar and zipfile.is_zipfile(archive):
        yield from _zip_members(archive, budget)
    else:
        yield from _tar_members(archive, compressed or "r:")


def _tar_members(archive: Path, mode: Any) -> Iterator[_Member]:
    """``mode``: tarfile's for the compression. Its "r:*" tries them all, and mixes up what each has to say."""
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a named pipe",
    }
    with tarfile.open(archive, mode, tarinfo=StrictHeader) as tar:
        for info in tar:
            kind = "file" if info.isreg() else "folder" if info.isdir() else kinds.get(info.type, "of an unknown kind")
            yield _Member(info.name, kind, info.size if info.isreg() else 0, partial(tar.extractfile, info))
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header until the end
        behind = 0
        while tar.fileobj and (chunk := tar.fileobj.read(_CHUNK)):  # the checksum of gzip stands behind the last byte
            if (behind := behind + len(chunk)) > _MOST_BEHIND:
                raise tarfile.ReadError(f"more than {_MOST_BEHIND >> 20} MiB behind its end")


def _zip_members(archive: Path, budget: _Budget) -> Iterator[_Member]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a symbolic link"}
    kinds |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a named pipe"}
    with zipfile.ZipFile(archive) as box:
        budget.check(sum(info.file_size for info in box.infolist()), len(box.infolist()) - budget.members_left)
        _check_overlaps(box)
        for info in box.infolist():
            if info.flag_bits & 1:
                raise SourceError(str(archive), f"entry {info.filename!r} is encrypted", _UNPACK_YOURSELF)
            kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "of an unknown kind")
            if info.filename.endswith(("/", "\\")) and kind == "file":
                kind = "folder"
            yield _Member(info.filename, kind, info.file_size, partial(box.open, info))


def _check_overlaps(box: zipfile.ZipFile) -> None:
    """Raises: BadZipFile when two entries share their bytes: so few of them unpack to any size."""
    places = sorted((info.header_offset, info.compress_size, info.filename) for info in box.infolist())
    for (start, size, name), (following, _, other) in itertools.pairwise(places):
        if start + size > following:
            raise zipfile.BadZipFile(f"the data of {name!r} and {other!r} overlap")


def images_root(folder: Path, samples: Sequence[str]) -> Path:
    """The folder that the relative paths ``samples`` start from: ``folder``, or one that it merely wraps.

    ``samples`` are a few paths as the data set's rows write them: of files, of folders, or of the beginning of a file
    name. Where the first part of any of them is in ``folder``, or none is found anywhere, that is it: an image that is
    missing there must not come from elsewhere. Else it is the nearest inner folder, down to :data:`MAX_DEPTH`, where
    most of them exist; which one is logged.

    Raises: SourceError when two inner folders are as good; ValueError for no samples.
    """
    if not samples:
        raise ValueError("images_root needs at least one sample path")
    relative = [path for sample in samples if not (path := PurePosixPath(sample)).is_absolute()]
    listings: dict[Path, frozenset[str]] = {}
    if not relative or any(_starts_in(folder, path, listings) for path in relative):
        return folder
    for level in _levels(folder):
        counts = {inner: sum(_begins_a_name(inner / path, listings) for path in relative) for inner in level}
        most = max(counts.values(), default=0)
        best = [inner for inner, count in counts.items() if count == most]
        if most and len(best) > 1:
            found = (
                f"both {best[0].relative_to(folder)} and {best[1].relative_to(folder)} hold {samples[0]!r} or the like"
            )
            raise SourceError(str(folder), found, "name the folder that the rows start from")
        if most:
            log.warning("%s holds no %s: reading the images below %s", folder, relative[0], best[0])
            return best[0]
    return folder


def _starts_in(folder: Path, path: PurePosixPath, listings: dict[Path, frozenset[str]]) -> bool:
    """Whether ``folder`` holds the first part of ``path``: its outermost folder, or a file whose name it begins."""
    if len(path.parts) > 1:
        return is_folder(folder / path.parts[0])
    return _begins_a_name(folder / path, listings)


def _levels(folder: Path) -> Iterator[list[Path]]:
    """Folders below ``folder``, nearest first, each level sorted and listed only when asked for."""
    level = [folder]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _subfolders(outer)]
        yield level


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # that may not be read, or is none
        return []


def _begins_a_name(path: Path, listings: dict[Path, frozenset[str]]) -> bool:
    try:
        if path.exists():
            return True
        parent = path.parent
        if parent not in listings:
            listings[parent] = frozenset(os.listdir(parent) if is_folder(parent) else ())
        return any(name.startswith(path.name) for name in listings[parent])
    except (OSError, ValueError):  # a name that cannot be, or a folder that may not be read
        return False
