"""What a run prints: one line format on stderr, as scripts that follow TAO's logs expect it."""

from __future__ import annotations

import logging
import os
import sys

from fiducial.redact import redact_text
from fiducial.run.ranks import global_rank

LOGGER = logging.getLogger("fiducial")
PASS = "Execution status: PASS"
FAIL = "Execution status: FAIL"
_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31;1m"}


class _Formatter(logging.Formatter):
    def __init__(self, colour: bool) -> None:
        super().__init__("%(asctime)s - [Fiducial] - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = redact_text(super().format(record))
        start = _COLOURS.get(record.levelname, "") if self.colour else ""
        return f"{start}{text}\033[0m" if start else text


def last_line(status: str) -> None:
    """The line that scripts look for: printed by rank 0, whatever the level."""
    if global_rank() == 0:
        level = logging.INFO if status == PASS else logging.WARNING
        LOGGER.handle(LOGGER.makeRecord(LOGGER.name, level, __file__, 0, status, (), None))


def set_up_console() -> None:
    """Send this package's log lines to stderr, at the level ``TAO_LOGGING_LEVEL`` names (INFO when unset).

    Under several processes only rank 0 speaks, except for errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(sys.stderr.isatty()))
    wanted = os.environ.get("TAO_LOGGING_LEVEL", "INFO").upper()
    level = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(wanted, wanted)
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    known = logging.getLevelNamesMapping()
    LOGGER.setLevel(known.get(level, logging.INFO) if global_rank() == 0 else logging.ERROR)
