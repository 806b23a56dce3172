"""YOLO's lines."""

import numpy as np
import pytest

from fiducial.errors import DatasetError
from mal.annotations import read_annotations


def read(labelled_picture, text, **names):
    folder, images = labelled_picture({"a.txt": text, **{f"{name}.txt": text for name, text in names.items()}})
    return read_annotations(folder, images=images)


def test_boxes(labelled_picture):
    found = read(labelled_picture, "1 0.5 0.5 0.2 0.25\n\n0 0.1 0.1 0.2 0.2\n", classes="cup\nplate\n")
    assert found.boxes[0].corners == pytest.approx((40, 30, 60, 50))
    assert found.boxes[1].corners == pytest.approx((0, 0, 20, 16))
    assert [found.class_names[box.category] for box in found.boxes] == ["plate", "cup"]
    assert not any(found.has_mask(box) for box in found.boxes)


def test_a_polygon_is_box_and_mask(labelled_picture):
    """A rectangle of 20 x 40 pixels, told as 0.1, 0.25 to 0.3, 0.75 of 100 x 80."""
    found = read(labelled_picture, "0 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n")
    assert found.boxes[0].corners == pytest.approx((10, 20, 30, 60))
    expected = np.zeros((80, 100), bool)
    expected[20:60, 10:30] = True
    assert np.array_equal(found.mask(found.boxes[0]) != 0, expected)


def test_numbers_stand_for_classes_without_names(labelled_picture):
    found = read(labelled_picture, "10 0.5 0.5 0.2 0.25\n2 0.5 0.5 0.2 0.25\n")
    assert [box.category for box in found.boxes] == [10, 2]
    assert found.class_names[10] == "10"


@pytest.mark.parametrize(
    ("names", "place"),
    [("[cup, plate]", "."), ("{0: cup, 1: plate}", "."), ("\n  0: cup\n  1: plate", ".."), ("[cup, plate]", "../..")],
)
def test_names_of_the_data_set(labelled_picture, names, place):
    """As Ultralytics writes them, beside the folders of labels and pictures."""
    labels, images = labelled_picture({"a.txt": "1 0.5 0.5 0.2 0.25\n"}, folder="set/labels")
    (labels / place / "data.yaml").write_text(f"path: .\ntrain: images\nnames: {names}\n")
    assert read_annotations(labels, images=images).class_names == ["cup", "plate"]


@pytest.mark.parametrize("content", ["nc: 2\n", "names: 3\n", "names: {a: cup}\n", "- names\n", ""])
def test_a_data_set_without_names(labelled_picture, content):
    labels, images = labelled_picture({"a.txt": "1 0.5 0.5 0.2 0.25\n", "data.yaml": content})
    assert read_annotations(labels, images=images).class_names == ["0", "1"]


def test_a_list_of_classes_counts_before_the_data_set(labelled_picture):
    files = {"a.txt": "0 0.5 0.5 0.2 0.25\n", "classes.txt": "pot\n", "data.yaml": "names: [cup, plate]\n"}
    labels, images = labelled_picture(files)
    assert read_annotations(labels, images=images).class_names == ["pot"]


def test_names_keep_their_places(labelled_picture):
    """Twice the same, a blank one, and one that no object has."""
    found = read(labelled_picture, "3 0.5 0.5 0.2 0.25\n", classes="\ufeffcup\n\ncup\nplate\npot\n\n")
    assert found.class_names == ["cup", "", "cup", "plate", "pot"]
    assert found.boxes[0].category == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5", "1 numbers after the class"),
        ("x 0 0 1 1", "not numbers"),
        ("1.5 0 0 1 1", "not numbers"),
        ("5 0 0 1 1", "class 5 of 1"),
        ("-1 0 0 1 1", "class -1"),
        ("0 0 0 nan 1", "nan is no share"),
        ("0 0 0 1e999 1", "inf is no share"),
        ("0 320 240 100 50", "320 is no share"),
        ("0 0 0 1 1 1", "5 numbers"),
    ],
)
def test_lines_that_are_none(labelled_picture, line, message):
    with pytest.raises(DatasetError, match=rf"a\.txt:2 · {message}"):
        read(labelled_picture, f"0 0 0 1 1\n{line}\n", classes="cup\n")


def test_a_class_that_no_list_has_room_for(labelled_picture):
    with pytest.raises(DatasetError, match="class 99999999999"):
        read(labelled_picture, "99999999999 0 0 1 1\n")


def test_bytes_that_are_no_text(labelled_picture):
    folder, images = labelled_picture({"a.txt": b"\xff\xfe0\x00"})
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_annotations(folder, images=images)


def test_without_its_picture(labelled_picture):
    folder, images = labelled_picture({"b.txt": ""})
    with pytest.raises(DatasetError, match=r"b\.txt · no picture b in "):
        read_annotations(folder, images=images)


def test_of_a_file_of_something_else_the_first_lines_are_told(labelled_picture):
    with pytest.raises(DatasetError) as error:
        read(labelled_picture, "x\n" * 100_000)
    assert 10 <= len(error.value.problems) < 20
