"""What TAO has packed or encrypted: EFF archives and state dicts that are bytes. Nothing is written encrypted.

The codec is NVIDIA's own and not public: files are opened where its package ``eff`` is installed.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

from fiducial.checkpoints.budget import TooMuchError, inflated_limit, size_on_disk
from fiducial.errors import CheckpointError, one_line

__all__ = ["EFF_MEMBER", "ETLT_FIX", "decrypted", "eff_content", "wrong_key"]

EFF_MEMBER = "tlt_pytorch_model.pth"
"""The model within an EFF archive."""
ETLT_FIX = "decrypt once inside a TAO container, or install nvidia-eff"


class _Bounded:
    """A gzip file, read forward, that ends in an error where it grows beyond what any model of its size does."""

    def __init__(self, file: gzip.GzipFile, limit: int) -> None:
        self._file, self._limit, self._read = file, limit, 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._read += len(content)
        if self._read > self._limit:
            raise TooMuchError(f"it grows to more than {self._limit / 2**20:,.0f} MiB when it is unpacked")
        return content


def eff_content(path: Path) -> bytes | None:
    """The model file in a gzipped EFF archive; None where there is none.

    Raises: TooMuchError, and anything else when the file is damaged.
    """
    limit = inflated_limit(size_on_disk(path))
    with gzip.open(path) as packed:
        if packed.peek(512)[257:262] != b"ustar":
            return None
    with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, limit), mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isfile() and member.name.split("/")[-1] == EFF_MEMBER:
                if member.size > limit:
                    raise TooMuchError(f"its {EFF_MEMBER} is said to have {member.size / 2**20:,.0f} MiB")
                content = archive.extractfile(member)
                return content.read() if content else None
    return None


def decrypted(content: bytes, encryption: Any, path: Path, key: str | None) -> bytes:
    """What was encrypted with ``key``; ``encryption`` is the codec's number of its way.

    Raises: CheckpointError without the codec, without a key, or when the codec refuses the key.
    """
    try:
        from eff.codec import decrypt_stream
    except ImportError:
        raise CheckpointError(str(path), "encrypted with NVIDIA EFF", ETLT_FIX) from None
    if not key:
        fix = "set encryption_key to the key it was trained with (TAO's usual one is tlt_encode)"
        raise CheckpointError(str(path), "encrypted with NVIDIA EFF, and no key given", fix)
    opened = io.BytesIO()
    try:
        decrypt_stream(input_stream=io.BytesIO(content), output_stream=opened, passphrase=key, encryption=encryption)
    except Exception as error:  # a closed library: its errors are unknown
        raise wrong_key(path, one_line(error).replace(key, "…")) from None
    return opened.getvalue()


def wrong_key(path: Path, detail: str) -> CheckpointError:
    """The error that a key does not open a file."""
    return CheckpointError(str(path), f"cannot be decrypted with the given key ({detail})", "check encryption_key")
