"""What stands in, while a pickle is read, for the things that it names and calls.

A global is never looked up: it becomes a :class:`Name`, an opaque mark. Calling a mark runs one of the few functions of
this file (tensors, arrays, plain containers), or makes an :class:`Inert` (classes of the known libraries: their data is
kept, their code is not there), or is refused. A mark that is not called is no more than a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = [
    "DTYPES",
    "LOAD_FROM_BYTES",
    "NAMES",
    "PARTS_OF",
    "STORAGES",
    "Array",
    "DType",
    "Inert",
    "Name",
    "RefusedGlobalError",
    "Storage",
]

INERT_MODULES = (
    *("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("pytorch_metric_learning", "torch.optim", "pathlib", "argparse", "datetime", "enum", "typing", "torchao"),
)
"""Modules (with everything below them) whose classes become plain data; TAO's ``nvidia_tao_*`` come on top."""
PARTS_OF = "<class>"
"""Among the parts of a quantized tensor, the entry that names its class."""
MOST_DIMS = 64
REPEATED_BYTES = 64 << 20
"""A view that repeats its storage (strides of 0) may have so many bytes, or as many as its storage."""

_INERT_BUILTINS = frozenset(("object", "int", "float", "str", "bool", "bytes", "dict", "list", "tuple"))
_ROOT_OF_TAO = "nvidia_tao_"


class RefusedGlobalError(Exception):
    """The file calls something outside the allowed list; ``args[0]`` is that name."""


@dataclass(frozen=True)
class Name:
    """What a pickle gets for a global: its name, and what a call of it does here (None: an :class:`Inert`)."""

    name: str
    make: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.make:
            return self.make(*args)
        if self.name not in NAMES and not _is_inert(self.name):
            raise RefusedGlobalError(self.name)
        return Inert(self.name, args)


@dataclass(eq=False)
class Inert:
    """The data of an object whose class is not loaded: arguments, state, list items, dict pairs."""

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

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
class DType:
    """A type of numpy."""

    code: str

    def set_state(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>=|")

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code)


@dataclass(eq=False)
class Array:
    """An array of numpy."""

    state: tuple[Any, ...] | None = None

    def set_state(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        """The array, or the list of what an array of objects holds."""
        if self.state is None:
            return None
        _, shape, dtype, fortran, data = self.state
        return data if isinstance(data, list) else _from_buffer(data, dtype, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class Storage:
    """The bytes of a tensor and how they are read."""

    bytes: torch.UntypedStorage
    dtype: torch.dtype


def _is_inert(name: str) -> bool:
    """Whether ``module.Class`` is of the libraries whose objects become plain data."""
    return name.startswith((_ROOT_OF_TAO, *(f"{module}." for module in INERT_MODULES)))


def _dtype(code: Any, *_: Any) -> DType:
    if not (isinstance(code, str) and re.fullmatch(r"[<>=|]?[?biufcSUO]\d{0,9}", code)):
        raise ValueError("unknown type of an array")
    return DType(code)


def _from_buffer(data: Any, dtype: DType, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if dtype.numpy().hasobject:
        raise ValueError("array of objects as bytes")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order).copy()


def _scalar(dtype: DType, data: Any) -> Any:
    return _from_buffer(data, dtype, (), "C").item()


def _reconstruct(kind: Any, *_: Any) -> Array:
    if kind != NAMES["numpy.ndarray"]:
        raise RefusedGlobalError(f"numpy array of type {getattr(kind, 'name', type(kind).__name__)}")
    return Array()


def _encode(text: str, codec: str = "") -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise RefusedGlobalError("_codecs.encode with another codec than latin1")
    return text.encode("latin1")


def _bytearray(data: Any = b"", codec: str = "") -> bytearray:
    return bytearray(_encode(data, codec) if isinstance(data, str) else memoryview(data))


def _old_style(kind: Name, base: Name, state: Any) -> Inert:
    known = isinstance(kind, Name) and not kind.make and (kind.name in NAMES or _is_inert(kind.name))
    if not known or base.name not in {f"builtins.{name}" for name in _INERT_BUILTINS}:
        raise RefusedGlobalError(f"copyreg._reconstructor of {getattr(kind, 'name', type(kind).__name__)}")
    return Inert(kind.name, () if state is None else (state,))


def _member(kind: Any, member: Any) -> Inert:
    """A member of an enumeration by its name, as some versions of Python 3.11 write them; others write its value."""
    known = isinstance(kind, Name) and not kind.make and _is_inert(kind.name)
    if not known or not isinstance(member, str) or not member.isidentifier() or member.startswith("_"):
        raise RefusedGlobalError(f"builtins.getattr of {getattr(kind, 'name', type(kind).__name__)}")
    return Inert(kind.name, (member,))


def _annotation(maker: Any, _: Any) -> Name:
    """The first part of a type hint such as ``Optional[int]`` or ``int | None``, which OmegaConf's objects hold."""
    name = getattr(maker, "name", type(maker).__name__)
    if not (isinstance(maker, Name) and name.startswith(("typing.", "builtins.", "_operator.or_", "operator.or_"))):
        raise RefusedGlobalError(f"a type hint made by {name}")
    return Name(name)


def _type_of(thing: Any) -> Name:
    if thing is not None:
        raise RefusedGlobalError("builtins.type")
    return Name("builtins.NoneType")


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A view of a storage; ``rest`` are requires_grad, hooks, and marks (conjugate, negative) of the view."""
    if any(rest[2:]):
        raise ValueError("marked views are not read")
    _check_view(storage, offset, tuple(size), tuple(stride))
    return torch.empty(0, dtype=storage.dtype).set_(storage.bytes, offset, tuple(size), tuple(stride))


def _check_view(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """torch would make a storage longer to fit its view; and a view may repeat a few bytes without end."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MOST_DIMS or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor of impossible shape")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and last >= storage.bytes.nbytes() // storage.dtype.itemsize:
        raise ValueError("a tensor is larger than what is stored of it")
    if count * storage.dtype.itemsize > max(storage.bytes.nbytes(), REPEATED_BYTES):
        raise ValueError("a tensor repeats what is stored of it")


def _tensor_v3(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    _, _, dtype, *marks = rest
    return _tensor(Storage(storage.bytes, dtype), offset, size, stride, None, None, *marks)


def _tensor_of_type(rebuild: Name, kind: Any, args: Any, state: Any) -> Any:
    if isinstance(rebuild, Name) and rebuild.name == "torch._utils._rebuild_wrapper_subclass":
        return _wrapped(kind, args, state)
    if not (isinstance(rebuild, Name) and rebuild.name.startswith("torch._utils._rebuild_")):
        raise RefusedGlobalError(
            f"torch._tensor._rebuild_from_type_v2 of {getattr(rebuild, 'name', type(rebuild).__name__)}"
        )
    return rebuild(*args)


def _wrapped(kind: Any, args: Any, state: Any) -> Inert:
    """A tensor made of other tensors, as quantized ones are: its parts, with its class and the type it stands for."""
    if not (isinstance(kind, Name) and kind.name.startswith("torchao.") and isinstance(state, dict)):
        raise RefusedGlobalError(f"a tensor of type {getattr(kind, 'name', type(kind).__name__)}")
    return Inert(kind.name, state={**state, PARTS_OF: kind.name, "dtype": args[1]})


DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
"""By name, ``torch.float32``."""
STORAGES: dict[str, torch.dtype] = {
    f"torch.{kind}Storage": dtype
    for kind, dtype in {
        **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
        **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
        **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}
"""The types of storages."""

_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dict,
    "collections.Counter": Counter,
    "collections.defaultdict": lambda _factory=None, *args: dict(*args),
    "collections.deque": lambda items=(), *_: list(items),
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "builtins.getattr": _member,
    "builtins.type": _type_of,
    "_codecs.encode": _encode,
    **dict.fromkeys(("_operator.getitem", "operator.getitem", "types.GenericAlias"), _annotation),
    **dict.fromkeys(("_functools.reduce", "functools.reduce"), _annotation),
    "copyreg._reconstructor": _old_style,
    "torch.Size": lambda size=(): tuple(map(int, size)),
    "torch.serialization._get_layout": lambda name: name,
    "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.torch_version.TorchVersion": lambda *args: args[0] if args else "",
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "numpy.dtype": _dtype,
}
for _numpy in ("numpy.core", "numpy._core"):  # the module moved in numpy 2
    _CALLS |= {
        f"{_numpy}.multiarray._reconstruct": _reconstruct,
        f"{_numpy}.multiarray.scalar": _scalar,
        f"{_numpy}.numeric._frombuffer": _from_buffer,
    }
LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
"""A pickle inside a pickle, which the unpickler reads as it does the outer one."""
_TYPES = ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", LOAD_FROM_BYTES, *STORAGES)
NAMES = {name: Name(name, make) for name, make in _CALLS.items()} | {
    name: Name(name) for name in (*_TYPES, *(f"builtins.{name}" for name in _INERT_BUILTINS))
}
"""The globals that are known, by name."""
