"""Folders of annotation files: which format they are, and where the pictures are found."""

import json

import pytest

from fiducial.errors import DatasetError
from mal.annotations import read_annotations

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 9, "bbox": [10, 20, 30, 40]}],
    "categories": [{"id": 9, "name": "plate"}],
}


def test_a_folder_of_neither(labelled_picture):
    folder, images = labelled_picture({})
    with pytest.raises(DatasetError, match=r"neither \.xml nor \.txt"):
        read_annotations(folder, images=images)


def test_a_folder_of_both(labelled_picture):
    folder, images = labelled_picture({"a.txt": "", "a.xml": ""})
    with pytest.raises(DatasetError, match=r"both \.xml and \.txt"):
        read_annotations(folder, images=images)


def test_a_folder_with_one_json(labelled_picture):
    folder, images = labelled_picture({"ann.json": json.dumps(COCO)})
    found = read_annotations(folder, images=images)
    assert (found.path, len(found.boxes)) == (folder / "ann.json", 1)


def test_a_folder_with_several(labelled_picture):
    folder, images = labelled_picture({"train.json": "{}", "val.json": "{}"})
    with pytest.raises(DatasetError, match=r"2 \.json"):
        read_annotations(folder, images=images)


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_a_file_where_a_folder_is_meant(labelled_picture, kind):
    folder, images = labelled_picture({"ann.json": "{}"})
    with pytest.raises(DatasetError, match="no folder"):
        read_annotations(folder / "ann.json", images=images, kind=kind)


def test_a_folder_that_is_wrapped_in_others(labelled_picture):
    folder, images = labelled_picture({"out/labels/a.txt": "0 0.5 0.5 1 1\n"})
    assert read_annotations(folder, images=images.parent).pictures[0].file == "a.png"


def test_folders_within(labelled_picture):
    folder, images = labelled_picture({"one/a.txt": "0 0.5 0.5 1 1\n", "two/a.txt": ""}, ["one/a.png", "two/a.JPG"])
    found = read_annotations(folder, images=images)
    assert [picture.file for picture in found.pictures] == ["one/a.png", "two/a.JPG"]


def test_every_wrong_line_is_told(labelled_picture):
    folder, images = labelled_picture({"a.txt": "0 1\n0 0 0 1 1\nx\n", "b.txt": "", "c.txt": ""})
    with pytest.raises(DatasetError) as error:
        read_annotations(folder, images=images)
    assert [problem.where.rpartition("/")[2] for problem in error.value.problems] == [
        "a.txt:1",
        "a.txt:3",
        "b.txt",
        "c.txt",
    ]
