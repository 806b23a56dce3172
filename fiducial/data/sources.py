"""From what a spec key names to a path of this machine.

A key may name a file or folder, an archive (``.tar .tar.gz .tgz .zip``) of either, something in such an archive
(``lists.zip/train.txt``), or the same at an ``s3://``, ``gs://``, ``https://`` or ``http://`` address. Nothing is sent
over the network for a key that holds no URL.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from urllib.parse import unquote

from fiducial.data.archives import archive_stem, extract, safe_relative
from fiducial.data.cache import Cache, default_cache_dir, digest
from fiducial.data.files import IMAGE_SUFFIXES, is_file, is_folder, odd_name, why_unreadable
from fiducial.data.remote import Fetched, fetch, is_remote, public_url
from fiducial.errors import SourceError

__all__ = ["local_file", "local_path", "unwrapped"]

log = logging.getLogger("fiducial")


def local_path(value: str, *, key: str, cache_dir: str | Path | None = None) -> Path:
    """The file or folder on this machine that ``value`` of the spec key ``key`` names.

    A local path is returned as it is. A remote file, or all objects below a remote folder, are fetched; an archive,
    local or remote, becomes the folder that it unpacks to (see :func:`fiducial.data.archives.images_root` for where in
    it the images are). Both happen once, into ``cache_dir`` or :func:`~fiducial.data.cache.default_cache_dir`, however
    many processes ask at the same time; data in the cache must not be changed.

    An archive that is gone is no error while the folder of its name without suffix is there: TAO uses that folder.

    Raises: SourceError where there is nothing, it cannot be had, or an archive is unsafe or damaged;
        MissingDependencyError for a scheme whose package is not installed.
    """
    cache = Cache(Path(cache_dir).expanduser() if cache_dir else default_cache_dir())
    inner = None
    try:
        if is_remote(value):
            got = fetch(value, key=key, cache=cache)
        else:
            path, inner = _existing(value, key)
            got = Fetched(path, None)
        if archive_stem(got.path.name) is None or not is_file(got.path):
            return got.path
        folder = _unpacked(got, public_url(value) if is_remote(value) else value, key, cache)
        return folder if inner is None else _within(folder, inner, key, value)
    except OSError as error:
        fix = "free space there, or set FIDUCIAL_CACHE to a folder that can be written"
        raise SourceError(key, f"the cache {cache.root} cannot be used ({error})", fix) from error


def local_file(value: str, *, key: str, suffix: str, cache_dir: str | Path | None = None) -> Path:
    """The one file that ``value`` names, as :func:`local_path`; of an archive, the only ``*<suffix>`` in it.

    Raises: SourceError as :func:`local_path`, or for a folder, and for an archive with no such file or several.
    """
    path = local_path(value, key=key, cache_dir=cache_dir)
    if not is_folder(path):
        return path
    if archive_stem(Path(value).name) is None and not is_remote(value):
        inside = ", ".join(sorted(other.name for other in path.glob(f"*{suffix}"))[:3]) or f"no *{suffix}"
        raise SourceError(key, f"{value} is a folder, not a file (it holds {inside})", "name the file")
    found = sorted(other for other in path.rglob(f"*{suffix}") if is_file(other))
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(other.relative_to(path)) for other in found[:3])
    if not found:
        raise SourceError(key, f"no *{suffix} file in {public_url(value)}", "name an archive that holds one")
    raise SourceError(
        key, f"{len(found)} *{suffix} files in {public_url(value)}: {names}", "name one: <archive>/<file>"
    )


def unwrapped(folder: Path, *, key: str, cache_dir: str | Path | None = None) -> Path:
    """``folder``; but where it has one archive, no folders and no images, what that unpacks to, which is logged.

    So data sets are handed on: ``images.tar.gz`` beside the list of its images.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        archives = [entry.path for entry in entries if entry.is_file() and archive_stem(entry.name)]
        if len(archives) != 1 or any(
            entry.is_dir() or entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries
        ):
            return folder
    except OSError:  # may not be read, or is no folder: what reads it says so
        return folder
    log.info("%s: %s holds an archive alone: reading %s", key, folder, archives[0])
    return local_path(archives[0], key=key, cache_dir=cache_dir)


def _existing(value: str, key: str) -> tuple[Path, str | None]:
    """The path that is there; where ``value`` leads into an archive, that and the rest of ``value``."""
    if not value.strip():
        raise SourceError(key, "an empty path", "name a file, folder, archive or URL")
    path = _plain_path(value, key)
    if is_file(path) or is_folder(path):
        return path, None
    for parent in path.parents:
        if archive_stem(parent.name) and is_file(parent):
            return parent, str(path.relative_to(parent))
    stem = archive_stem(path.name)
    if stem and is_folder(path.with_name(stem)):
        log.warning("%s: %s is gone; using the folder %s", key, path, path.with_name(stem))
        return path.with_name(stem), None
    wrong = why_unreadable(path) or ("no such file", "")
    if wrong[0].startswith("no such file"):
        raise SourceError(key, f"no file or folder {value!r}", _hint(path))
    raise SourceError(key, f"{value!r} is {wrong[0]}", wrong[1])


def _plain_path(value: str, key: str) -> Path:
    path = Path(value)
    if value.startswith("file://"):
        host, slash, rest = value.removeprefix("file://").partition("/")
        if not slash or host not in ("", "localhost"):
            raise SourceError(
                key, f"{value!r} names no path of this machine", "write file:///folder/file, or the path alone"
            )
        path = Path(slash + unquote(rest))
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not known here
        return path


def _within(folder: Path, inner: str, key: str, value: str) -> Path:
    relative = safe_relative(inner)
    path = folder / relative if relative else folder
    if relative and (is_file(path) or is_folder(path)):
        return path
    names = sorted(str(other.relative_to(folder)) for other in folder.rglob("*") if other.is_file())
    close = difflib.get_close_matches(inner, names, n=1) or names[:3]
    raise SourceError(key, f"no {inner!r} in the archive of {value!r}", f"it holds {', '.join(close) or 'nothing'}")


def _hint(path: Path) -> str:
    if odd := odd_name(str(path)):
        return odd
    parent = next(parent for parent in (*path.absolute().parents, Path("/")) if is_folder(parent))
    if parent != path.absolute().parent:
        blocking = parent / path.absolute().relative_to(parent).parts[0]
        if is_file(blocking):
            return f"{blocking} is a file, not a folder"
        return f"only {parent} exists; check the path, or map a container's path with --map-path"
    try:
        close = difflib.get_close_matches(path.name, os.listdir(parent), n=3)
    except OSError as error:
        return f"{parent} may not be read ({error.strerror})"
    return f"did you mean {' or '.join(close)}?" if close else f"check what {parent} holds"


def _unpacked(archive: Fetched, shown: str, key: str, cache: Cache) -> Path:
    sha256 = archive.sha256 or _local_digest(archive.path, cache)

    def unpack(part: Path) -> None:
        log.info("%s: unpacking %s", key, shown)
        extract(archive.path, part)

    try:
        return cache.publish(cache.root / "unpacked" / sha256, unpack)
    except SourceError as error:
        problem = error.problems[0]
        raise SourceError(f"{key} ({shown})", problem.found, problem.fix) from error


def _local_digest(path: Path, cache: Cache) -> str:
    """SHA-256 of a local file, read again only when its size, time or inode changed."""
    name = digest(str(path.resolve()))
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    with cache.lock(name):
        record = cache.read(name)
        if record.get("stamp") != stamp or not isinstance(record.get("sha256"), str):
            record = {"stamp": stamp, "sha256": digest(path)}
            cache.write(name, record)
        return str(record["sha256"])
