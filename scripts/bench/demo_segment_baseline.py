"""What one would try before training anything: the difference of both images, and the threshold that suits it best.

``python scripts/bench/demo_segment_baseline.py ROOT [--split test]`` prints its F1, for a threshold that may look at
the masks it is measured on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SMOOTHING = (0.0, 1.0, 2.0)  # pixels; the best of these counts


def difference(before: np.ndarray, after: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """Mean absolute difference of two RGB pictures ``(H, W, 3)`` over the channels, 0..1, perhaps smoothed first."""
    pictures = [gaussian_filter(np.asarray(x, np.float32), (smoothing, smoothing, 0)) for x in (before, after)]
    return np.abs(pictures[0] - pictures[1]).mean(axis=2) / 255


def best_threshold(difference_P: np.ndarray, changed_P: np.ndarray) -> tuple[float, float]:
    """The highest F1 of ``difference >= threshold`` against the truth (bool), both ``(P,)``; and its threshold."""
    order = np.argsort(-difference_P, kind="stable")
    found = np.cumsum(changed_P[order])
    last_of_value = np.append(np.diff(difference_P[order]) != 0, True)
    said = np.arange(1, len(order) + 1)
    f1 = np.where(last_of_value, 2 * found / (said + changed_P.sum()), 0)
    best = int(np.argmax(f1))
    return float(f1[best]), float(difference_P[order][best])


def pixels_of(root: Path, split: str, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """The difference and the truth of every pixel of a split."""
    names = (root / "list" / f"{split}.txt").read_text(encoding="utf-8").split()
    parts = [_read(root, name, smoothing) for name in names]
    return np.concatenate([d for d, _ in parts]), np.concatenate([c for _, c in parts])


def _read(root: Path, name: str, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    before, after = (_pixels(root / part / name, "RGB") for part in ("A", "B"))
    return difference(before, after, smoothing).ravel(), _pixels(root / "label" / name, "L").ravel() > 0


def _pixels(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def best_baseline(root: Path, split: str = "test", smoothing: Iterable[float] = SMOOTHING) -> float:
    """The highest F1 over all thresholds and all smoothings."""
    return max(best_threshold(*pixels_of(root, split, sigma))[0] for sigma in smoothing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with A, B, list and label")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    for sigma in SMOOTHING:
        f1, threshold = best_threshold(*pixels_of(args.root, args.split, sigma))
        print(f"difference, smoothed by {sigma:g} pixels: F1 {f1:.3f} of the change at threshold {threshold:.3f}")


if __name__ == "__main__":
    main()
