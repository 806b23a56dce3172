"""What boxes give without any training: the whole box as mask, or the ellipse that touches its four sides.

``python scripts/bench/demo_mal_baseline.py ann.json`` prints the mIoU of both, over the boxes that have a true mask and
as ``mal evaluate`` counts: the mean over classes of the mean IoU of their objects.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout, installed or not

from mal.annotations import Box, read_annotations, select
from mal.config import ExperimentSpec
from mal.crop import Corners
from mal.decode import PlacedMask
from mal.metrics import ClassIou
from mal.splits import rules_of

FILLED, ELLIPSE = "filled box", "inscribed ellipse"


def baselines(annotation_path: Path, images: Path | None = None, *, kind: str = "coco") -> dict[str, float]:
    """The mIoU of :data:`FILLED` and :data:`ELLIPSE`, of the boxes that ``mal evaluate`` measures by default.

    ``images``: where the pictures are, needed where the annotations do not tell their sizes (``kind`` yolo or voc).
    NaN where no box has a mask.
    """
    annotations = read_annotations(annotation_path, images=images, kind=kind)
    metrics = {shape: ClassIou(len(annotations.class_names)) for shape in SHAPES}
    for box in select(annotations, rules_of(ExperimentSpec(), "val")).boxes:
        if annotations.has_mask(box):
            true = annotations.mask(box)
            for shape, metric in metrics.items():
                metric.add(box.category, placed(shape, box, *true.shape).iou(true), box.area)
    return {shape: metric.mean() for shape, metric in metrics.items()}


def placed(shape: str, box: Box, height: int, width: int) -> PlacedMask:
    """The pixels of a picture ``(height, width)`` whose centres lie in a shape that fills ``box``."""
    x0, y0, x1, y1 = box.corners
    left, top = math.floor(x0), math.floor(y0)
    columns = np.arange(left, min(math.ceil(x1), width)) + 0.5
    rows = np.arange(top, min(math.ceil(y1), height)) + 0.5
    return PlacedMask(SHAPES[shape](rows[:, None], columns[None], box.corners), left, top, width, height)


def _filled(y: np.ndarray, x: np.ndarray, corners: Corners) -> np.ndarray:
    x0, y0, x1, y1 = corners
    return (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)


def _ellipse(y: np.ndarray, x: np.ndarray, corners: Corners) -> np.ndarray:
    x0, y0, x1, y1 = corners
    across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
    return across**2 + down**2 <= 1


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, Corners], np.ndarray]] = {FILLED: _filled, ELLIPSE: _ellipse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    args = parser.parse_args()
    for shape, miou in baselines(args.annotations, args.images).items():
        print(f"{shape}: mIoU {miou:.3f}")


if __name__ == "__main__":
    main()
