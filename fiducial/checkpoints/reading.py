"""Reading a model file: its format is told by its content, and nothing in it is ever run.

Formats: what ``torch.save`` writes (zip, and the format before it), plain pickles, safetensors, TAO's EFF archives.
``torch.load(weights_only=True)`` reads what it accepts; :mod:`fiducial.checkpoints.unpickling` the rest.
"""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fiducial.checkpoints.keys import unwrapped
from fiducial.checkpoints.resolving import real_file
from fiducial.checkpoints.trees import walkable
from fiducial.checkpoints.unpickling import RefusedGlobalError, load_stream, load_zip, plain
from fiducial.errors import CheckpointError

log = logging.getLogger(__name__)

NESTING = ("state_dict_ema", "state_dict", "model", "model_state_dict", "teacher", "student")
"""Where files keep their tensors, in the order of preference; several can be inside one another.

Averaged weights come first, as in timm's and RADIO's own loaders.
"""
MARKER = "pytorch-lightning_version"
"""The entry that every Lightning checkpoint has."""

_EFF_MEMBER = "tlt_pytorch_model.pth"
_ENCRYPTED = "decrypt once inside a TAO container, or install nvidia-eff"
_HEAD = 512
_MOST_INFLATION, _ALWAYS_INFLATED = 20, 16 << 20
"""What is compressed may grow this much, and this many bytes more. Weights hardly shrink: torch never tries."""
_MOST_STRUCTURE = 256 << 20
"""Bytes of a file's pickle beside its tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """A model file, read."""

    path: Path
    kind: str
    """``lightning``, ``safetensors``, ``state_dict`` (tensors alone) or ``nested`` (tensors inside other entries)."""
    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    """What the file says of itself as plain data: ``epoch``, ``global_step``, ``tao_model``, ``hyper_parameters``."""
    raw: Any = field(repr=False)
    """Everything in the file, as plain data and tensors."""
    nesting: tuple[str, ...] = ()
    """The entries that the tensors were found in, from the outside."""
    foreign: tuple[str, ...] = ()
    """Classes that the file names and that were read as plain data."""
    skipped: tuple[str, ...] = ()
    """Entries beside the tensors that hold no tensor."""


def read(
    path: str | Path, *, device: str = "cpu", mmap: bool = True, key: str | None = None, where: str = ""
) -> Checkpoint:
    """Reads a model file of any known format.

    ``mmap`` maps the tensors of zip and safetensors files instead of copying them: do not rewrite such a file in place.
    ``key`` decrypts files that TAO encrypted, where NVIDIA's ``eff`` is installed. ``where`` is the spec key for
    messages.
    Raises: CheckpointError when the file is missing, damaged, no model file, encrypted, or names code that it would
    run.
    """
    file = real_file(path, where=where)
    raw, foreign = read_raw(file, device=device, mmap=mmap, key=key)
    tensors, nesting = _nested(raw)
    named = {str(name): value for name, value in ((n, _tensor(v)) for n, v in tensors.items()) if value is not None}
    _check_extent(file, named)
    state_dict = unwrapped(named)
    if not state_dict:
        _fail(file, f"holds no tensors ({_contents(raw)})", "give a file with a model's weights")
    return Checkpoint(
        path=file,
        kind=_kind(file, raw, nesting),
        state_dict=state_dict,
        meta=_meta(raw, nesting),
        raw=raw,
        nesting=nesting,
        foreign=foreign,
        skipped=tuple(str(name) for name in tensors if str(name) not in named),
    )


def read_raw(
    path: Path, *, device: str = "cpu", mmap: bool = True, key: str | None = None
) -> tuple[Any, tuple[str, ...]]:
    """The whole content of a model file as tensors and plain data, and the foreign classes that became plain data.

    Raises: CheckpointError, as `read` does.
    """
    raw, foreign = _any_format(path, device, mmap, key)
    if isinstance(raw, dict):
        raw = _decrypted(raw, path, key)
    try:
        return walkable(raw), foreign
    except ValueError as error:
        _damaged(path, error)


def _any_format(path: Path, device: str, mmap: bool, key: str | None) -> tuple[Any, tuple[str, ...]]:
    if not path.is_file():
        _fail(path, "a device or a pipe, no file", "give a file")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        _fail(path, f"cannot be read ({error.strerror or error})", "check its permissions")
    _refuse_other_formats(path, head)
    if head[:2] == b"\x1f\x8b":
        return _eff_archive(path, key)
    if _is_safetensors(head):
        return _safetensors(path, device), ()
    if head[:4] == b"PK\x03\x04":
        _check_zip(path)
        return _unpickled(path, path, load_zip, device, mmap)
    return _unpickled(path, path, load_stream, device, False)


def _fail(path: Path | str, found: str, fix: str) -> NoReturn:
    raise CheckpointError(str(path), found, fix)


def _damaged(path: Path, detail: object) -> NoReturn:
    size = path.stat().st_size
    _fail(path, f"damaged or cut off ({detail}; {size:,} bytes)", "copy or download it again and compare its size")


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
    if (
        head[0] == 8
        and 0 < head[1:2][0] < 32
        and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42")
    ):
        _fail(path, "an ONNX model, not a checkpoint", "give the checkpoint (.pth) it was exported from")
    if head.startswith(b"\0\0\0\0") and not _is_safetensors(head):
        _fail(path, "an encrypted export (.etlt)", f"it is encrypted with NVIDIA EFF; {_ENCRYPTED}")
    if head[257:262] == b"ustar":
        _fail(
            path,
            "a tar file (PyTorch before 0.1.10, or an archive around the weights)",
            "unpack it, or save it anew with torch.save",
        )
    known = head[:4] == b"PK\x03\x04" or head[:2] == b"\x1f\x8b" or head[:1] == b"\x80" or _is_safetensors(head)
    if not known:
        _fail(path, f"not a model file (starts with {head[:8]!r})", "give a .pth, .ckpt, .tlt or .safetensors file")


def _is_safetensors(head: bytes) -> bool:
    return (
        len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
    )  # the format's limit


def _safetensors(path: Path, device: str) -> dict[str, Tensor]:
    try:
        return load_file(path, device=device)
    except Exception as error:  # its errors have no common class beyond this
        _damaged(path, error)


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.split("/", 1)[-1]: member for member in archive.infolist()}
    except Exception as error:  # zipfile knows its own errors only: names, for one, can be no text
        _damaged(path, error)
    names = list(members)
    for name, member in members.items():
        compressed = member.compress_type != zipfile.ZIP_STORED
        grown = compressed and member.file_size > _most_bytes(member.compress_size)
        if grown or (name == "data.pkl" and member.file_size > _MOST_STRUCTURE):
            _fail(path, f"{name} would unpack to {member.file_size:,} bytes", "no weights do that; do not trust it")
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        _fail(path, "a TorchScript program, which is code", "give the checkpoint (state_dict) it was made from")
    if "data.pkl" not in names:
        _fail(
            path, f"a zip archive without weights (holds {', '.join(names[:3])})", "unpack it and give the file inside"
        )


def _unpickled(
    path: Path, source: Path | io.BytesIO, loader: Callable[[BinaryIO, set[str]], Any], device: str, mmap: bool
) -> tuple[Any, tuple[str, ...]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: the next reader takes them all
            loaded = torch.load(source, map_location=device, weights_only=True, mmap=mmap and isinstance(source, Path))
        return loaded, ()
    except Exception as error:  # whatever it was: the next reader either reads the file or says what is wrong
        log.debug("%s: not readable with weights_only=True: %s", path, error)
    foreign: set[str] = set()
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                tree = loader(file, foreign)
        else:
            source.seek(0)
            tree = loader(source, foreign)
        raw = _moved(plain(tree), torch.device(device))
    except RefusedGlobalError as error:
        fix = "nothing of it was run. Save the state_dict alone where the file comes from, or do not trust it"
        _fail(path, f"would run code to be opened: {error}", fix)
    except Exception as error:  # any bytes can follow a good start, so any error can
        _damaged(path, f"{type(error).__name__}: {error}")
    if foreign:
        log.info("%s: read as plain data, without their code: %s", path, ", ".join(sorted(foreign)))
    return raw, tuple(sorted(foreign))


def _moved(tree: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return tree
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_moved(value, device) for value in tree)
    return tree


def _most_bytes(compressed: int) -> int:
    return _MOST_INFLATION * compressed + _ALWAYS_INFLATED


class _Inflating:
    """A gzip file that is read once from its start, and ends with an error where it grows too much."""

    def __init__(self, path: Path) -> None:
        self.file = gzip.GzipFile(path)
        self.left = _most_bytes(path.stat().st_size)

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise EOFError("it unpacks to far more than weights do")
        return data


def _eff_archive(path: Path, key: str | None) -> tuple[Any, tuple[str, ...]]:
    try:
        with tarfile.open(fileobj=_Inflating(path), mode="r|") as archive:  # type: ignore[call-overload]
            member = next((one for one in archive if one.isfile() and one.name.split("/")[-1] == _EFF_MEMBER), None)
            content = archive.extractfile(member).read() if member else None
    except Exception as error:  # tarfile and zlib raise what comes to them
        _damaged(path, error)
    if content is None:
        _fail(path, f"a gzip archive without {_EFF_MEMBER}", "unpack it and give the model file inside")
    if content[:4] != b"PK\x03\x04" and content[:1] != b"\x80":
        content = _decrypt(content, True, path, key)
    loader = load_zip if content[:4] == b"PK\x03\x04" else load_stream
    return _unpickled(path, io.BytesIO(content), loader, "cpu", False)


def _decrypted(raw: dict[Any, Any], path: Path, key: str | None) -> dict[Any, Any]:
    content = raw.get("state_dict")
    if not isinstance(content, bytes | bytearray):
        return raw
    opened = _decrypt(bytes(content), raw.get("state_dict_encrypted", True), path, key)
    tensors, _ = _unpickled(path, io.BytesIO(opened), load_stream, "cpu", False)
    return {**raw, "state_dict": tensors, "state_dict_encrypted": False}


def _decrypt(content: bytes, encryption: Any, path: Path, key: str | None) -> bytes:
    try:
        from eff.codec import decrypt_stream
    except ImportError:
        _fail(path, "encrypted with NVIDIA EFF", _ENCRYPTED)
    if not key:
        _fail(path, "encrypted with NVIDIA EFF, and no key given", "set encryption_key (TAO's usual one is tlt_encode)")
    opened = io.BytesIO()
    try:
        decrypt_stream(input_stream=io.BytesIO(content), output_stream=opened, passphrase=key, encryption=encryption)
    except Exception as error:  # a closed library: its errors are unknown
        _fail(path, f"cannot be decrypted with the given key ({error})", "check encryption_key")
    return opened.getvalue()


def _nested(raw: Any) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The dict that holds the tensors, and the names that lead to it."""
    names: list[str] = []
    tree = raw
    lightning = isinstance(raw, dict) and MARKER in raw
    nesting = [name for name in NESTING if not (lightning and name == "state_dict_ema")]
    while isinstance(tree, dict):
        name = next((name for name in nesting if isinstance(tree.get(name), dict) and _has_tensors(tree[name])), None)
        if name is None:
            return tree, tuple(names)
        names.append(name)
        tree = tree[name]
    return {}, ()


def _check_extent(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that repeat a few numbers without end: small in the file, endless once they are computed with."""
    for name, tensor in tensors.items():
        held = tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else tensor.numel()
        if tensor.numel() * tensor.element_size() > _most_bytes(held):
            _fail(path, f"{name} {list(tensor.shape)} is made of {held:,} bytes", "save its weights as they are")


def _has_tensors(tree: dict[Any, Any]) -> bool:
    return any(_is_tensor(value) or (isinstance(value, dict) and _has_tensors(value)) for value in tree.values())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _tensor(value: Any) -> Tensor | None:
    if not _is_tensor(value):
        return None
    return value if isinstance(value, Tensor) else torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))


def _kind(path: Path, raw: Any, nesting: tuple[str, ...]) -> str:
    if MARKER in raw:
        return "lightning"
    with path.open("rb") as file:
        if _is_safetensors(file.read(9)):
            return "safetensors"
    return "nested" if nesting else "state_dict"


def _meta(raw: dict[Any, Any], nesting: tuple[str, ...]) -> dict[str, Any]:
    if not nesting:
        return {}
    plain_kinds = (str, int, float, bool)
    return {
        str(name): value
        for name, value in raw.items()
        if name not in nesting and (isinstance(value, plain_kinds) or name == "hyper_parameters")
    }


def _contents(raw: Any) -> str:
    if not isinstance(raw, dict):
        return f"it holds a {type(raw).__name__}"
    return f"its entries: {', '.join(map(str, list(raw)[:5]))}" if raw else "it is an empty dict"
