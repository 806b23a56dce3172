"""Where pretrained weights come from: a file of this machine, a URL, or a repository of a Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fiducial.backbones.names import BACKBONES
from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES
from fiducial.data.remote import is_remote
from fiducial.data.sources import local_path
from fiducial.errors import Problem, SourceError, one_line
from fiducial.redact import public_url

__all__ = ["DEFAULT_FILE", "KNOWN", "check_weights_source", "hub_id", "local_weights", "resolve_weights"]

log = logging.getLogger("fiducial")

DEFAULT_FILE = "model.safetensors"
"""The file taken from a hub repository when none is named."""

KNOWN = {
    "nvidia/C-RADIOv2-B": "c_radio_v2_vit_base_patch16_224",
    "nvidia/C-RADIOv2-L": "c_radio_v2_vit_large_patch16_224",
    "nvidia/C-RADIOv2-H": "c_radio_v2_vit_huge_patch16_224",
    "nvidia/C-RADIOv3-B": "c_radio_v3_vit_base_patch16_reg4_dinov2",
    "nvidia/C-RADIOv3-L": "c_radio_v3_vit_large_patch16_reg4_dinov2",
    "nvidia/C-RADIOv3-H": "c_radio_v3_vit_huge_patch16_reg4_dinov2",
    **{info.published: name for name, info in BACKBONES.items() if info.published},
}
"""Hub repositories whose weights are known to be of a backbone."""

_NAME = r"[A-Za-z0-9][\w.-]*"
_SHORT = re.compile(rf"({_NAME}/{_NAME})(?::(.+))?")
_LONG = re.compile(rf"hf://({_NAME}/{_NAME})(?:/(.+))?")


def resolve_weights(value: str | Path, *, key: str) -> Path:
    """The file on this machine that ``value`` of the spec key ``key`` names.

    ``value`` is a file; a folder with :data:`DEFAULT_FILE` in it; a URL (see :func:`fiducial.data.sources.local_path`);
    or a hub repository: ``owner/name``, ``owner/name:file`` or ``hf://owner/name/file``. What is remote is fetched
    once, into the cache of its kind. The hub's endpoint, the token, the cache and whether the network may be used are
    ``huggingface_hub``'s to know, from ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE``.

    Raises: SourceError when there is nothing or it cannot be had, with what to do about it.
    """
    text = str(value)
    if path := _on_this_machine(text, key):
        return path
    if found := hub_id(text):
        return _from_hub(*found, key=key)
    if is_remote(text):
        return local_path(text, key=key)
    _missing(text, Path(text).expanduser(), key)


def local_weights(value: str, *, key: str) -> Path | None:
    """The same file where it need not be fetched; None where it must be. Nothing is fetched, and nobody is asked.

    Raises: SourceError when ``value`` means a file of this machine that is not there.
    """
    if path := _on_this_machine(value, key):
        return path
    if found := hub_id(value):
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(*found)
        except ValueError as error:  # a malformed name
            raise SourceError(
                key, str(error).splitlines()[0], "give a hub repository as hf://owner/name/file"
            ) from None
        return Path(cached) if isinstance(cached, str) else None
    if is_remote(value):
        return None
    _missing(value, Path(value).expanduser(), key)


def check_weights_source(value: str, backbone: str, *, key: str) -> Iterator[Problem]:
    """What is to be said of weights that a training must fetch for a backbone, or that are not where they should be."""
    try:
        is_here = local_weights(value, key=key) is not None
    except SourceError as error:
        yield from error.problems
        return
    found = hub_id(value)
    of = KNOWN.get(found[0]) if found else None
    if found and of not in (None, backbone):
        fitting = ", ".join(name for name, of_it in KNOWN.items() if of_it == backbone)
        fix = f"give {fitting or 'other weights'}, or name the backbone that it holds"
        yield Problem(key, f"hub repository {found[0]} holds {of}, not {backbone}", fix)
    elif not is_here:
        yield _to_fetch(value, found, backbone, key)


def _to_fetch(value: str, found: tuple[str, str] | None, backbone: str, key: str) -> Problem:
    if found is None:
        told = f"{public_url(value)} is not looked into before it is fetched"
        return Problem(key, told, "training fetches it, once", "warning")
    from huggingface_hub import constants

    repository, file = found
    told = f"{value!r} means file {file} of hub repository {repository}, which is not on this machine"
    if constants.HF_HUB_OFFLINE:
        return Problem(key, told, "fetch it once with network access (HF_HUB_OFFLINE unset), or give a local file")
    if repository not in KNOWN:
        told += f", nor known to hold {backbone}"
    return Problem(key, told, f"training downloads it from {constants.ENDPOINT}; a local file must exist", "warning")


def _on_this_machine(value: str, key: str) -> Path | None:
    try:
        path = Path(value).expanduser()
        places = (path, path / DEFAULT_FILE)  # a file; a clone of a hub repository
        return next((place for place in places if place.is_file()), None)
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SourceError(key, f"{one_line(value, 100)!r} cannot be a path ({reason})", "check it") from None


def hub_id(value: str) -> tuple[str, str] | None:
    """``(owner/name, file)`` when ``value`` means a hub repository, else None.

    ``owner/name`` alone is a hub id unless it looks like a path: the folder ``owner`` is there, or ``name`` ends like a
    checkpoint file.
    """
    if match := _LONG.fullmatch(value):
        return match[1], match[2] or DEFAULT_FILE
    match = _SHORT.fullmatch(value)
    if match is None or (match[2] is None and (value.endswith(CHECKPOINT_SUFFIXES) or Path(value).parent.is_dir())):
        return None
    return match[1], match[2] or DEFAULT_FILE


def _missing(value: str, path: Path, key: str) -> NoReturn:
    found, fix = f"no file {value!r}", "give a weights file, a URL, or a hub repository as hf://owner/name/file"
    if (path / f"{DEFAULT_FILE}.index.json").is_file():
        found, fix = f"{value!r} holds its weights in several files", f"save them as one {DEFAULT_FILE}"
    elif path.is_dir():
        found = f"{value!r} is a folder without {DEFAULT_FILE}"
    elif path.exists():
        found = f"{value!r} is a device or a pipe, not a file"
    raise SourceError(key, found, fix)


def _from_hub(repository: str, file: str, *, key: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    where = f"{key} (hub repository {repository})"
    try:
        path = Path(hf_hub_download(repository, file))
    except errors.GatedRepoError as error:
        fix = f"accept its licence on the hub, and set HF_TOKEN to a token of that account; or give {key} a local file"
        raise SourceError(where, "access is restricted", fix) from error
    except errors.RepositoryNotFoundError as error:
        fix = f"check the name; a private repository needs HF_TOKEN; a local file must exist at {repository!r}"
        raise SourceError(where, "the hub has no such repository, or does not show it without a token", fix) from error
    except errors.LocalEntryNotFoundError as error:
        fix = "fetch it once with network access (HF_HUB_OFFLINE unset), or give the key a local file"
        raise SourceError(where, f"{file} is not in the local cache, and the hub cannot be reached", fix) from error
    except errors.EntryNotFoundError as error:
        fix = f"name the file: {repository}:FILE"
        raise SourceError(where, f"the repository has no file {file!r}", fix) from error
    except (errors.HfHubHTTPError, ValueError, OSError) as error:  # a malformed name is a ValueError
        raise SourceError(where, str(error).splitlines()[0], "check the name, HF_ENDPOINT and the network") from error
    log.info("%s: %s of hub repository %s, revision %s", key, file, repository, _revision(path))
    return path


def _revision(path: Path) -> str:
    """The commit of a file in the hub's cache (``…/snapshots/<commit>/<file>``)."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"
