"""Real photographs with boxes and masks: those that scikit-image brings, and a rule that finds objects in them.

    python scripts/bench/mal_photos.py FOLDER [--epochs 40]

trains a small labeller on the boxes of the left part of each picture, and prints its mIoU on the objects of the right
part beside that of the filled box and of the ellipse in it.

The rule (:func:`objects_of`): grey, smoothed; minus what a wide Gaussian leaves of it, the lighting; above Otsu's
threshold of that; holes filled; a connected component is an object if it does not touch the border of its part of the
picture and has enough pixels. Where ink is darker than paper the picture is inverted first. Masks that such a rule can
find are easy to find for a mean field that follows colours, too: this says that the labeller learns from boxes on real
photographs, not how well it does where a threshold fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # runs from a checkout, installed or not

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from demo_mal_baseline import baselines  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import ndimage  # noqa: E402
from skimage import data as skimage_data  # noqa: E402
from skimage.filters import threshold_otsu  # noqa: E402

import mal  # noqa: E402


@dataclass(frozen=True)
class Photo:
    """A picture of ``skimage.data``, what the objects in it are, and the fewest pixels that one of them has."""

    name: str
    what: str
    min_area: int
    dark: bool = False


PHOTOS = (
    Photo("coins", "coin", 400),
    Photo("hubble_deep_field", "galaxy", 64),
    Photo("page", "letters", 40, dark=True),
)
TRAINED = 0.6
"""The part of a picture, from its left edge, whose objects are trained on; the others are held back."""
EPOCHS = 40
SMOOTHING, LIGHTING = 1.0, 0.1
"""Of the Gaussians of the rule: pixels, and a share of the picture's longer side."""


def foreground(grey: np.ndarray, *, dark: bool = False) -> np.ndarray:
    """Which pixels of a grey picture ``(H, W)`` are an object's, by the rule; bool."""
    values = 255.0 - grey if dark else grey.astype(float)
    even = ndimage.gaussian_filter(values, SMOOTHING) - ndimage.gaussian_filter(values, LIGHTING * max(grey.shape))
    return ndimage.binary_fill_holes(even > threshold_otsu(even))


def components(mask: np.ndarray, min_area: int) -> Iterator[np.ndarray]:
    """The masks of connected components of at least ``min_area`` pixels that do not touch the border."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    at_border = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    for number in range(1, count + 1):
        if number not in at_border and sizes[number] >= min_area:
            yield labels == number


def objects_of(photo: Photo) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """Pixels ``(H, W, 3)`` and the masks of objects, of the ``train`` and the ``test`` part of a photograph."""
    pixels = np.asarray(Image.fromarray(getattr(skimage_data, photo.name)()).convert("RGB"))
    mask = foreground(np.asarray(Image.fromarray(pixels).convert("L")), dark=photo.dark)
    cut = int(TRAINED * pixels.shape[1])
    parts = {"train": slice(0, cut), "test": slice(cut, None)}
    return {name: (pixels[:, part], list(components(mask[:, part], photo.min_area))) for name, part in parts.items()}


def write(folder: Path) -> dict[str, int]:
    """``train.json`` (boxes alone), ``test.json`` (masks too) and the pictures; the number of objects of each."""
    from pycocotools import mask as coco_mask

    folder.mkdir(parents=True, exist_ok=True)
    categories = [{"id": number, "name": photo.what} for number, photo in enumerate(PHOTOS, 1)]
    trees: dict[str, dict[str, Any]] = {
        part: {"images": [], "annotations": [], "categories": categories} for part in ("train", "test")
    }
    for number, photo in enumerate(PHOTOS, 1):
        for part, (pixels, masks) in objects_of(photo).items():
            file, (height, width) = f"{photo.name}_{part}.png", pixels.shape[:2]
            Image.fromarray(pixels).save(folder / file)
            tree = trees[part]
            tree["images"].append({"id": number, "file_name": file, "width": width, "height": height})
            for mask in masks:
                row = {"id": len(tree["annotations"]) + 1, "image_id": number, "category_id": number, "iscrowd": 0}
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                row |= {"bbox": coco_mask.toBbox(rle).tolist(), "area": float(mask.sum())}
                if part == "test":
                    row["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
                tree["annotations"].append(row)
    for part, tree in trees.items():
        (folder / f"{part}.json").write_text(json.dumps(tree), encoding="utf-8")
    return {part: len(tree["annotations"]) for part, tree in trees.items()}


def spec_of(folder: Path, epochs: int = EPOCHS, **train: Any) -> dict[str, Any]:
    """The demo's spec on these pictures. The held-back objects are looked at once, after training."""
    spec: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "mal" / "demo.yaml").read_text(encoding="utf-8"))
    spec["results_dir"] = str(folder / "results")
    spec["dataset"] |= {"train_ann_path": str(folder / "train.json"), "train_img_dir": str(folder)}
    spec["dataset"] |= {"val_ann_path": "", "val_img_dir": "", "min_obj_size": 0, "num_workers_per_gpu": 0}
    spec["train"] |= dict.fromkeys(("num_epochs", "checkpoint_interval", "validation_interval"), epochs) | train
    spec["evaluate"] |= {"checkpoint": "latest"}
    return {name: spec[name] for name in ("results_dir", "wandb", "model", "dataset", "train", "evaluate")}


def measure(folder: Path, epochs: int = EPOCHS, **train: Any) -> dict[str, float]:
    """Train and evaluate; the mIoU of ``labeller`` and of the baselines on the held-back objects."""
    write(folder)
    spec = spec_of(folder, epochs, **train)
    mal.run("train", spec)
    spec["dataset"] |= {"val_ann_path": str(folder / "test.json"), "val_img_dir": str(folder)}
    found = mal.run("evaluate", spec)
    return {"labeller": float(found.kpis["mIoU"]), **baselines(folder / "test.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    start = time.monotonic()
    numbers = measure(args.folder, args.epochs)
    for name, miou in numbers.items():
        print(f"{name:20} mIoU {miou:.3f}")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
