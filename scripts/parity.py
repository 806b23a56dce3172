"""Run parity cases through this project: one line per case, exit code 1 if any fails.

    python scripts/parity.py FOLDER [--strict] [--only 'classify_*']

FOLDER holds cases: ``<name>.json`` manifests with ``<name>.npz`` outputs. Nothing in it is executed. The last column is
the output that comes closest to its tolerance: its largest error, and that error over the allowed one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from parity_cases import load_runners, run_case


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all passed, 1 some failed (with ``--strict`` also: not built), 2 no cases there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of cases")
    parser.add_argument("--strict", action="store_true", help="cases of kinds that are not built fail")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="run the cases whose name matches, as in a shell"
    )
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, installed or not
    load_runners()
    paths = [path for path in sorted(options.folder.glob("*.json")) if fnmatch(path.stem, options.only)]
    if not paths:
        print(f"no case {options.only!r} in {options.folder}", file=sys.stderr)
        return 2
    width = max(len(path.stem) for path in paths)
    count: Counter[str] = Counter()
    for path in paths:
        outcome = run_case(path)
        count[outcome.status] += 1
        print(f"{outcome.status:9}  {outcome.name:{width}}  {outcome.note}", flush=True)
    print(f"{count['pass']} passed, {count['FAIL']} failed, {count['not built']} not built")
    return int(bool(count["FAIL"] or (options.strict and count["not built"])))


if __name__ == "__main__":
    sys.exit(main())
