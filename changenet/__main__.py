"""``python -m changenet ACTION``, also installed as ``changenet`` and ``visual_changenet``."""

from __future__ import annotations

import sys

from changenet.classify.task import CLASSIFY
from changenet.segment.task import SEGMENT
from fiducial import cli

TASKS = (CLASSIFY, SEGMENT)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(cli.main(TASKS, prog="changenet"))


if __name__ == "__main__":
    main()
