"""The content of a model file as tensors and plain data: its format is told by its content, and nothing in it is run.

Formats: what ``torch.save`` writes (zip, and the format before it), plain pickles, safetensors, TAO's EFF archives.
"""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiducial.checkpoints.budget import TooMuchError, object_limit, size_on_disk
from fiducial.checkpoints.encryption import EFF_MEMBER, ETLT_FIX, decrypted, eff_content, wrong_key
from fiducial.checkpoints.plain import plain
from fiducial.checkpoints.stand_ins import RefusedGlobalError
from fiducial.checkpoints.unpickling import load_stream
from fiducial.checkpoints.zips import load_zip
from fiducial.errors import CheckpointError, one_line

__all__ = ["is_safetensors", "read_raw"]

log = logging.getLogger(__name__)

_HEAD = 512
_ZIP, _GZIP, _PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80"
_ONNX_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42")


def read_raw(
    path: Path, *, device: str = "cpu", mmap: bool = True, key: str | None = None
) -> tuple[Any, tuple[str, ...]]:
    """The whole content of a model file as tensors and plain data, and the foreign classes that became plain data.

    The tree has no cycles and is not deep; ``device`` ``meta`` gives shapes and types alone. ``mmap`` and ``key``: see
    :func:`fiducial.checkpoints.reading.read`.

    Raises: CheckpointError when the file is damaged, no model file, encrypted, made to fill the memory, or names code
        that it would run.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    _refuse_other_formats(path, head)
    if is_safetensors(head):
        return _moved(_safetensors(path), torch.device(device)), ()
    foreign: set[str] = set()
    raw = _eff(path, foreign, key) if head.startswith(_GZIP) else _unpickled(path, None, foreign, copy=not mmap)
    if isinstance(raw, dict) and isinstance(raw.get("state_dict"), bytes | bytearray):
        opened = decrypted(bytes(raw["state_dict"]), raw.get("state_dict_encrypted", True), path, key)
        tensors = _unpickled(path, opened, foreign, was_encrypted=True)
        raw = {**raw, "state_dict": tensors, "state_dict_encrypted": False}
    if foreign:
        names = ", ".join(one_line(name, 80) for name in sorted(foreign)[:20])
        log.info("%s: read as plain data, without their code: %s", path, names)
    return _moved(raw, torch.device(device)), tuple(sorted(foreign))


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins like this is one of safetensors."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000  # their limit


def _fail(path: Path, found: str, fix: str) -> NoReturn:
    raise CheckpointError(str(path), found, fix)


def _damaged(path: Path, detail: object) -> NoReturn:
    size = path.stat().st_size
    _fail(
        path,
        f"damaged or cut off ({one_line(detail)}; {size:,} bytes)",
        "copy or download it again and compare its size",
    )


def _too_much(path: Path, error: TooMuchError) -> NoReturn:
    size = path.stat().st_size
    _fail(path, f"made to fill the memory: {error} ({size:,} bytes)", "do not trust it: get the model from its source")


def _refuse_other_formats(path: Path, head: bytes) -> None:
    text = head.lstrip().lower()
    if not head:
        _fail(path, "empty file", "the program that wrote it was stopped, or the download failed: get it again")
    if head.startswith(b"version https://git-lfs"):
        _fail(path, "a git-lfs pointer, not the weights", "run `git lfs pull` in the repository it came from")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        _fail(
            path,
            "a web page saved in place of the weights",
            "download the file itself (the raw link), perhaps after login",
        )
    if head.startswith((b"ftrt", b"ptrt")):
        _fail(path, "a TensorRT engine, which has no weights to load", "give the checkpoint (.pth) it was built from")
    if head[0] == 8 and 0 < head[1:2][0] < 32 and head[2:3] in _ONNX_FIELDS:
        _fail(path, "an ONNX model, not a checkpoint", "give the checkpoint (.pth) it was exported from")
    if head.startswith(b"\0\0\0\0") and not is_safetensors(head):
        _fail(path, "an encrypted export (.etlt)", f"it is encrypted with NVIDIA EFF; {ETLT_FIX}")
    if head[257:262] == b"ustar":
        _fail(
            path,
            "a tar file (PyTorch before 0.1.10, or an archive around the weights)",
            "unpack it, or save it anew with torch.save",
        )
    if not (head.startswith((_ZIP, _GZIP, _PICKLE)) or is_safetensors(head)):
        _fail(path, f"not a model file (starts with {head[:8]!r})", "give a .pth, .ckpt, .tlt or .safetensors file")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # its errors have no common class beyond this
        _damaged(path, error)


def _check_zip(path: Path, names: list[str]) -> None:
    names = [name.split("/", 1)[-1] for name in names]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        _fail(path, "a TorchScript program, which is code", "give the checkpoint (state_dict) it was made from")
    if "data.pkl" not in names:
        shown = ", ".join(one_line(name, 80) for name in names[:3])
        _fail(path, f"a zip archive without weights (holds {shown})", "unpack it and give the file inside")


def _unpickled(
    path: Path, content: bytes | None, foreign: set[str], *, copy: bool = False, was_encrypted: bool = False
) -> Any:
    """The object pickled in ``content``, or else in the file itself; ``path`` is for messages, too."""
    try:
        with io.BytesIO(content) if content is not None else path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
            file.seek(0)
            if is_zip:
                with zipfile.ZipFile(file) as archive:
                    _check_zip(path, archive.namelist())
                file.seek(0)
            tree = (load_zip if is_zip else load_stream)(file, foreign, copy=copy)
        return plain(tree, object_limit(size_on_disk(path)))
    except CheckpointError:
        raise
    except RefusedGlobalError as error:
        fix = "nothing of it was run. Save the state_dict alone where the file comes from, or do not trust it"
        _fail(path, f"would run code to be opened: {one_line(error)}", fix)
    except TooMuchError as error:
        _too_much(path, error)
    except Exception as error:  # any bytes can follow a good start, so any error can
        if was_encrypted:
            raise wrong_key(path, "what comes out is no pickle") from None
        _damaged(path, f"{type(error).__name__}: {error}")


def _moved(tree: Any, device: torch.device) -> Any:
    """The tree with its tensors on a device; a tensor that stands in several places is moved once."""
    if device.type == "cpu":
        return tree
    moved: dict[int, Tensor] = {}

    def of(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in moved:
                moved[id(part)] = part.to(device)
            return moved[id(part)]
        if isinstance(part, dict):
            return {name: of(value) for name, value in part.items()}
        return type(part)(of(value) for value in part) if isinstance(part, list | tuple) else part

    return of(tree)


def _eff(path: Path, foreign: set[str], key: str | None) -> Any:
    try:
        content = eff_content(path)
    except TooMuchError as error:
        _too_much(path, error)
    except Exception as error:  # tarfile and gzip each have several kinds
        _damaged(path, error)
    if content is None:
        _fail(path, f"a gzip archive without {EFF_MEMBER}", "unpack it and give the model file inside")
    is_encrypted = not content.startswith((_ZIP, _PICKLE))
    if is_encrypted:
        content = decrypted(content, True, path, key)
    return _unpickled(path, content, foreign, was_encrypted=is_encrypted)
