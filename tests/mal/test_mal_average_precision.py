"""AP in pieces, against pycocotools with everything at once."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mal import average_precision as module
from mal.annotations import Annotations, Rules, read_annotations, select
from mal.average_precision import average_precision
from mal.results import Labelled, Results
from mal.segmentation import rle_of_mask

SIDE = 128
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")


def rectangle(rng, near=None):
    """A mask, which may be empty; close to another one, or anywhere and of any size."""
    if near is None:
        low, size = rng.integers(0, SIDE, 2), rng.choice([3, 10, 40, 110], 2)
    else:
        low, size = near[0] + rng.integers(-3, 4, 2), np.maximum(0, near[1] + rng.integers(-4, 5, 2))
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = np.maximum(low, 0)
    mask[y : y + size[0], x : x + size[1]] = True
    return mask, (low, size)


def found_in(tmp_path, rng, *, pictures, objects, classes, ties):
    """Results of random objects in random order of pictures, some of them crowds, some with scores of their own."""
    rows, masks = [], []
    for number in range(objects):
        true, near = rectangle(rng)
        while not true.any():
            true, near = rectangle(rng)
        mask, _ = rectangle(rng, near if rng.random() < 0.8 else None)
        row = {"id": number, "image_id": int(rng.integers(pictures)), "category_id": int(rng.integers(classes))}
        row |= {"bbox": [0, 0, SIDE, SIDE], "iscrowd": int(rng.random() < 0.1), "segmentation": rle_of_mask(true)}
        if rng.random() < 0.3:
            row["score"] = float(rng.integers(3)) / 2
        rows.append(row)
        masks.append(mask)
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(pictures)],
        "annotations": rows,
        "categories": [{"id": i, "name": str(i)} for i in range(classes + 1)],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(tree))
    annotations: Annotations = read_annotations(path)
    selection = select(annotations, Rules())
    labelled = []
    for place, mask in enumerate(masks):
        rle = rle_of_mask(mask)
        sure = float(rng.integers(4)) / 4 if ties else float(rng.random())
        labelled.append(Labelled(place, rle, int(mask.sum()), None, sure, iou=0.5 if rng.random() < 0.95 else None))
    return Results(annotations, selection, tuple(labelled))


def all_at_once(results):
    """As pycocotools' documentation has it."""
    truth, detections = [], []
    for number, found in enumerate(results.measured, 1):
        box = results.box(found)
        common = {"image_id": box.picture + 1, "category_id": box.category + 1}
        true = results.annotations.rle(box)
        area = float(coco_mask.area(true))
        truth.append({**common, "id": number, "segmentation": true, "area": area, "iscrowd": int(box.crowd)})
        score = results.annotations.rows[box.row].get("score", found.confidence)
        detections.append({**common, "segmentation": dict(found.rle), "score": score})
    gold = COCO()
    pictures = results.annotations.pictures
    gold.dataset = {
        "images": [{"id": i + 1, "width": p.width, "height": p.height} for i, p in enumerate(pictures)],
        "annotations": truth,
        "categories": [{"id": i + 1} for i in range(len(results.annotations.class_names))],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gold.createIndex()
        judged = COCOeval(gold, gold.loadRes(detections), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {f"{name}_segm": math.nan if v < 0 else float(v) for name, v in zip(NAMES, judged.stats, strict=True)}


def equal(one, other):
    return one.keys() == other.keys() and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one.values(), other.values(), strict=True)
    )


class TestAveragePrecision:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        pictures=st.integers(1, 12),
        objects=st.integers(1, 60),
        classes=st.integers(1, 4),
        ties=st.booleans(),
        at_once=st.sampled_from([1, 7, 1000]),
    )
    def test_the_very_numbers_of_pycocotools(self, tmp_path_factory, seed, pictures, objects, classes, ties, at_once):
        folder, rng = tmp_path_factory.mktemp("ap"), np.random.default_rng(seed)
        results = found_in(folder, rng, pictures=pictures, objects=objects, classes=classes, ties=ties)
        if not results.measured:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_AT_ONCE", at_once)
            assert equal(average_precision(results), all_at_once(results))

    def test_more_masks_in_a_picture_than_are_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_AT_ONCE", 50)
        results = found_in(tmp_path, np.random.default_rng(0), pictures=2, objects=260, classes=1, ties=False)
        found = average_precision(results)
        assert equal(found, all_at_once(results))
        assert 0 < found["ARmax1_segm"] < found["ARmax10_segm"] < found["ARmax100_segm"] < 1

    def test_perfect_masks(self, tmp_path):
        results = found_in(tmp_path, np.random.default_rng(1), pictures=3, objects=9, classes=2, ties=False)
        rows = results.annotations.rows
        perfect = [Labelled(i, row["segmentation"], 1, None, 0.5, iou=1.0) for i, row in enumerate(rows)]
        found = average_precision(Results(results.annotations, results.selection, tuple(perfect)))
        assert found["AP_segm"] == pytest.approx(1)

    def test_no_more_pairs_are_held_than_of_some_pictures(self, tmp_path, monkeypatch):
        """pycocotools never sees more objects than asked for and those of one picture."""
        seen = []
        monkeypatch.setattr(module, "_AT_ONCE", 10)
        evaluate = COCOeval.evaluate
        monkeypatch.setattr(COCOeval, "evaluate", lambda self: (seen.append(len(self.cocoGt.anns)), evaluate(self))[1])
        results = found_in(tmp_path, np.random.default_rng(2), pictures=40, objects=120, classes=2, ties=False)
        average_precision(results)
        of_a_picture = np.bincount([results.box(found).picture for found in results.measured])
        assert sum(seen) == len(results.measured)
        assert max(seen) <= 10 + of_a_picture.max()
