"""The zip files of ``torch.save``: a pickle, and one member for the bytes of each tensor."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

import torch

from fiducial.checkpoints.budget import Budget, TooMuchError, inflated_limit, size_on_disk
from fiducial.checkpoints.stand_ins import Storage
from fiducial.checkpoints.unpickling import Unpickler, mapped, storage_kind, untyped

__all__ = ["load_zip"]


class _Zip:
    """The members of a zip file of ``torch.save``, by their names below its root."""

    def __init__(self, file: BinaryIO) -> None:
        self.archive = zipfile.ZipFile(file)
        if isinstance(file, io.BytesIO):
            self.bytes: Any = bytearray(file.getvalue())
            self.size = len(self.bytes)
        else:
            self.bytes = mapped(file, mmap.ACCESS_COPY)
            self.size = size_on_disk(file.fileno())
        self.members = {name.split("/", 1)[-1]: self.archive.getinfo(name) for name in self.archive.namelist()}
        grown = sum(m.file_size for m in self.members.values() if m.compress_type != zipfile.ZIP_STORED)
        if grown > inflated_limit(self.size):
            raise TooMuchError(f"its members grow to {grown / 2**20:,.0f} MiB when they are unpacked")

    def place(self, name: str) -> tuple[Any, int, int]:
        """A buffer, and where in it the member begins and how long it is."""
        member = self.members[name]
        if member.compress_type == zipfile.ZIP_DEFLATED:
            content = bytearray(self.archive.read(member))
            return content, 0, len(content)
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed in a way that torch does not know")
        names = struct.unpack_from("<HH", self.bytes, member.header_offset + 26)  # of the local header, 30 bytes
        start = member.header_offset + 30 + sum(names)
        if start + member.file_size > len(self.bytes):
            raise EOFError(f"the file ends inside {name}")
        return self.bytes, start, member.file_size

    def content(self, name: str) -> bytes:
        """Raises: ValueError when the checksum differs; torch can leave it out, and then it is 0."""
        buffer, start, size = self.place(name)
        content = bytes(memoryview(buffer)[start : start + size])
        if self.members[name].CRC not in (0, zlib.crc32(content)):
            raise ValueError(f"wrong checksum of {name}")
        return content


def load_zip(file: BinaryIO, foreign: set[str], *, copy: bool = False) -> Any:
    """The object of a zip file of ``torch.save``.

    Storages are views into a copy-on-write map of a real file, or with ``copy`` their own.

    Raises: RefusedGlobalError, TooMuchError; anything else when the file is damaged.
    """
    archive = _Zip(file)
    if "byteorder" in archive.members and archive.content("byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    loaded: dict[str, torch.UntypedStorage] = {}
    copied = Budget(archive.size)

    def storage_of(pid: Any) -> Storage:
        _, kind, key, *_ = pid
        if key not in loaded:
            storage = untyped(*archive.place(f"data/{key}"))
            if copy:
                copied.spend(storage.nbytes())
            loaded[key] = storage.clone() if copy else storage  # type: ignore[no-untyped-call]
        return Storage(loaded[key], storage_kind(kind))

    pickled = archive.members["data.pkl"]
    budget = Budget(min(pickled.compress_size, archive.size))
    budget.spend(pickled.file_size)
    return Unpickler(io.BytesIO(archive.content("data.pkl")), storage_of, foreign, budget).load()
