"""The command line of :mod:`quick_task`; says at its end whether torch was imported."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]

if __name__ == "__main__":
    from quick_task import QUICK

    from fiducial import cli

    code = cli.main([QUICK], prog="quick")
    print(f"torch: {'torch' in sys.modules}")
    sys.exit(code)
