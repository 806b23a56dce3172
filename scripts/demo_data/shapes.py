"""Pictures of light leaves, stars, brackets and moons on a dark, rough ground: boxes, and masks for some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from demo_data.paint import smooth_noise

__all__ = ["KINDS", "SPLITS", "make_shapes"]

SPLITS = {"train": 0.8, "val": 0.08, "test": 0.12}
"""Shares of the pictures; those of training have boxes alone."""
_README = """Drawn pictures of {size} x {size} pixels with leaves, stars, brackets and moons, written with seed {seed}.

images/       the pictures
train.json    COCO annotations to train on: boxes alone
val.json      others with masks, to validate
test.json     others with masks, held back
"""
_TRIES = 40
_GAP = 3
Points = NDArray[np.float64]


def leaf(rng: np.random.Generator) -> Points:
    """Pointed at both ends, in -1..1."""
    along = np.linspace(-1, 1, 24)
    half = rng.uniform(0.22, 0.34) * (1 - along**2)
    return np.concatenate([np.stack([along, half], 1), np.stack([along[::-1], -half[::-1]], 1)])


def star(rng: np.random.Generator) -> Points:
    spikes = int(rng.integers(4, 7))
    angle = np.arange(2 * spikes) * np.pi / spikes
    radius = np.where(np.arange(2 * spikes) % 2, rng.uniform(0.3, 0.42), 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def bracket(rng: np.random.Generator) -> Points:
    """Two arms."""
    arm = rng.uniform(0.4, 0.55)
    return np.array([(-1, -1), (1, -1), (1, -1 + arm), (-1 + arm, -1 + arm), (-1 + arm, 1), (-1, 1)]) * 0.85


def moon(rng: np.random.Generator) -> Points:
    """A crescent."""
    depth = rng.uniform(0.3, 0.5)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 20)
    outer = np.stack([np.cos(angle), np.sin(angle)], 1)
    inner = np.stack([depth * np.cos(angle[::-1]), np.sin(angle[::-1])], 1)
    return np.concatenate([outer, inner]) - np.array([0.5, 0.0])


Draw = Callable[[np.random.Generator], Points]
KINDS: dict[str, Draw] = {"leaf": leaf, "star": star, "bracket": bracket, "moon": moon}


def make_shapes(folder: Path, *, pictures: int, shapes: int, size: int, seed: int) -> dict[str, int]:
    """Write ``images/`` and ``train.json``, ``val.json``, ``test.json``; returns the number of shapes of each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = np.repeat(list(SPLITS), _counts(pictures))
    trees = {name: _empty() for name in SPLITS}
    for number, split in enumerate(names):
        rng = np.random.default_rng((seed, number))
        image, masks = _picture(rng, size, shapes)
        file = f"{number:04d}.png"
        Image.fromarray(image).save(folder / "images" / file)
        _annotate(trees[split], number, file, masks, with_masks=split != "train")
    for name, tree in trees.items():
        (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    (folder / "README.txt").write_text(_README.format(size=size, seed=seed), encoding="utf-8")
    return {name: len(tree["annotations"]) for name, tree in trees.items()}


def _counts(pictures: int) -> list[int]:
    counts = [max(1, round(share * pictures)) for share in SPLITS.values()]
    counts[0] = max(1, pictures - sum(counts[1:]))
    return counts


def _empty() -> dict[str, Any]:
    categories = [{"id": number, "name": name} for number, name in enumerate(KINDS, 1)]
    return {"images": [], "annotations": [], "categories": categories}


def _picture(rng: np.random.Generator, size: int, shapes: int) -> tuple[NDArray[np.uint8], list[tuple[str, Any]]]:
    ground = rng.uniform(40, 100, 3) + 14 * smooth_noise(rng, size, 12)[..., None] + rng.normal(0, 7, (size, size, 3))
    taken = np.zeros((size, size), bool)
    masks: list[tuple[str, Any]] = []
    rows, columns = np.mgrid[:size, :size] + 0.5
    centres = np.stack([columns, rows], -1).reshape(-1, 2)
    for _ in range(_TRIES):
        if len(masks) == shapes:
            break
        kind = str(rng.choice(list(KINDS)))
        radius = rng.uniform(0.1, 0.17) * size
        turn = rng.uniform(0, 2 * np.pi)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        middle = rng.uniform(radius, size - radius, 2)
        outline = KINDS[kind](rng) @ spin.T * radius + middle
        mask = Outline(outline).contains_points(centres).reshape(size, size)
        if mask.sum() < 40 or (taken & mask).any():
            continue
        taken |= np.abs(columns - middle[0]) + np.abs(rows - middle[1]) < 1.3 * radius + _GAP
        masks.append((kind, mask))
        ground[mask] = _paint(rng, ground[mask].mean(0), rows[mask], columns[mask])
    return np.clip(ground, 0, 255).astype(np.uint8), masks


def _paint(rng: np.random.Generator, around: Any, rows: Any, columns: Any) -> Any:
    """A colour lighter than that of the ground, with soft stripes and grain."""
    colour = np.minimum(around + rng.uniform(35, 130, 3), 235)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 12)
    stripes = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period)
    return colour + 10 * stripes[:, None] + rng.normal(0, 6, (len(rows), 3))


def _annotate(tree: dict[str, Any], number: int, file: str, masks: list[tuple[str, Any]], *, with_masks: bool) -> None:
    size = masks[0][1].shape if masks else (0, 0)
    tree["images"].append({"id": number, "file_name": file, "width": size[1], "height": size[0]})
    for kind, mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, width, height = (int(v) for v in coco_mask.toBbox(rle))
        row = {
            "id": 100 * number + len(tree["annotations"]),
            "image_id": number,
            "category_id": list(KINDS).index(kind) + 1,
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": 0,
        }
        if with_masks:
            row["segmentation"] = {"size": list(size), "counts": rle["counts"].decode("ascii")}
        tree["annotations"].append(row)
