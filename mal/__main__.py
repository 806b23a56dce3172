"""``python -m mal ACTION``, also installed as ``mal``."""

from __future__ import annotations

import sys

from fiducial import cli
from mal.task import MAL

TASKS = (MAL,)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(cli.main(TASKS, prog="mal"))


if __name__ == "__main__":
    main()
