"""Polygons and run lengths: what pycocotools makes of them, and that it never sees what would harm it."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mal.coco_labels import write_json
from mal.segmentation import checked_rle, numbers_of, packed, rle_of_mask, runs_of

SIZE = (80, 100)


def mask(segmentation):
    return coco_mask.decode(checked_rle(segmentation, SIZE))


def random_masks(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.random(SIZE) > rng.random()
    yield np.zeros(SIZE, bool)
    yield np.ones(SIZE, bool)


class TestMasks:
    def test_polygon(self):
        found = mask([[2, 2, 12, 2, 12, 7, 2, 7]])
        assert (found.shape, int(found.sum())) == (SIZE, 50)

    def test_several_polygons_are_one_mask(self):
        assert mask([[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 12, 10, 12, 12, 10, 12]]).sum() == 20

    def test_a_polygon_beyond_the_picture_is_cut(self):
        assert mask([[-50, -50, 500, -50, 500, 10, -50, 10]]).sum() == 10 * 100

    @pytest.mark.parametrize("counts", [[3, 5, 7992], [3.0, 5.0, 7992.0]])
    def test_run_lengths_as_numbers(self, counts):
        found = mask({"size": [80, 100], "counts": counts})
        assert found[3:8, 0].all()
        assert found.sum() == 5

    def test_compressed_run_lengths(self):
        for expected in random_masks(20):
            rle = rle_of_mask(expected)
            assert np.array_equal(mask(rle), expected)
            # what the same mask is as plain numbers, counted down the columns
            flat = np.concatenate([[False], expected.ravel("F"), [not expected[-1, -1]]])
            runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))]))
            assert runs_of(rle["counts"]).tolist() == runs.tolist()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [80, 100], "counts": [3, 5]}, "do not fill"),
        ({"size": [80, 100], "counts": [-3, 8003]}, "do not fill"),
        ({"size": [80, 100], "counts": []}, "do not fill"),
        ({"size": [80, 100], "counts": [8000] * 9}, "do not fill"),
        ({"size": [80, 100], "counts": [0.5, 7999.5]}, "no whole numbers"),
        ({"size": [80, 100], "counts": [float("inf")]}, "no whole numbers"),
        ({"size": [80, 100], "counts": [True, 7999]}, "no whole numbers"),
        ({"size": [80, 100], "counts": [10**400]}, "no whole numbers"),
        ({"size": [80, 100], "counts": None}, "no whole numbers"),
        ({"size": [80, 100], "counts": {"a": 1}}, "no whole numbers"),
        ({"size": [70, 100], "counts": [7000]}, "of a picture of"),
        ({"size": 7, "counts": [7000]}, "of a picture of"),
        ({"counts": [8000]}, "of a picture of"),
        ({"size": [80, 100], "counts": "abc"}, "run lengths"),
        ({"size": [80, 100], "counts": ""}, "run lengths"),
        ({"size": [80, 100], "counts": "P" * 24}, "run lengths"),
        ({"size": [80, 100], "counts": "o" * 9 + "0"}, "run lengths"),
        ({"size": [80, 100], "counts": "\x01"}, "run lengths"),
        ({"size": [80, 100], "counts": "é"}, "run lengths"),
        ({"size": [80, 100], "counts": "\ud800"}, "run lengths"),
        ({"size": [80, 100]}, "neither"),
        ("text", "neither"),
        (7, "neither"),
        ([], "no polygon"),
        ([[1, 2]], "three corners"),
        ([1, 2, 3, 4, 5, 6], "three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([["a", 2, 3, 4, 5, 6]], "three corners"),
        ([[float("nan"), 2, 3, 4, 5, 6]], "three corners"),
        ([[5e8, 5e8, 5e8, 5e8, 5e8, 5e8]], "far beyond"),  # would overflow 32 bits
        ([[0, 0, 9e6, 0, 0, 9]], "far beyond"),  # would take hundreds of megabytes
        ([[0, 0, 9e5, 0, 0, 9]] * 9, "far beyond"),
    ],
)
def test_what_is_no_mask(segmentation, message):
    with pytest.raises(ValueError, match=message):
        checked_rle(segmentation, SIZE)


@pytest.mark.parametrize("values", [None, 3, "12", {"a": 1}, [1, "2"], [True], [1e10], [float("nan")], [[1]]])
def test_what_are_no_numbers(values):
    assert numbers_of(values) is None


def test_numbers():
    assert numbers_of([1, 2.5]) == [1.0, 2.5]
    assert numbers_of([]) == []


class TestPacked:
    @pytest.mark.parametrize(
        "segmentation",
        [
            [[2.5, 2.0, 12.0, 2.0, 12.0, 7.0]],
            [[2, 2, 12, 2, 12, 7], [1.5, 2.0, 3.0, 4.0, 5.5, 6.5]],
            [[2, 2.5, 12, 2, 12, 7]],
            [[10**30, 1, 2], [True, 1, 2], ["a"], None, []],
            {"size": [80, 100], "counts": [3, 5, 7992]},
            {"size": [80, 100], "counts": "abc"},
            {"size": [80, 100], "counts": [[1.0]]},
            "text",
            None,
        ],
    )
    def test_is_read_and_written_as_it_stood(self, segmentation, tmp_path):
        row = {"id": 1, "segmentation": segmentation, "counts": "of the row"}
        found = json.loads(json.dumps(row), object_hook=packed)
        write_json(tmp_path / "out.json", found)
        assert (tmp_path / "out.json").read_text() == json.dumps(row)
        try:
            expected = checked_rle(segmentation, SIZE)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                checked_rle(found["segmentation"], SIZE)
        else:
            assert checked_rle(found["segmentation"], SIZE) == expected

    def test_takes_eight_bytes_a_number(self):
        numbers = [n + 0.5 for n in range(1000)]
        text = json.dumps({"segmentation": [numbers, list(range(1000))]})
        tracemalloc.start()
        found = json.loads(text, object_hook=packed)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert found["segmentation"][0][7] == 7.5
        assert held < 10 * 2000

    def test_numbers_that_are_none_are_null(self, tmp_path):
        write_json(tmp_path / "out.json", json.loads('{"segmentation": [[NaN, 1.0]]}', object_hook=packed))
        assert (tmp_path / "out.json").read_text() == '{"segmentation": [[null, 1.0]]}'
