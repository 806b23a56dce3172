"""Annotation files: what is read, what is left out and why, what is refused."""

import json

import pytest

from fiducial.errors import DatasetError
from mal.annotations import Rules, read_annotations, select
from mal.inspect import looks_like_corners


def coco(**changes):
    tree = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 9, "bbox": [10, 20, 30, 40]}],
        "categories": [{"id": 2, "name": "cup"}, {"id": 9, "name": "plate"}],
    }
    return tree | changes


def write(folder, tree):
    path = folder / "ann.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def read(folder, tree, **options):
    return read_annotations(write(folder, tree), **options)


def with_rows(*rows):
    base = {"image_id": 1, "category_id": 9}
    return coco(annotations=[{"id": i, **base, **row} for i, row in enumerate(rows)])


class TestRead:
    def test_a_box(self, tmp_path):
        found = read(tmp_path, coco())
        box = found.boxes[0]
        assert (box.id, box.row, box.category, box.corners, box.area) == (5, 0, 1, (10, 20, 40, 60), 1200)
        assert found.class_names == ["cup", "plate"]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"bbox": [1, 2, 3]}, "not four numbers x, y, width, height"),
            ({"bbox": [1, 2, float("nan"), 4]}, "not four numbers x, y, width, height"),
            ({"bbox": [1, 2, "3", 4]}, "not four numbers x, y, width, height"),
            ({"bbox": None}, "neither bbox nor point"),
            ({"bbox": [1, 2, 0, 4]}, "empty"),
            ({"bbox": [1, 2, -3, 4]}, "negative width"),
            ({"bbox": [1, 2, 3, 4], "image_id": 8}, "image_id"),
            ({"bbox": [1, 2, 3, 4], "image_id": [1]}, "image_id"),
            ({"bbox": [1, 2, 3, 4], "category_id": 1}, "category_id"),
            ({}, "neither bbox nor point"),
        ],
    )
    def test_a_row_without_usable_box_stays_with_its_reason(self, tmp_path, row, reason):
        found = read(tmp_path, with_rows(row, {"bbox": [1, 2, 3, 4]}))
        assert reason in found.unusable[0]
        assert [box.row for box in found.boxes] == [1]

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ("{", "no JSON"),
            ("[]", "no object"),
            ("[" * 10000, "no JSON"),
            ({"images": []}, "no list 'annotations'"),
            (coco(images={}), "no list 'images'"),
            (coco(categories=[3]), "no list 'categories'"),
            (coco(images=[{"id": 1, "file_name": "a.png", "width": 100}]), "height None"),
            (coco(images=[{"id": 1, "file_name": "a.png", "width": -1, "height": 5}]), "width -1"),
            (coco(images=[{"id": 1, "width": 10, "height": 5}]), "file_name is None"),
            (coco(images=coco()["images"] * 2), "ids stand twice"),
            (coco(categories=coco()["categories"] * 2), "ids stand twice"),
            (coco(categories=[{"name": "a"}]), "no id"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path, tree, message):
        with pytest.raises(DatasetError, match=message):
            read(tmp_path, tree)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_annotations(tmp_path / "no.json")

    def test_a_byte_order_mark(self, tmp_path):
        path = tmp_path / "ann.json"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco()).encode())
        assert len(read_annotations(path).boxes) == 1


class TestPoints:
    def test_a_point_becomes_a_square(self, tmp_path):
        box = read(tmp_path, with_rows({"point": [50, 40]}), point_size=20).boxes[0]
        assert (box.corners, box.prompt) == ((40, 30, 60, 50), "point")

    def test_without_a_size_it_is_a_fifth_of_the_shorter_side(self, tmp_path):
        assert read(tmp_path, with_rows({"point": [50, 40]})).boxes[0].corners == (42, 32, 58, 48)

    def test_visible_keypoints_are_all_inside(self, tmp_path):
        row = {"keypoints": [10, 10, 2, 70, 12, 1, 0, 0, 0]}
        assert read(tmp_path, with_rows(row), point_size=6).boxes[0].corners == (10, 8, 70, 14)

    def test_keypoints_that_are_not_visible(self, tmp_path):
        assert 0 in read(tmp_path, with_rows({"keypoints": [0, 0, 0]})).unusable


class TestSelect:
    rows = (
        {"bbox": [10, 10, 20, 20]},
        {"bbox": [-5, 10, 20, 20]},
        {"bbox": [95, 10, 20, 20]},
        {"bbox": [120, 10, 20, 20]},
        {"bbox": [10, 10, 2, 50]},
        {"bbox": [10, 10, 30, 30], "iscrowd": 1},
        {"bbox": [1, 2, 3]},
    )

    def test_all_that_can_be_used_is(self, tmp_path):
        found = select(read(tmp_path, with_rows(*self.rows)), Rules())
        assert [box.row for box in found.boxes] == [0, 1, 2, 4, 5]
        assert found.boxes[1].corners == (0, 10, 15, 30)
        assert found.boxes[2].corners == (95, 10, 100, 30)
        assert found.clipped == 2
        assert found.left_out[3] == "has no area in its picture"
        assert sum(found.reasons().values()) == 2

    def test_as_tao_filters(self, tmp_path):
        """Keep: inside the picture, sides above 2, area strictly between the bounds; crowds stay."""
        found = select(read(tmp_path, with_rows(*self.rows)), Rules(clip=False, min_area=300, min_side=2, max_area=1e9))
        assert [box.row for box in found.boxes] == [0, 5]

    def test_bounds_are_strict(self, tmp_path):
        found = read(tmp_path, with_rows({"bbox": [0, 0, 20, 20]}))
        assert select(found, Rules(min_area=399)).boxes
        assert not select(found, Rules(min_area=400)).boxes
        assert not select(found, Rules(max_area=400)).boxes

    def test_every_row_is_used_or_has_a_reason(self, tmp_path):
        found = select(read(tmp_path, with_rows(*self.rows)), Rules(clip=False, crowd=False, min_side=2))
        assert sorted([box.row for box in found.boxes] + list(found.left_out)) == list(range(len(self.rows)))


def test_corners_given_as_width_and_height_are_noticed(tmp_path):
    as_corners = [{"bbox": [40 + i, 30, 90, 70]} for i in range(5)]
    assert looks_like_corners(read(tmp_path, with_rows(*as_corners)))
    assert not looks_like_corners(read(tmp_path, with_rows(*self_evident)))


self_evident = [{"bbox": [40 + i, 30, 20, 20]} for i in range(5)] + [{"bbox": [90, 70, 30, 30]}]
