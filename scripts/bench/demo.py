"""The classify demo over several seeds: AUROC of the model against that of the registered picture difference.

``python scripts/bench/demo.py [--seeds 0 1 2]``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo_baseline import auroc, scores_of  # noqa: E402

MIN_AUROC, MIN_GAIN = 0.95, 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    print(f"{'seed':>4} {'model':>7} {'baseline':>9} {'gain':>6} {'seconds':>8}")
    good = True
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--folder", folder, "--seed", str(seed)]
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.monotonic() - start
            metrics = json.loads((Path(folder) / "results" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
            data = Path(folder) / "data"
            baseline = auroc(*scores_of(data / "test.csv", data / "images", ["SolderLight", "WhiteLight"]))
        model = metrics["total"]["auroc"]
        good &= model >= MIN_AUROC and model - baseline >= MIN_GAIN
        print(f"{seed:>4} {model:>7.3f} {baseline:>9.3f} {model - baseline:>+6.3f} {seconds:>8.0f}", flush=True)
    print(f"every seed at least {MIN_AUROC} and {MIN_GAIN} above the baseline: {'yes' if good else 'NO'}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
