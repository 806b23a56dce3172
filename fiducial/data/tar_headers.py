"""The headers of a tar archive that nobody trusts: what tarfile takes on faith, or reads without end, is refused."""

from __future__ import annotations

import logging
import tarfile
from typing import Any, Self

__all__ = ["StrictHeader"]

log = logging.getLogger("fiducial")

_MAX_HEADER = 1 << 20
"""Bytes of an extended header (a long name, a pax record), which tarfile reads into memory whole."""
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class StrictHeader(tarfile.TarInfo):
    """A header; where tarfile would take a cut or garbled one for the end of the archive, this one complains.

    Raises: tarfile.ReadError also for negative sizes, for extended headers above 1 MiB, and for sparse members, whose
        few bytes unpack to any size.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            header = super().fromtarfile(tar)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # unknown to typeshed
            if tar.offset:
                log.warning("%s has no end mark: it may have been cut off", tar.name)
            raise
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the true end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or tar.offset < header.offset_data:  # the next header would be one that was read before
            raise tarfile.ReadError(f"the size of {header.name!r} is negative")
        return header

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in _EXTENDED and self.size > _MAX_HEADER):
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]  # unknown to typeshed

    def _refuse_sparse(self, *_: Any) -> Any:
        raise tarfile.ReadError("a sparse member; pack without --sparse")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse
