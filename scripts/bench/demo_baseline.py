"""What one would try before training anything: align each picture with its golden picture, then subtract.

``python scripts/bench/demo_baseline.py test.csv images --lights SolderLight WhiteLight`` prints its AUROC.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import shift
from skimage.registration import phase_cross_correlation

MAX_SHIFT = 4  # pixels; what lies further is no stage error


def registered_difference_score(test_paths: Sequence[Path], golden_paths: Sequence[Path]) -> float:
    """Mean absolute difference, 0..1, over pixels, channels and lights, after phase correlation to a tenth of a pixel.

    The paths are the lights of one pair, in the same order. A shift beyond ``MAX_SHIFT`` is taken for a failed
    registration and left out. Pixels that the shift brings in from outside are not compared.
    """
    return float(np.mean([_difference(_read(t), _read(g)) for t, g in zip(test_paths, golden_paths, strict=True)]))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64) / 255


def _difference(test: np.ndarray, golden: np.ndarray) -> float:
    move, _, _ = phase_cross_correlation(golden.mean(2), test.mean(2), upsample_factor=10)
    if np.abs(move).max() > MAX_SHIFT:
        move = np.zeros(2)
    aligned = shift(test, (*move, 0), order=1, mode="nearest")
    inner = slice(MAX_SHIFT, -MAX_SHIFT)
    return float(np.abs(aligned - golden)[inner, inner].mean())


def scores_of(
    csv_path: Path, images_dir: Path, lights: Sequence[str], ext: str = ".png"
) -> tuple[np.ndarray, np.ndarray]:
    """Score and label (1 = defect) of every row of a TAO classify CSV."""
    scores, labels = [], []
    with csv_path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            test, golden = (
                [images_dir / row[column] / f"{row['object_name']}_{light}{ext}" for light in lights]
                for column in ("input_path", "golden_path")
            )
            scores.append(registered_difference_score(test, golden))
            labels.append(int(row["label"] != "PASS"))
    return np.array(scores), np.array(labels)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (defect, good) pairs in which the defect scores higher; ties count one half."""
    good, bad = scores[labels == 0], scores[labels == 1]
    return float((np.sign(bad[:, None] - good[None, :]) / 2 + 0.5).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv_path", type=Path)
    parser.add_argument("images_dir", type=Path)
    parser.add_argument("--lights", nargs="+", default=["SolderLight", "WhiteLight"])
    args = parser.parse_args()
    scores, labels = scores_of(args.csv_path, args.images_dir, args.lights)
    print(f"registered difference: AUROC {auroc(scores, labels):.3f} over {len(labels)} rows, {labels.sum()} defects")


if __name__ == "__main__":
    main()
