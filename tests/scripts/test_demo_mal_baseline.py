"""Filled boxes and ellipses against true masks, with numbers worked out by hand."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

from demo_mal_baseline import ELLIPSE, FILLED, baselines, placed

from mal.annotations import Box

SIDE = 20


def annotated(folder, *objects):
    """A COCO file of one picture; each object is (category, bbox, polygon or None)."""
    rows = []
    for number, (category, bbox, polygon) in enumerate(objects):
        row = {"id": number, "image_id": 1, "category_id": category, "bbox": bbox}
        rows.append(row | ({} if polygon is None else {"segmentation": [polygon]}))
    tree = {
        "images": [{"id": 1, "file_name": "x.png", "width": SIDE, "height": SIDE}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = folder / "ann.json"
    path.write_text(json.dumps(tree))
    return path


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


class TestShapes:
    def test_the_ellipse_of_a_box_of_four_is_the_box_without_its_corners(self):
        # centres are 0.5 and 1.5 from the middle: (1.5, 1.5) is 2.12 away, beyond the radius 2; (0.5, 1.5) is not
        mask = placed(ELLIPSE, Box(0, 0, 0, 0, (2, 3, 6, 7)), SIDE, SIDE)
        assert mask.mask.tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
        assert (mask.x, mask.y) == (2, 3)

    def test_a_pixel_belongs_to_the_box_that_holds_its_centre(self):
        mask = placed(FILLED, Box(0, 0, 0, 0, (0.6, 0, 2.4, 1)), SIDE, SIDE)
        assert mask.full().nonzero() == (np.array([0]), np.array([1]))

    def test_the_ellipse_fills_pi_quarters_of_the_box_and_lies_in_it(self):
        box = Box(0, 0, 0, 0, (10, 20, 310, 120))
        ellipse, filled = (placed(shape, box, 400, 400) for shape in (ELLIPSE, FILLED))
        assert ellipse.area / filled.area == pytest.approx(math.pi / 4, abs=1e-3)
        assert not (ellipse.full() & ~filled.full()).any()
        assert ellipse.bounds() == filled.bounds() == (10, 20, 310, 120)


class TestNumbers:
    def test_mean_over_classes_of_the_mean_over_objects(self, tmp_path):
        # class a: all of the box, and its left half; class b: one quarter of the box
        path = annotated(
            tmp_path,
            (1, [2, 2, 4, 4], rectangle(2, 2, 4, 4)),
            (1, [8, 2, 4, 4], rectangle(8, 2, 2, 4)),
            (2, [2, 10, 4, 4], rectangle(2, 10, 2, 2)),
        )
        found = baselines(path)
        assert found[FILLED] == pytest.approx(((1 + 1 / 2) / 2 + 1 / 4) / 2, abs=1e-5)
        # the ellipse has 12 pixels: all of them in 16; 6 of 12 + 8 - 6; 3 of 12 + 4 - 3
        assert found[ELLIPSE] == pytest.approx(((12 / 16 + 6 / 14) / 2 + 3 / 13) / 2, abs=1e-5)

    def test_boxes_without_a_mask_do_not_count(self, tmp_path):
        path = annotated(tmp_path, (1, [2, 2, 4, 4], rectangle(2, 2, 4, 4)), (2, [8, 8, 4, 4], None))
        assert baselines(path)[FILLED] == pytest.approx(1, abs=1e-5)

    def test_no_mask_at_all_is_no_number(self, tmp_path):
        assert all(math.isnan(miou) for miou in baselines(annotated(tmp_path, (1, [2, 2, 4, 4], None))).values())

    def test_a_box_beyond_its_picture_is_cut_to_it(self, tmp_path):
        # what is left of the box is 6 pixels wide, which the object fills
        path = annotated(tmp_path, (1, [14, 0, 12, 6], rectangle(14, 0, 6, 6)))
        assert baselines(path)[FILLED] == pytest.approx(1, abs=1e-5)
