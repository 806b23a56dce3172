"""From what a spec key names to a path of this machine.

A key may name a file or folder, an archive (``.tar .tar.gz .tgz .zip``) of either, or the same at an ``s3://``,
``gs://``, ``https://`` or ``http://`` address. Nothing is sent over the network for a key that holds no URL.
"""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fiducial.data.archives import archive_stem, extract
from fiducial.data.cache import Cache, default_cache_dir, digest
from fiducial.data.remote import Fetched, fetch, is_remote, public_url
from fiducial.errors import SourceError

__all__ = ["local_path"]

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
    try:
        got = fetch(value, key=key, cache=cache) if is_remote(value) else Fetched(_existing(value, key), None)
        if got.path.is_dir() or archive_stem(got.path.name) is None:
            return got.path
        return _unpacked(got, public_url(value) if is_remote(value) else value, key, cache)
    except OSError as error:
        fix = "free space there, or set FIDUCIAL_CACHE to a folder that can be written"
        raise SourceError(key, f"the cache {cache.root} cannot be used ({error})", fix) from error


def _existing(value: str, key: str) -> Path:
    if not value.strip():
        raise SourceError(key, "an empty path", "name a file, folder, archive or URL")
    path = Path(unquote(urlsplit(value).path) if value.startswith("file://") else value).expanduser()
    if path.exists():
        return path
    stem = archive_stem(path.name)
    if stem and path.with_name(stem).is_dir():
        log.warning("%s: %s is gone; using the folder %s", key, path, path.with_name(stem))
        return path.with_name(stem)
    raise SourceError(key, f"no file or folder {value!r}", _hint(path))


def _hint(path: Path) -> str:
    parent = next(parent for parent in (*path.absolute().parents, Path("/")) if parent.is_dir())
    if parent != path.absolute().parent:
        return f"only {parent} exists; check the path, or map a container's path with --map-path"
    close = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=3)
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
        if record.get("stamp") != stamp:
            record = {"stamp": stamp, "sha256": digest(path)}
            cache.write(name, record)
        return str(record["sha256"])
