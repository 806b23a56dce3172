"""Specs of random keys, types, depths, numbers, texts, tags and anchors: a spec or a listed problem, no traceback.

    python scripts/bench/fuzz_specs.py [--specs 20000]

Runs the property tests of ``tests/fiducial/spec/test_fuzz_spec.py`` with so many examples in all, other ones each time;
what fails is printed with the smallest spec that does it, and the exit code is 1. Needs the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "fiducial" / "spec" / "test_fuzz_spec.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", type=int, default=20_000)
    options = parser.parse_args(arguments)
    tests = TESTS.read_text("utf-8").count("@given(")
    each = -(-options.specs // tests)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(TESTS)],
        cwd=ROOT,
        env={**os.environ, "FIDUCIAL_FUZZ_EXAMPLES": str(each)},
        check=False,
    )
    print(f"{tests} properties, up to {each * tests:,} specs in {time.perf_counter() - start:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
