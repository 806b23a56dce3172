"""YOLO's and Pascal VOC's masks as ground truth, and our own labels read back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fiducial import cli
from mal.__main__ import TASKS
from mal.annotations import read_annotations

torch.set_num_threads(1)


def run(action, spec, *overrides):
    return cli.main(TASKS, [*action.split(), "-e", str(spec), *map(str, overrides)], prog="mal")


@pytest.fixture(scope="module")
def trained(write_spec, tmp_path_factory):
    spec = write_spec(tmp_path_factory.mktemp("mal"))
    assert run("train", spec, "train.num_epochs=1") == 0
    return spec


def kpis(spec, folder, *overrides):
    assert run("evaluate", spec, f"evaluate.results_dir={folder}", *overrides) == 0
    return json.loads((folder / "metrics.json").read_text())["kpis"]


@pytest.fixture(scope="module")
def of_coco(trained, tmp_path_factory):
    return kpis(trained, tmp_path_factory.mktemp("coco"))


def test_voc_evaluates_as_coco(trained, of_coco, pictures, tmp_path):
    """The same masks, as numbers in pictures; where they overlap the later one has the pixel."""
    tree = json.loads((pictures / "val" / "ann.json").read_text())
    names = {category["id"]: category["name"] for category in tree["categories"]}
    for folder in ("Annotations", "SegmentationObject"):
        (tmp_path / folder).mkdir()
    for image in tree["images"]:
        stem, things, numbers = image["file_name"][:-4], "", np.zeros((image["height"], image["width"]), np.uint8)
        rows = [row for row in tree["annotations"] if row["image_id"] == image["id"]]
        for number, row in enumerate(rows, 1):
            x, y, width, height = row["bbox"]
            corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
            things += f"<object><name>{names[row['category_id']]}</name><bndbox>{corners}</bndbox></object>"
            numbers[coco_mask.decode(row["segmentation"]) != 0] = number
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{things}</annotation>"
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
        Image.fromarray(numbers).save(tmp_path / "SegmentationObject" / f"{stem}.png")
    found = kpis(trained, tmp_path / "out", f"dataset.val_ann_path={tmp_path / 'Annotations'}")
    assert found["mIoU"] == pytest.approx(of_coco["mIoU"], abs=0.1)
    assert found["object_IoU"] == pytest.approx(of_coco["object_IoU"], abs=0.1)


@pytest.fixture(scope="module")
def own_labels(trained):
    assert run("inference", trained, "inference.formats=[yolo]", "inference.quality=false") == 0
    return trained.parent / "results" / "inference"


def test_own_yolo_labels_are_read_back(own_labels, pictures):
    """As the masks that were written, to the half pixels that a polygon cuts off corners."""
    written = json.loads((own_labels / "instances_val2017_mal.json").read_text())
    found = read_annotations(own_labels / "yolo", images=pictures / "val" / "img")
    assert found.class_names == ["disc", "other disc"]
    assert len(found.boxes) == len(written["annotations"]) == 6
    for box, row in zip(found.boxes, written["annotations"], strict=True):
        overlap = coco_mask.iou([found.rle(box)], [row["segmentation"]], [0])[0, 0]
        assert overlap > 0.95
        assert {3: 1, 7: 0}[row["category_id"]] == box.category


def test_evaluated_against_what_it_wrote_itself(trained, own_labels, tmp_path):
    """The boxes are those of the masks, a little other than those that were labelled."""
    found = kpis(trained, tmp_path, f"dataset.val_ann_path={own_labels / 'yolo'}", "dataset.type=yolo")
    assert found["object_IoU"] > 0.8
