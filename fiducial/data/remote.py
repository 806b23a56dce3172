"""Fetching files and folders of objects from S3, Google Cloud Storage and web servers, through fsspec.

What is fetched is kept (see :mod:`fiducial.data.cache`) and fetched again only when the server's ETag, time or size
says that it changed. No secret of a URL (user name, password, query) gets into a message, a log line or a name in the
cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from fiducial.data.archives import safe_relative
from fiducial.data.cache import Cache, digest
from fiducial.errors import SourceError, optional
from fiducial.progress import followed
from fiducial.redact import public_url
from fiducial.redact import redact_text as redact

__all__ = ["SCHEMES", "Fetched", "fetch", "is_remote", "public_url", "redact"]

log = logging.getLogger("fiducial")

SCHEMES = ("s3", "gs", "https", "http")
"""URL scheme -> the package that speaks it and the extra that brings it."""

_PARALLEL = 16
_PROGRESS_SECONDS = 10.0
_STALLED_SECONDS = 120.0

_SECRET_NAME = re.compile(
    r"sig|token|key|cred|secret|pass|pwd|auth|expires|session|policy|^(x-amz-|x-goog-|s[a-z]{1,3}$)", re.IGNORECASE
)
_VERSION_FIELDS = frozenset(
    ("etag", "last-modified", "lastmodified", "content-md5", "digest", "md5hash", "generation", "mtime", "updated")
)
_ACCESS = {
    "s3": "check AWS_ACCESS_KEY_ID, AWS_PROFILE and the like; FSSPEC_S3_ANON=true reads a public bucket without any",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS",
    "https": "check the user name, token or signature in the address",
    "http": "check the user name, token or signature in the address",
}
_DENIED = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "PermissionError")


@dataclass(frozen=True)
class Fetched:
    """What a URL became: ``path``, and the SHA-256 of its bytes where it is one file."""

    path: Path
    sha256: str | None


@dataclass(frozen=True)
class _Object:
    """One file of a source: its place below the source, the server's name for it, size and version if it tells them."""

    relative: str
    address: str
    size: int | None
    version: str


def is_remote(value: str) -> bool:
    """Whether ``value`` is a URL rather than a path of this machine (``file://`` is a path)."""
    scheme, mark, _ = value.partition("://")
    return bool(mark) and scheme.isascii() and scheme.replace("+", "").isalnum() and scheme.lower() != "file"


def fetch(url: str, *, key: str, cache: Cache) -> Fetched:
    """The file or folder of objects at ``url``, fetched into ``cache`` unless the same version is there.

    When the server cannot be reached, the copy of an earlier run is used, with a warning.

    Raises: SourceError naming ``key`` if there is nothing at ``url``, access is denied, or the server cannot be reached
        and there is no copy; MissingDependencyError for a scheme whose package is not installed.
    """
    url = _checked(url, key)
    identity = _identity(url)
    with cache.lock(identity):
        record = _sound(cache.read(identity))
        filesystem = _filesystem(url)
        try:
            single, objects = _listing(filesystem, url)
        except Exception as error:  # every library behind fsspec has errors of its own
            failure = _failure(error)
            if failure.kind != "unreachable" or not (copy := _copy(cache, record)):
                raise failure.told(url, key) from None  # the chain may show the URL
            log.warning("%s: %s cannot be reached (%s): using the earlier copy", key, public_url(url), failure.text)
            return copy
        if not objects:
            raise SourceError(key, f"nothing at {public_url(url)}", "check the name of the bucket and the folder")
        _check_names(objects, url, key)
        record = _bring(cache, filesystem, objects, record, url, key)
        record |= {"tree": _tree(cache, record["objects"]), "single": single}
        cache.write(identity, record)
        copy = _copy(cache, record)
        assert copy is not None  # just made
        return copy


def _sound(record: dict[str, Any]) -> dict[str, Any]:
    """A record as :func:`fetch` writes it; nothing in place of one that is damaged: then all is fetched again."""
    objects, single = record.get("objects"), record.get("single")
    if not isinstance(objects, dict) or not (single is None or single in list(objects)):
        return {}
    told = [entry.get(name) for entry in objects.values() if isinstance(entry, dict) for name in ("version", "sha256")]
    return record if len(told) == 2 * len(objects) and all(isinstance(text, str) for text in told) else {}


def _checked(url: str, key: str) -> str:
    """``url`` with its scheme in small letters, if it is one that can be fetched."""
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise SourceError(key, f"no way to fetch {scheme}://", f"use a local path or {', '.join(SCHEMES)}")
    try:
        parts = urlsplit(url)
        _ = parts.port  # read, and so checked, only when asked for
    except ValueError:
        raise SourceError(key, "not a valid URL", "check its host and port") from None
    if scheme.startswith("http") and parts.path in ("", "/"):
        raise SourceError(key, f"{public_url(url)} names no file", "name a file or an archive on that server")
    if "@" in parts.netloc and scheme in ("s3", "gs"):
        fix = "give them in the environment (AWS_ACCESS_KEY_ID, …; GOOGLE_APPLICATION_CREDENTIALS) or a profile"
        raise SourceError(key, f"credentials in the URL of {public_url(url)}", fix)
    return scheme + mark + rest


def _identity(url: str) -> str:
    """A name for ``url`` in the cache. Signed parameters are left out: they change daily, and are nobody's business."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query, True) if not _SECRET_NAME.search(name)]
    host = parts.netloc.rpartition("@")[2]
    return digest("\n".join((parts.scheme, host, parts.path, urlencode(query), parts.fragment)))


def _filesystem(url: str) -> Any:
    scheme = urlsplit(url).scheme
    if scheme == "s3":
        optional("s3fs", extra="s3")
    elif scheme == "gs":
        optional("gcsfs", extra="gcs")
    import aiohttp
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme.startswith("http"):
        # the default gives up after five minutes in all; proxies and .netrc are read as curl does
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_STALLED_SECONDS)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        options["encoded"] = url.isascii() and " " not in url  # quoting a signed query again would break it
    return fsspec.filesystem(scheme, **options)


def _file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path) if url.startswith("http") else url).name or "download"


def _listing(filesystem: Any, url: str) -> tuple[str | None, list[_Object]]:
    """The name of the one file that ``url`` is, or None for a folder; and the objects there."""
    address = filesystem._strip_protocol(url)
    info = filesystem.info(address)
    if info["type"] == "file":
        name = _file_name(url)
        return name, [_object(name, address, info)]
    found = filesystem.find(address, detail=True)
    return None, [
        _object(name.removeprefix(address.rstrip("/") + "/"), name, info)
        for name, info in sorted(found.items())
        if not name.endswith("/")  # consoles mark a folder by an empty object
    ]


def _object(relative: str, address: str, info: dict[str, Any]) -> _Object:
    version = {name.lower(): str(value) for name, value in info.items() if name.lower() in _VERSION_FIELDS and value}
    size = info.get("size")
    return _Object(relative, address, size, json.dumps([size, version], sort_keys=True) if version else "")


def _check_names(objects: Sequence[_Object], url: str, key: str) -> None:
    for item in objects:
        if safe_relative(item.relative) != PurePosixPath(item.relative):
            found = f"object {item.relative!r} of {public_url(url)} is no relative path"
            raise SourceError(key, found, "rename the object")


def _bring(
    cache: Cache, filesystem: Any, objects: Sequence[_Object], record: dict[str, Any], url: str, key: str
) -> dict[str, Any]:
    """Fetch what is new; return the record with the digest and version of every object."""
    identity, known = _identity(url), record.get("objects", {})
    wanted = [item for item in objects if not _is_here(cache, item, known)]
    if not wanted:
        log.info("%s: %s has not changed: using the copy in the cache", key, public_url(url))
    missing = {item.relative for item in wanted}
    kept = {item.relative: known[item.relative] for item in objects if item.relative not in missing}
    progress = _progress(f"{key}: {public_url(url)}", wanted)

    def bring(item: _Object) -> dict[str, str]:
        part = cache.partial(f"{identity}-{digest(item.relative)}")
        try:
            filesystem.get_file(item.address, str(part), callback=progress)
        except Exception as error:  # as in fetch
            raise _failure(error).told(url, key) from None
        if item.size is not None and part.stat().st_size != item.size:
            found = f"{part.stat().st_size} of {item.size} bytes of {item.relative!r} came from {public_url(url)}"
            raise SourceError(key, found, "run again")
        return {"version": item.version, "sha256": cache.add_blob(part)}

    pool = ThreadPoolExecutor(_PARALLEL)
    try:
        for item, entry in zip(wanted, pool.map(bring, wanted), strict=True):
            kept[item.relative] = entry
    except BaseException:  # also an interrupt: what came so far need not come again
        pool.shutdown(cancel_futures=True)
        cache.write(identity, record | {"objects": known | kept})
        raise
    pool.shutdown()
    return {"url": public_url(url), "objects": kept}


def _is_here(cache: Cache, item: _Object, known: dict[str, dict[str, str]]) -> bool:
    entry = known.get(item.relative)
    return bool(item.version and entry and entry["version"] == item.version and cache.blob(entry["sha256"]).exists())


def _tree(cache: Cache, objects: dict[str, dict[str, str]]) -> str:
    """The folder of these objects under their names; returns its name, which tells its content."""
    manifest = sorted((relative, entry["sha256"]) for relative, entry in objects.items())
    name = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()

    def make(part: Path) -> None:
        for relative, sha256 in followed(manifest, "linking or copying files:", total=len(manifest)):
            target = part / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(cache.blob(sha256), target)
            except OSError:  # a file system without hard links, or with too many to this file
                shutil.copyfile(cache.blob(sha256), target)

    cache.publish(cache.root / "trees" / name, make)
    return name


def _copy(cache: Cache, record: dict[str, Any]) -> Fetched | None:
    """The copy that a record tells of, if it is complete."""
    tree = cache.root / "trees" / str(record.get("tree"))
    if not tree.is_dir():
        return None
    if single := record["single"]:
        return Fetched(tree / single, record["objects"][single]["sha256"])
    return Fetched(tree, None)


def _progress(name: str, objects: Sequence[_Object]) -> Any:
    """An fsspec callback, shared by all downloads of one source, that logs how far they are."""
    from fsspec.callbacks import Callback

    total = sum(item.size or 0 for item in objects) / 2**20

    class Progress(Callback):  # type: ignore[misc]  # fsspec has no types
        def __init__(self) -> None:
            super().__init__()
            self.bytes, self.told, self.guard = 0, time.monotonic(), threading.Lock()

        def set_size(self, size: int) -> None:
            """One size per file would say nothing here."""

        def relative_update(self, inc: int = 1) -> None:
            with self.guard:
                self.bytes += inc
                if time.monotonic() - self.told >= _PROGRESS_SECONDS:
                    self.told = time.monotonic()
                    log.info("%s: %.0f of %.0f MiB", name, self.bytes / 2**20, total)

    if objects:
        log.info("%s: fetching %d file%s, %.1f MiB", name, len(objects), "s" * (len(objects) > 1), total)
    return Progress()


@dataclass(frozen=True)
class _Failure:
    """Why a server did not give what was asked: ``kind`` missing, denied or unreachable; ``text`` holds no secret."""

    kind: str
    text: str

    def told(self, url: str, key: str) -> SourceError:
        shown = public_url(url)
        if self.kind == "missing":
            return SourceError(key, f"nothing at {shown} ({self.text})", "check the address")
        if self.kind == "denied":
            return SourceError(key, f"no access to {shown} ({self.text})", _ACCESS[url.partition(":")[0]])
        fix = "check the network, the proxy and AWS_ENDPOINT_URL; or give a local copy"
        return SourceError(key, f"{shown} cannot be reached ({self.text})", fix)


def _failure(error: BaseException) -> _Failure:
    """Sort an error of fsspec or a library behind it by its types, status and error codes; messages may hold URLs."""
    chain = list(_chain(error))
    status = next(filter(None, map(_status, chain)), None)
    names = [type(link).__name__ for link in chain]
    numbers = [link.errno for link in chain if isinstance(link, OSError) and link.errno]
    text = names[-1] + (f", HTTP {status}" if status else f", {os.strerror(numbers[-1])}" if numbers else "")
    if status in (404, 410) or (not status and isinstance(chain[-1], FileNotFoundError)):
        return _Failure("missing", text)
    if status in (401, 403) or any(name in _DENIED for name in names):
        return _Failure("denied", text)
    return _Failure("unreachable", text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, botocore or gcsfs carries."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    told = str(metadata.get("HTTPStatusCode") or getattr(error, "status", None) or getattr(error, "code", None))
    return int(told) if told.isdigit() and int(told) >= 400 else None
