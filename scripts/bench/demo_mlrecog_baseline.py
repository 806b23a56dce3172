"""What one would try before training anything: the nearest neighbour of the raw pixels.

``python scripts/bench/demo_mlrecog_baseline.py REFERENCE QUERY`` prints its precision at 1, the mean over classes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout, installed or not

import torch
from PIL import Image

from mlrecog.folders import ClassFolders, read_class_folders
from mlrecog.metrics import retrieval
from mlrecog.neighbours import unit

PIXELS = "nearest neighbour of the raw pixels"


def baselines(reference: Path, query: Path, side: int = 32) -> dict[str, float]:
    """Precision at 1 of pixels, resized to ``side``."""
    gallery = read_class_folders(str(reference), key="reference")
    queries = read_class_folders(str(query), key="query", classes=gallery.classes)
    sides = [(_pixels(part, side), torch.tensor([s.label for s in part.samples])) for part in (queries, gallery)]
    return {PIXELS: retrieval(*sides[0], *sides[1]).mean("precision_at_1", by_class=True)}


def _pixels(folders: ClassFolders, side: int) -> torch.Tensor:
    rows = []
    for sample in folders.samples:
        with Image.open(sample.path) as image:
            rows.append(np.asarray(image.convert("RGB").resize((side, side)), np.float32).ravel())
    return unit(torch.from_numpy(np.stack(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("query", type=Path)
    args = parser.parse_args()
    for name, precision in baselines(args.reference, args.query).items():
        print(f"{name}: {precision:.3f}")


if __name__ == "__main__":
    main()
