"""Pascal VOC's files and the masks beside them."""

import numpy as np
import pytest
from PIL import Image

from fiducial.errors import DatasetError
from mal.annotations import read_annotations

OBJECT = (
    "<object><name>{0}</name><bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>"
)


def voc(*objects, filename="a.png", size=(100, 80)):
    things = "".join(OBJECT.format(*thing) for thing in objects)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{filename}</filename>{sides}{things}</annotation>"


ONE = voc(("cup", 11, 21, 40, 60))


def read(labelled_picture, text, **options):
    folder, images = labelled_picture({"a.xml": text})
    return read_annotations(folder, images=images, **options)


def test_corners_count_from_one(labelled_picture):
    found = read(labelled_picture, ONE)
    assert (found.boxes[0].corners, found.class_names) == ((10, 20, 40, 60), ["cup"])


@pytest.mark.parametrize("filename", ["", "C:\\photos\\a.png", "/home/somebody/a.png", "other.jpg"])
def test_the_picture_is_found_by_its_name_or_that_of_the_annotations(labelled_picture, filename):
    assert read(labelled_picture, voc(filename=filename)).pictures[0].file == "a.png"


def test_a_picture_that_is_nowhere_keeps_its_name(labelled_picture):
    folder, images = labelled_picture({"b.xml": voc(filename="gone.jpg")})
    assert read_annotations(folder, images=images).pictures[0].file == "gone.jpg"


@pytest.mark.parametrize("size", [(0, 0), ("", ""), ("nan", "inf")])
def test_a_size_that_is_not_told_is_the_picture_s(labelled_picture, size):
    picture = read(labelled_picture, voc(size=size)).pictures[0]
    assert (picture.width, picture.height) == (100, 80)


def test_other_encodings(labelled_picture):
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>' + voc(("Löffel", 1, 1, 9, 9))
    assert read(labelled_picture, text.encode("latin-1")).class_names == ["Löffel"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no XML"),
        (ONE[:-3], "no XML"),
        (ONE.encode().replace(b"cup", b"c\xe4p"), "no XML"),
        ('<?xml version="1.0" encoding="klingon"?>' + ONE, "no XML"),
        (voc(("cup", 1, "x", 3, 4)), "object 1 · no number in <ymin>"),
        (voc(("cup", 1, 2, "nan", 4)), "no number in <xmax>"),
        (ONE.replace("bndbox", "polygon"), "no number in <xmin>"),
        ('<!DOCTYPE a [<!ENTITY e "boom">]>' + ONE.replace("cup", "&e;"), "a document type"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + ONE.replace("cup", "&e;"), "a document type"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd">' + ONE, "a document type"),
        (ONE.replace("cup", "&e;"), "undefined entity"),
    ],
)
def test_what_is_none(labelled_picture, text, message):
    with pytest.raises(DatasetError, match=rf"a\.xml.*{message}"):
        read(labelled_picture, text)


def test_without_size_and_picture(labelled_picture):
    folder, images = labelled_picture({"b.xml": voc(filename="gone.jpg", size=(0, 0))})
    with pytest.raises(DatasetError, match=r"b\.xml · no <width>"):
        read_annotations(folder, images=images)


class TestMasks:
    """Two objects in a picture of 100 x 80: corners 10, 20 .. 40, 60 and 60, 10 .. 90, 30."""

    TWO = voc(("cup", 11, 21, 40, 60), ("plate", 61, 11, 90, 30))

    def numbers(self, first=1, second=2):
        numbers = np.zeros((80, 100), np.uint8)
        numbers[20:60, 10:40], numbers[10:30, 60:90] = first, second
        numbers[18:20, 10:40] = 255
        return numbers

    def read(self, labelled_picture, numbers, **options):
        folder, images = labelled_picture({"a.xml": self.TWO}, folder="Annotations")
        masks = folder.parent / "SegmentationObject"
        masks.mkdir()
        picture = numbers if isinstance(numbers, Image.Image) else Image.fromarray(numbers)
        picture.save(masks / "a.png")
        return read_annotations(folder, images=images, **options)

    def areas(self, found):
        return [int(found.mask(box).sum()) if found.has_mask(box) else None for box in found.boxes]

    def test_of_the_objects_in_their_order(self, labelled_picture):
        found = self.read(labelled_picture, self.numbers())
        assert self.areas(found) == [1200, 600]
        assert np.array_equal(found.mask(found.boxes[0]), self.numbers(1, 0) == 1)

    def test_with_a_palette(self, labelled_picture):
        picture = Image.fromarray(self.numbers()).convert("P")
        picture.putdata(self.numbers().ravel().tolist())
        picture.putpalette([n % 256 for n in range(7, 775)])
        assert self.areas(self.read(labelled_picture, picture)) == [1200, 600]

    @pytest.mark.parametrize(("first", "second"), [(2, 1), (7, 3), (1, 9)])
    def test_numbers_in_another_order_follow_their_boxes(self, labelled_picture, first, second):
        assert self.areas(self.read(labelled_picture, self.numbers(first, second))) == [1200, 600]

    def test_an_object_without(self, labelled_picture):
        assert self.areas(self.read(labelled_picture, self.numbers(0, 1))) == [None, 600]

    def test_of_16_bits_255_is_an_object(self, labelled_picture):
        found = self.read(labelled_picture, self.numbers(255, 300 % 256).astype(np.uint16))
        assert self.areas(found)[0] == 1260  # the two rows of 255 above it are its own

    def test_only_where_they_are_asked_for(self, labelled_picture):
        assert self.areas(self.read(labelled_picture, self.numbers(), masks=False)) == [None, None]

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [(np.zeros((80, 99), np.uint8), "99 x 80 pixels"), (np.zeros((80, 100, 3), np.uint8), "colours")],
    )
    def test_what_are_none(self, labelled_picture, numbers, message):
        with pytest.raises(DatasetError, match=rf"SegmentationObject/a\.png · {message}"):
            self.read(labelled_picture, numbers)
