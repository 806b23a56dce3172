"""Annotated pictures for the tests of MAL: soft discs on noise, with boxes and masks."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

os.environ.setdefault("OMP_NUM_THREADS", "1")

HEIGHT, WIDTH = 96, 128


def disc(rng, image):
    """Paint an ellipse; returns its mask."""
    x, y = rng.uniform(20, WIDTH - 20), rng.uniform(20, HEIGHT - 20)
    a, b = rng.uniform(9, 18, 2)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1
    image[mask] = rng.uniform(140, 250, 3) + rng.normal(0, 5, (mask.sum(), 3))
    return mask


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return [int(v) for v in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]


def rle_of(mask):
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def make_pictures(folder, *, count=4, boxes=3, seed=0, masks=True):
    """``folder/img`` and ``folder/ann.json``; returns the tree."""
    rng = np.random.default_rng(seed)
    (folder / "img").mkdir(parents=True)
    tree = {
        "info": {"description": "drawn"},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "disc"}, {"id": 3, "name": "other disc"}],
    }
    for i in range(count):
        image = rng.normal(80, 8, (HEIGHT, WIDTH, 3))
        tree["images"].append({"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for k in range(boxes):
            mask = disc(rng, image)
            bbox = box_of(mask)
            row = {"id": 100 * i + k, "image_id": i + 1, "category_id": 7 if k % 2 else 3, "bbox": bbox}
            row |= {"area": bbox[2] * bbox[3], "iscrowd": 0, "attributes": {"track": k}}
            tree["annotations"].append(row | ({"segmentation": rle_of(mask)} if masks else {}))
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / "img" / f"{i}.png")
    (folder / "ann.json").write_text(json.dumps(tree))
    return tree


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder with ``train`` (boxes alone) and ``val`` (masks too)."""
    root = tmp_path_factory.mktemp("pictures")
    make_pictures(root / "train", count=5, seed=0, masks=False)
    make_pictures(root / "val", count=2, seed=1)
    return root


@pytest.fixture
def labelled_picture(tmp_path):
    """Writes annotation files by name, and pictures of 100 x 80; gives the folders of both."""

    def make(files, pictures=("a.png",), folder="labels"):
        labels, images = tmp_path / folder, tmp_path / "img"
        labels.mkdir(parents=True)
        for name, content in files.items():
            (labels / name).parent.mkdir(parents=True, exist_ok=True)
            (labels / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for name in pictures:
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(images / name)
        return labels, images

    return make


def merged(tree, changes):
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@pytest.fixture(scope="session")
def make_tree(pictures):
    """A spec's tree of a tiny network on the pictures; changes as ``train__num_epochs=3``."""

    def make(results, **changes):
        train, val = (
            {"ann": str(pictures / n / "ann.json"), "img": str(pictures / n / "img")} for n in ("train", "val")
        )
        tree = {
            "results_dir": str(results),
            "wandb": {"enable": False},
            "dataset": {
                "train_ann_path": train["ann"],
                "train_img_dir": train["img"],
                "val_ann_path": val["ann"],
                "val_img_dir": val["img"],
                "min_obj_size": 10,
                "crop_size": 32,
                "num_workers_per_gpu": 0,
            },
            "model": {"arch": "vit-deit-tiny/16", "mask_head_hidden_channel": 8, "mask_head_out_channel": 8},
            "train": {"num_epochs": 2, "batch_size": 4, "use_amp": False, "lr": 1e-5, "crf_num_iter": 5},
            "evaluate": {"checkpoint": "latest"},
            "inference": {"checkpoint": "latest", "ann_path": val["ann"], "img_dir": val["img"]},
            "export": {"checkpoint": "latest"},
        }
        return merged(tree, changes)

    return make


@pytest.fixture(scope="session")
def write_spec(make_tree):
    def write(folder, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "spec.yaml"
        path.write_text(yaml.safe_dump(make_tree(folder / "results", **changes)))
        return path

    return write
