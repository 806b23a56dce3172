"""Reading a pickle without running anything that it names.

A pickle is a program: it names globals, calls them and hands them state. Here a global is never looked up. Every name
becomes a :class:`Name`, an opaque mark; calling a mark runs one of the few functions of this file (tensors, arrays,
plain containers), or makes an :class:`Inert` (classes of the known libraries: their data is kept, their code is not
there), or is refused. State is only taken by objects of this file. So no chain of allowed calls leads outside.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import torch

INERT_MODULES = (
    *("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("pytorch_metric_learning", "torch.optim", "pathlib", "argparse", "datetime", "enum", "typing"),
)
"""Modules (with everything below them) whose classes become plain data; TAO's ``nvidia_tao_*`` come on top."""

_INERT_BUILTINS = frozenset(("object", "int", "float", "str", "bool", "bytes", "dict", "list", "tuple"))
_ROOT_OF_TAO = "nvidia_tao_"
_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file that torch.save wrote before the zip format


class RefusedGlobalError(Exception):
    """The file names something outside the allowed list; ``args[0]`` is that name."""


@dataclass(frozen=True)
class Name:
    """What a pickle gets for a global: its name, and what a call of it does here (None: an :class:`Inert`)."""

    name: str
    make: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        return self.make(*args) if self.make else Inert(self.name, args)


@dataclass(eq=False)
class Inert:
    """The data of an object whose class is not loaded: arguments, state, list items, dict pairs."""

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def append(self, item: Any) -> None:
        self.items.append(item)

    add = append

    def extend(self, items: Iterable[Any]) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value

    def set_state(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (attributes, slots) or attributes alone
            if isinstance(part, dict):
                self.state.update(part)
            elif part is not None:
                self.items.append(part)


@dataclass(eq=False)
class _DType:
    code: str

    def set_state(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>=|")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code)


@dataclass(eq=False)
class _Array:
    state: tuple[Any, ...] | None = None

    def set_state(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        if self.state is None:
            return None
        _, shape, dtype, fortran, data = self.state
        return data if isinstance(data, list) else _from_buffer(data, dtype, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class _Storage:
    bytes: torch.UntypedStorage
    dtype: torch.dtype


def _dtype(code: Any, *_: Any) -> _DType:
    if not (isinstance(code, str) and re.fullmatch(r"[<>=|]?[?biufcSUO]\d*", code)):
        raise ValueError(f"array type {code!r}")
    return _DType(code)


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if dtype.numpy().hasobject:
        raise ValueError("array of objects as bytes")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order).copy()


def _scalar(dtype: _DType, data: Any) -> Any:
    return _from_buffer(data, dtype, (), "C").item()


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind != _NAMES["numpy.ndarray"]:
        raise RefusedGlobalError(f"numpy array of type {getattr(kind, 'name', kind)}")
    return _Array()


def _encode(text: str, codec: str = "") -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise RefusedGlobalError(f"_codecs.encode with {codec!r}")
    return text.encode("latin1")


def _bytearray(data: Any = b"", codec: str = "") -> bytearray:
    return bytearray(_encode(data, codec) if isinstance(data, str) else memoryview(data))


def _old_style(kind: Name, base: Name, state: Any) -> Inert:
    if not isinstance(kind, Name) or kind.make or base.name not in {f"builtins.{name}" for name in _INERT_BUILTINS}:
        raise RefusedGlobalError(f"copyreg._reconstructor of {getattr(kind, 'name', kind)}")
    return Inert(kind.name, () if state is None else (state,))


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    return torch.empty(0, dtype=storage.dtype).set_(storage.bytes, offset, tuple(size), tuple(stride))  # bounds-checked


def _tensor_v3(storage: _Storage, offset: int, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    return _tensor(_Storage(storage.bytes, dtype), offset, size, stride)


def _tensor_of_type(rebuild: Name, _type: Any, args: Any, _state: Any) -> Any:
    if not (isinstance(rebuild, Name) and rebuild.name.startswith("torch._utils._rebuild_")):
        raise RefusedGlobalError(f"torch._tensor._rebuild_from_type_v2 of {rebuild}")
    return rebuild(*args)


_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGES: dict[str, torch.dtype] = {
    f"torch.{kind}Storage": dtype
    for kind, dtype in {
        **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
        **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
        **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}

_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dict,
    "collections.Counter": Counter,
    "collections.defaultdict": lambda _factory=None, *args: dict(*args),
    "collections.deque": lambda items=(), *_: list(items),
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _old_style,
    "torch.Size": lambda size=(): tuple(size),
    "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.torch_version.TorchVersion": lambda *args: args[0] if args else "",
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch.storage._load_from_bytes": lambda data: _load_stream(io.BytesIO(data)),
    "numpy.dtype": _dtype,
}
for _numpy in ("numpy.core", "numpy._core"):  # the module moved in numpy 2
    _CALLS |= {
        f"{_numpy}.multiarray._reconstruct": _reconstruct,
        f"{_numpy}.multiarray.scalar": _scalar,
        f"{_numpy}.numeric._frombuffer": _from_buffer,
    }
_TYPES = ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", *_STORAGES)
_NAMES = {name: Name(name, make) for name, make in _CALLS.items()} | {
    name: Name(name) for name in (*_TYPES, *(f"builtins.{name}" for name in _INERT_BUILTINS))
}


def _is_inert(module: str) -> bool:
    return module.startswith(_ROOT_OF_TAO) or any(
        module == known or module.startswith(known + ".") for known in INERT_MODULES
    )


_PythonUnpickler: Any = pickle._Unpickler  # the one written in Python: what its opcodes do can be replaced


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BinaryIO, storage_of: Callable[[Any], _Storage], foreign: set[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.storage_of, self.foreign = storage_of, foreign

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # which writes the names of Python 2
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}".replace("torch.cuda.", "torch.")  # storages of a GPU
        if full in _DTYPES:
            return _DTYPES[full]
        if full in _NAMES:
            return _NAMES[full]
        if not _is_inert(module):
            raise RefusedGlobalError(full)
        self.foreign.add(full)
        return Name(full)

    def persistent_load(self, pid: Any) -> _Storage:
        return self.storage_of(pid)

    def get_extension(self, code: int) -> None:
        raise RefusedGlobalError(f"extension {code}")

    def _instantiate(self, kind: Any, args: Any) -> None:
        self.append(_call(kind, args))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        self.load_reduce()
        made = self.stack[-1]
        if isinstance(made, Inert):
            made.set_state(kwargs)
        elif kwargs:
            raise RefusedGlobalError("call with keywords")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert | _DType | _Array):
            target.set_state(state)
        elif not isinstance(target, dict | torch.Tensor):  # theirs is metadata and hooks: left out
            raise RefusedGlobalError(f"state for {getattr(target, 'name', type(target).__name__)}")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def _call(kind: Any, args: Any) -> Any:
    if not isinstance(kind, Name):
        raise RefusedGlobalError(f"call of {type(kind).__name__}")
    return kind(*args)


def _no_storage(pid: Any) -> _Storage:
    raise ValueError(f"storage {pid!r} outside a torch file")


def _storage_kind(kind: Any) -> torch.dtype:
    if not isinstance(kind, Name) or kind.name not in _STORAGES:
        raise RefusedGlobalError(f"storage type {getattr(kind, 'name', kind)}")
    return _STORAGES[kind.name]


def _untyped(buffer: Any, offset: int, count: int) -> torch.UntypedStorage:
    if not count:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8, offset=offset, count=count).untyped_storage()


def load_zip(file: BinaryIO, foreign: set[str] | None = None) -> Any:
    """The object of a zip file of ``torch.save``; storages are views into a copy-on-write map of a real file.

    Raises: RefusedGlobalError; anything else when the file is damaged.
    """
    buffer = (
        bytearray(file.getvalue())
        if isinstance(file, io.BytesIO)
        else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    )
    with zipfile.ZipFile(file) as archive:
        members = {name.split("/", 1)[-1]: archive.getinfo(name) for name in archive.namelist()}
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("written on a big-endian machine")
        loaded: dict[str, torch.UntypedStorage] = {}

        def storage_of(pid: Any) -> _Storage:
            _, kind, key, *_ = pid
            if key not in loaded:
                member = members[f"data/{key}"]
                names = struct.unpack_from("<HH", buffer, member.header_offset + 26)  # of the local header, 30 bytes
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("compressed tensors")
                loaded[key] = _untyped(buffer, member.header_offset + 30 + sum(names), member.file_size)
            return _Storage(loaded[key], _storage_kind(kind))

        return _Unpickler(io.BytesIO(archive.read(members["data.pkl"])), storage_of, _set(foreign)).load()


def load_stream(file: BinaryIO, foreign: set[str] | None = None) -> Any:
    """The object of a plain pickle, or of a file that ``torch.save`` wrote before the zip format.

    Raises: as `load_zip`.
    """
    return _load_stream(file, _set(foreign))


def _set(given: set[str] | None) -> set[str]:
    return set() if given is None else given


def _load_stream(file: BinaryIO, foreign: set[str] | None = None) -> Any:
    names = _set(foreign)
    first = _Unpickler(file, _no_storage, names).load()
    if not (isinstance(first, int) and first == _MAGIC):
        return first
    for _ in ("protocol version", "sizes of C types"):
        _Unpickler(file, _no_storage, names).load()
    start, size = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(start)
    loaded: dict[str, _Storage] = {}

    def storage_of(pid: Any) -> _Storage:
        _, kind, key, _, count, view = pid
        dtype = _storage_kind(kind)
        if key not in loaded:
            if not 0 <= count * dtype.itemsize <= size:
                raise EOFError("a tensor is larger than the file")
            loaded[key] = _Storage(torch.empty(count * dtype.itemsize, dtype=torch.uint8).untyped_storage(), dtype)
        if view is None:
            return loaded[key]
        _, begin, length = (part if i == 0 else part * dtype.itemsize for i, part in enumerate(view))
        return _Storage(loaded[key].bytes[begin : begin + length], dtype)

    result = _Unpickler(file, storage_of, names).load()
    for key in _Unpickler(file, _no_storage, names).load():
        storage = loaded[key]
        file.seek(8, io.SEEK_CUR)  # its length once more
        data = file.read(storage.bytes.nbytes())
        if len(data) != storage.bytes.nbytes():
            raise EOFError("the file ends inside its tensors")
        storage.bytes.copy_(_untyped(bytearray(data), 0, len(data)))
    return result


def plain(tree: Any, _seen: dict[int, Any] | None = None) -> Any:
    """The same tree with every `Inert`, `Name` and array stand-in replaced by plain data.

    OmegaConf containers become dicts and lists, paths strings, other objects their items, their state or their only
    argument; a class becomes its name. Shared parts stay shared; cycles through anything but dicts and lists are cut.
    """
    seen = {} if _seen is None else _seen
    if id(tree) in seen:
        return seen[id(tree)]
    if isinstance(tree, dict):
        result = seen[id(tree)] = Counter() if isinstance(tree, Counter) else {}
        result.update({_hashable(plain(key, seen)): plain(value, seen) for key, value in tree.items()})
        return result
    if isinstance(tree, list):
        items = seen[id(tree)] = []
        items.extend(plain(item, seen) for item in tree)
        return items
    if isinstance(tree, tuple | set | frozenset):
        seen[id(tree)] = None
        seen[id(tree)] = type(tree)(plain(item, seen) for item in tree)
    elif isinstance(tree, Inert):
        seen[id(tree)] = None
        seen[id(tree)] = _plain_object(tree, seen)
    elif isinstance(tree, Name | _Array):
        seen[id(tree)] = tree.name if isinstance(tree, Name) else plain(tree.value(), seen)
    elif isinstance(tree, _DType):
        return tree.code
    else:
        return tree
    return seen[id(tree)]


def _plain_object(thing: Inert, seen: dict[int, Any]) -> Any:
    if thing.name.startswith("pathlib."):
        kind = PureWindowsPath if "Windows" in thing.name else PurePosixPath
        return str(kind(*map(str, thing.args)))
    if thing.name.startswith("omegaconf."):
        for content in ("_content", "_val"):
            if content in thing.state:
                return plain(thing.state[content], seen)
    for data in (thing.pairs, thing.items, thing.state):
        if data:
            return plain(data, seen)
    args = plain(thing.args, seen)
    return args[0] if len(args) == 1 else list(args) or None


def _hashable(key: Any) -> Any:
    return key if getattr(type(key), "__hash__", None) else str(key)
