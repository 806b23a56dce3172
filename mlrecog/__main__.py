"""``python -m mlrecog ACTION``, also installed as ``mlrecog`` and as TAO's ``ml_recog``."""

from __future__ import annotations

import sys

from fiducial import cli
from mlrecog.task import ML_RECOG

TASKS = (ML_RECOG,)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(cli.main(TASKS, prog="mlrecog"))


if __name__ == "__main__":
    main()
