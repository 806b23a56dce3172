"""Reading a pickle without running anything that it names, and without more memory than a file of its size needs.

A pickle is a program: it names globals, calls them and hands them state. Here every global becomes a stand-in (see
:mod:`fiducial.checkpoints.stand_ins`), and only they take state. So no chain of allowed calls leads outside.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from fiducial.checkpoints.budget import OBJECT_BYTES, Budget, TooMuchError, size_on_disk
from fiducial.checkpoints.plain import DEEPEST
from fiducial.checkpoints.stand_ins import (
    DTYPES,
    LOAD_FROM_BYTES,
    NAMES,
    STORAGES,
    Array,
    DType,
    Inert,
    Name,
    RefusedGlobalError,
    Storage,
)

__all__ = ["Unpickler", "load_stream", "mapped", "storage_kind", "untyped"]

_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file that torch.save wrote before the zip format
_LONGEST_LINE = 4096
_LONGEST_INTEGER = 256  # bytes: longer ones cannot be printed
Mapped = mmap.mmap | io.BytesIO
"""A whole file: reading from it never makes more room than there are bytes."""


class _Opcodes(dict[int, Callable[[Any], None]]):
    """The dispatch table of an unpickler, where every opcode has its price."""

    def __init__(self, table: dict[int, Callable[[Any], None]], budget: Budget) -> None:
        super().__init__(table)
        self._spend = budget.spend

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._spend(OBJECT_BYTES)
        return super().__getitem__(code)


class _Paid:
    """A file whose bytes have their price."""

    def __init__(self, file: Mapped, budget: Budget) -> None:
        self._file, self._size, self._budget = file, _size(file), budget

    def read(self, count: int) -> bytes:
        if count > OBJECT_BYTES:  # less is in the price of the opcode
            self._budget.spend(min(count, self._size))
        return self._file.read(count)

    def readline(self) -> bytes:
        start = self._file.tell()
        line, end, _ = self._file.read(_LONGEST_LINE).partition(b"\n")
        if not end:
            raise ValueError("a name without an end")
        self._file.seek(start + len(line) + len(end))
        return line + end


_PythonUnpickler: Any = pickle._Unpickler  # the one written in Python: what its opcodes do can be replaced


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: Mapped, storage_of: Callable[[Any], Storage], foreign: set[str], budget: Budget) -> None:
        super().__init__(file, encoding="latin1")
        self.storage_of, self.foreign, self.budget = storage_of, foreign, budget
        self.dispatch = _Opcodes(type(self).dispatch, budget)
        paid = _Paid(file, budget)
        self._file_read, self._file_readline = paid.read, paid.readline
        self._depths: dict[int, int] = {}  # of tuples, by id: tuples within tuples

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # which writes the names of Python 2
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}".replace("torch.cuda.", "torch.")  # storages of a GPU
        if full in DTYPES:
            return DTYPES[full]
        if full in NAMES:
            return NAMES[full]
        self.foreign.add(full)
        return Name(full)

    def persistent_load(self, pid: Any) -> Storage:
        return self.storage_of(pid)

    def get_extension(self, code: int) -> None:
        raise RefusedGlobalError(f"extension {code}")

    def _call(self, kind: Any, args: tuple[Any, ...]) -> Any:
        if not isinstance(kind, Name):
            raise RefusedGlobalError(f"call of {type(kind).__name__}")
        self._pay(*args)
        if kind.name == LOAD_FROM_BYTES:
            return _load_stream(io.BytesIO(*args), self.foreign, self.budget)
        return kind(*args)

    def _pay(self, *things: Any) -> None:
        """Charge for what may be copied."""
        for thing in things:
            if isinstance(thing, str | bytes | bytearray):
                self.budget.spend(len(thing))
            elif isinstance(thing, dict | list | tuple | set | frozenset):
                self.budget.spend(OBJECT_BYTES * len(thing))

    def _instantiate(self, kind: Any, args: Any) -> None:
        self.append(self._call(kind, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], tuple(args))

    def load_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        self.load_reduce()
        made = self.stack[-1]
        if isinstance(made, Inert):
            self._pay(kwargs)
            made.set_state(kwargs)
        elif kwargs:
            raise RefusedGlobalError("call with keywords")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert | DType | Array):
            self._pay(*(state if isinstance(state, tuple) else (state,)))
            target.set_state(state)
        elif not isinstance(target, dict | torch.Tensor):  # theirs is metadata and hooks: left out
            raise RefusedGlobalError(f"state for {getattr(target, 'name', type(target).__name__)}")

    def load_long4(self) -> None:
        (length,) = struct.unpack("<i", self.read(4))
        if not 0 <= length <= _LONGEST_INTEGER:
            raise TooMuchError("a number of more digits than can be printed")
        self.append(pickle.decode_long(self.read(length)))

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _target(self, kind: type[Any]) -> Any:
        """What the next items go into: a container, never a tensor, which would run its own code."""
        target = self.stack[-1]
        if not isinstance(target, kind | Inert):
            raise ValueError(f"items for {getattr(target, 'name', type(target).__name__)}")
        return target

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target(dict)[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        target = self._target(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_append(self) -> None:
        item = self.stack.pop()
        self._target(list).extend((item,))

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._target(list).extend(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        target = self._target(set)
        (target.extend if isinstance(target, Inert) else target.update)(items)

    def _checked_tuple(self) -> None:
        """The tuple that was just made may be a key, and the hash of deep ones would overflow the stack of C."""
        made = self.stack[-1]
        depth = 1 + max((self._depths.get(id(part), 0) for part in made if isinstance(part, tuple)), default=0)
        if depth > DEEPEST:
            raise TooMuchError(f"more than {DEEPEST} tuples are inside one another")
        self._depths[id(made)] = depth

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.LONG4[0]] = load_long4
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _followed_by_check(load: Callable[[Any], None]) -> Callable[[Unpickler], None]:
    def loaded(unpickler: Unpickler) -> None:
        load(unpickler)
        unpickler._checked_tuple()

    return loaded


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    Unpickler.dispatch[_code[0]] = _followed_by_check(_PythonUnpickler.dispatch[_code[0]])


def _no_storage(pid: Any) -> Storage:
    raise ValueError("a tensor's storage outside a torch file")


def storage_kind(kind: Any) -> torch.dtype:
    """The type of the numbers in a storage. Raises: RefusedGlobalError when ``kind`` is no type of storages."""
    if not isinstance(kind, Name) or kind.name not in STORAGES:
        raise RefusedGlobalError(f"storage type {getattr(kind, 'name', type(kind).__name__)}")
    return STORAGES[kind.name]


def untyped(buffer: Any, offset: int, count: int) -> torch.UntypedStorage:
    """``count`` bytes of a buffer as a storage, not copied. Raises: ValueError when the buffer has fewer."""
    if not count:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8, offset=offset, count=count).untyped_storage()


def load_stream(file: BinaryIO, foreign: set[str], *, copy: bool = False) -> Any:
    """The object of a plain pickle, or of a file that ``torch.save`` wrote before the zip format; always copied.

    Raises: RefusedGlobalError, TooMuchError; anything else when the file is damaged.
    """
    if isinstance(file, io.BytesIO):
        return _load_stream(file, foreign, Budget(_size(file)))
    return _load_stream(mapped(file, mmap.ACCESS_READ), foreign, Budget(size_on_disk(file.fileno())))


def mapped(file: BinaryIO, access: int) -> mmap.mmap:
    """A whole file in the address space."""
    return mmap.mmap(file.fileno(), 0, access=access)


def _size(whole: Mapped) -> int:
    return len(whole) if isinstance(whole, mmap.mmap) else whole.getbuffer().nbytes


def _load_stream(file: Mapped, foreign: set[str], budget: Budget) -> Any:
    first = Unpickler(file, _no_storage, foreign, budget).load()
    if not (isinstance(first, int) and first == _MAGIC):
        return first
    for _ in ("protocol version", "sizes of C types"):
        Unpickler(file, _no_storage, foreign, budget).load()
    left = _size(file) - file.tell()
    loaded: dict[str, Storage] = {}

    def storage_of(pid: Any) -> Storage:
        nonlocal left
        _, kind, key, _, count, view = pid
        dtype = storage_kind(kind)
        if key not in loaded:
            size = count * dtype.itemsize
            left -= size
            budget.spend(max(size, 0))
            if size < 0 or left < 0:
                raise EOFError("a tensor is larger than the file")
            loaded[key] = Storage(torch.empty(size, dtype=torch.uint8).untyped_storage(), dtype)
        if view is None:
            return loaded[key]
        _, begin, length = (part if i == 0 else part * dtype.itemsize for i, part in enumerate(view))
        if not 0 <= begin <= begin + length <= loaded[key].bytes.nbytes():
            raise ValueError("a view reaches beyond its storage")
        return Storage(loaded[key].bytes[begin : begin + length], dtype)

    result = Unpickler(file, storage_of, foreign, budget).load()
    for key in Unpickler(file, _no_storage, foreign, budget).load():
        storage = loaded[key]
        file.seek(8, io.SEEK_CUR)  # its length once more
        data = file.read(storage.bytes.nbytes())
        if len(data) != storage.bytes.nbytes():
            raise EOFError("the file ends inside its tensors")
        storage.bytes.copy_(untyped(bytearray(data), 0, len(data)))
    return result
