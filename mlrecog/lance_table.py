"""The table that a LanceDB gallery is: where it is, what is in it, and how rows get into it."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np

from fiducial.errors import DatasetError, UserError, one_line, optional
from fiducial.machine import explained
from fiducial.redact import public_url
from mlrecog.gallery_base import Part, exclusive
from mlrecog.gallery_card import GalleryCard
from mlrecog.gallery_table import Entry

__all__ = ["COLUMNS", "META", "Place", "Spool"]
__all__ += ["card_of", "chunks", "entries_of", "is_in", "quoted", "told", "vectors_of"]

COLUMNS = ("label", "source", "sha256", "added")
META = "fiducial"
"""Entry of the metadata of the column ``vector`` that holds the gallery's description."""


class Place:
    """Where a table is."""

    def __init__(self, path: str) -> None:
        self.remote = path.startswith("s3://")
        self.path = path.rstrip("/") if self.remote else str(Path(path).expanduser())
        if self.remote and "@" in self.path.split("/")[2]:
            fix = "give them in the environment (AWS_ACCESS_KEY_ID, …) or a profile"
            raise DatasetError("gallery.path", f"credentials in {public_url(path)}", fix)
        folder, last = os.path.split(self.path)
        is_table = last.endswith(".lance")
        self.uri, self.name = (folder, last.removesuffix(".lance")) if is_table else (self.path, "gallery")
        if not re.fullmatch(r"[\w.-]+", self.name, re.ASCII):
            fix = "use letters, digits, _ and - alone"
            raise DatasetError("gallery.path", f"{last!r} cannot be a table's name", fix)

    def connect(self) -> Any:
        os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of cells of its index that are empty
        lancedb = optional("lancedb", extra="lancedb")
        if not self.remote:
            return lancedb.connect(self.uri)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return lancedb.connect(self.uri, storage_options={"allow_http": str(endpoint.startswith("http://")).lower()})

    def table(self) -> Any | None:
        """The table; None where there is none."""
        if not self.remote and not self._folder.is_dir():
            return None  # to connect would make the folder
        with told(self.path):
            database = self.connect()
            try:
                return database.open_table(self.name)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    def check_free(self, *, overwrite: bool) -> None:
        """Raises: DatasetError when a gallery is there, or something else."""
        if not self.remote and self._folder.exists() and not self._folder.is_dir():
            raise DatasetError(self.path, "is a file", "name a folder *.lance")
        if not overwrite and self.table() is not None:
            raise DatasetError(self.path, "there is a gallery", "add to it, or set gallery.overwrite=true")

    def mode(self) -> str:
        """How lancedb makes a table there."""
        return "create" if self.table() is None and not self._folder.exists() else "overwrite"

    def locked(self) -> AbstractContextManager[None]:
        """Held against other writers; in object storage LanceDB itself lets but one of two win."""
        if self.remote:
            return nullcontext()
        return exclusive(self._folder.with_name(f".{self.name}.lance.lock"), self.path)

    @property
    def _folder(self) -> Path:
        return Path(self.uri) / f"{self.name}.lance"


class Spool:
    """Pictures on the disk, in a temporary file, until all are there to be written at once."""

    def __init__(self, card: GalleryCard, where: str) -> None:
        self.pa = optional("pyarrow", extra="lancedb")
        self.card, self.where = card, where
        self.schema = _schema(self.pa, card)
        self.last: dict[str, tuple[int, str]] = {}
        """Of each source the number of its last row, and its SHA-256."""
        self.first = time.time_ns()
        """Number of the first row: later ones come after all that are there."""
        self._folder = tempfile.TemporaryDirectory(prefix="gallery-")
        self._file = Path(self._folder.name) / "rows.arrow"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def write(self, parts: Iterable[Part]) -> None:
        pa, number = self.pa, self.first
        with pa.OSFile(str(self._file), "wb") as file, pa.ipc.new_stream(file, self.schema) as stream:
            for part in (part.checked(self.card.dim, self.where) for part in parts):
                numbers = list(range(number, number + len(part.entries)))
                self.last.update({e.source: (n, e.sha256) for e, n in zip(part.entries, numbers, strict=True)})
                number += len(numbers)
                texts = [pa.array([getattr(e, name) for e in part.entries], pa.string()) for name in COLUMNS]
                flat = pa.array(part.embeddings_ND.numpy().ravel(), pa.float32())
                vectors = pa.FixedSizeListArray.from_arrays(flat, type=self.schema.field("vector").type)
                stream.write_batch(
                    pa.record_batch([pa.array(numbers, pa.int64()), *texts, vectors], schema=self.schema)
                )

    def reader(self, without: Iterable[str] = ()) -> Any:
        """The rows as lancedb takes them; of several of one source the last."""
        gone = set(without)
        kept = np.array(sorted(number for source, (number, _) in self.last.items() if source not in gone), np.int64)

        def batches() -> Iterator[Any]:
            with self.pa.memory_map(str(self._file)) as file, self.pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield batch.filter(self.pa.array(np.isin(batch["number"].to_numpy(), kept)))

        return self.pa.RecordBatchReader.from_batches(self.schema, batches())


def _schema(pa: Any, card: GalleryCard) -> Any:
    texts = [pa.field(name, pa.string(), nullable=False) for name in COLUMNS]
    vector = pa.field("vector", pa.list_(pa.float32(), card.dim), metadata={META: json.dumps(card.plain())})
    return pa.schema([pa.field("number", pa.int64(), nullable=False), *texts, vector])


def card_of(schema: Any, where: str) -> GalleryCard:
    """The description of a table. Raises: DatasetError when it is no gallery's."""
    fix = "name a table that `gallery build` made"
    if missing := sorted({"number", *COLUMNS, "vector"} - set(schema.names)):
        raise DatasetError(where, f"a table without the columns {', '.join(missing)}", fix)
    field = schema.field("vector")
    try:
        said = json.loads((field.metadata or {})[META.encode()])
    except (KeyError, ValueError, RecursionError):
        raise DatasetError(where, "a table without a gallery's description", fix) from None
    card = GalleryCard.of(said, where)
    types = {name: str(schema.field(name).type) for name in ("number", *COLUMNS, "vector")}
    wanted = {"number": "int64", **dict.fromkeys(COLUMNS, "string"), "vector": f"[{card.dim}]"}
    for name, kind in types.items():
        if not kind.endswith(wanted[name]) or (name == "vector" and "float" not in kind):
            raise DatasetError(where, f"a column {name} of type {kind}", fix)
    return card


def entries_of(batch: Any) -> list[Entry]:
    return [Entry(*texts) for texts in zip(*(batch[name].to_pylist() for name in COLUMNS), strict=True)]


def vectors_of(rows: Any, dim: int) -> np.ndarray[Any, Any]:
    """The column ``vector``, float32 ``(N, dim)``; NaN where there is none."""
    column = rows["vector"]
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(values) != len(rows) * dim:
        return np.full((rows.num_rows, dim), np.nan, np.float32)
    return np.array(values, np.float32).reshape(-1, dim)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def is_in(column: str, values: Iterable[str]) -> str:
    """An SQL condition."""
    return f"{column} IN ({', '.join(quoted(value) for value in sorted(values))})"


def chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def told(where: str) -> Iterator[None]:
    """What lancedb raises, in a line. Raises: DatasetError; StorageError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        folder = Path(tempfile.gettempdir() if "://" in where else where).parent
        if isinstance(error, OSError) and (known := explained(error, folder)):
            raise known from error
        access = "AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like" if "://" in where else "its permissions"
        fix = f"check that it is there, and {access}; then try again"
        raise DatasetError(where, f"LanceDB stopped: {one_line(error, 200)}", fix) from error
