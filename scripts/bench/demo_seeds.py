"""A demo over several seeds: the model's number against the best baseline's, and the time of the whole way.

``python scripts/bench/demo_seeds.py classify|segment|mal|mlrecog [--seeds 0 1 2]``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import demo

TARGETS = {"classify": (0.95, 0.10), "segment": (0.80, 0.20), "mal": (0.55, 0.10), "mlrecog": (0.95, -1.0)}
"""The least number of a task's model, and its least distance from the baseline."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TARGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    least, gain = TARGETS[args.task]
    print(demo.DEMOS[args.task].shown)
    print(f"{'seed':>4} {'model':>7} {'baseline':>9} {'gain':>7} {'seconds':>8}", flush=True)
    good = True
    for seed in args.seeds:
        start = time.monotonic()
        quiet = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            numbers = demo.run(args.task, Path(folder), seed)
        logging.getLogger("fiducial").handlers = []
        model = numbers["torch"]
        baseline = max(number for name, number in numbers.items() if name not in demo.RUNTIMES)
        good &= model >= least and model - baseline >= gain
        print(
            f"{seed:>4} {model:>7.3f} {baseline:>9.3f} {model - baseline:>+7.3f} {time.monotonic() - start:>8.0f}",
            flush=True,
        )
    print(f"every seed at least {least}, and {gain} above the baseline: {'yes' if good else 'NO'}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
