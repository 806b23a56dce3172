"""``status.json``: one JSON object per line, for dashboards and hyper-parameter searches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fiducial.redact import redact

Status = Literal["SUCCESS", "FAILURE", "STARTED", "RUNNING", "SKIPPED"]


class StatusWriter:
    """Appends records to ``<folder>/status.json``, flushed one by one. A None folder writes nothing.

    TAO-compat: the last ``kpi`` is repeated on every later record until another replaces it; consumers rely on it.
    Ours carry ``epoch`` beside it, so that a reader need not guess which epoch a KPI belongs to.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "status.json" if folder else None
        self.kpi: dict[str, Any] = {}

    def write(
        self,
        message: str,
        status: Status = "RUNNING",
        *,
        kpi: Mapping[str, Any] | None = None,
        verbosity: str | None = None,
        **data: Any,
    ) -> None:
        """Append one record; ``data`` (epoch, step, …) comes first in it."""
        if kpi:
            self.kpi = {name: _number(value) for name, value in kpi.items()}
        if self.path is None:
            return
        now = datetime.now()
        record: dict[str, Any] = dict(data)
        record["date"] = f"{now.month}/{now.day}/{now.year}"
        record["time"] = f"{now.hour}:{now.minute}:{now.second}"
        record["status"] = status
        record["verbosity"] = verbosity or ("ERROR" if status == "FAILURE" else "INFO")
        record["message"] = message
        if self.kpi:
            record["kpi"] = self.kpi
        line = json.dumps(redact(record)) + "\n"
        with self.path.open("ab") as file:
            file.write((line if _ends_well(self.path) else f"\n{line}").encode())


def _ends_well(path: Path) -> bool:
    """Whether a file is empty or ends with a whole line: a crash, or a full disk, can cut one off."""
    with path.open("rb") as file:
        return file.seek(0, 2) == 0 or (file.seek(-1, 2) >= 0 and file.read(1) == b"\n")


def _number(value: Any) -> Any:
    """Plain JSON for numpy and torch scalars; numbers that JSON cannot hold become None."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_status(path: Path) -> list[dict[str, Any]]:
    """The records of a status.json, none without one; lines that a crash or a bad disk has damaged are left out."""
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
