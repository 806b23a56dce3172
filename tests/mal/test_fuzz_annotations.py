"""Whatever stands in annotation files: it is read, left out with a reason, or one line says what is wrong with it."""

import json
import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fiducial.errors import UserError
from mal.annotations import Rules, read_annotations, select
from mal.coco_labels import write_labels
from mal.inspect import check_data
from mal.results import Results
from mal.segmentation import checked_rle, runs_of

FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = (
    st.integers()
    | st.integers(-5, 200)
    | st.floats()
    | st.sampled_from([10**400, 2**31, 2**63, 1e308, float("nan"), float("inf")])
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
flat = st.lists(numbers, max_size=9)
segmentations = (
    st.lists(flat, max_size=3)
    | st.fixed_dictionaries({"size": st.just([80, 100]) | flat, "counts": flat | st.text(max_size=30)})
    | anything
)


def mostly(value):
    """The value, or, one time in eight, anything else."""
    return st.integers(0, 7).flatmap(lambda n: anything if n == 0 else value)


def table(**fields):
    row = st.fixed_dictionaries({}, optional={name: mostly(value) for name, value in fields.items()})
    return mostly(st.lists(mostly(row), max_size=4))


small = st.integers(0, 3)
trees = st.fixed_dictionaries(
    {},
    optional={
        "images": table(
            id=small, file_name=st.sampled_from(["a.png", "../a.png", "x" * 300, "b\0"]), width=numbers, height=numbers
        ),
        "annotations": table(
            id=small,
            image_id=small,
            category_id=small,
            bbox=st.lists(numbers, min_size=4, max_size=4),
            iscrowd=small,
            score=numbers,
            point=st.lists(numbers, max_size=3),
            keypoints=flat,
            segmentation=segmentations,
        ),
        "categories": table(id=small, name=st.text(max_size=5)),
    },
)


def sound_tree(**annotation):
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], **annotation}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [row],
        "categories": [{"id": 1, "name": "cup"}],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(tmp_path / "img" / "a.png")
    return tmp_path


def use(path, images):
    """All that is done with annotations before a network sees a box, and after it."""
    with suppress(UserError):
        found = read_annotations(path, images=images)
        for rules in (Rules(), Rules(clip=False, min_side=2.0, min_area=9, crowd=False)):
            selection = select(found, rules)
            rows = sorted([box.row for box in selection.boxes] + list(selection.left_out))
            assert rows == list(range(len(found.rows)))
            assert all(math.isfinite(box.area) and box.area > 0 for box in selection.boxes)
        for box in found.boxes:
            if found.has_mask(box):
                with suppress(UserError):
                    picture = found.pictures[box.picture]
                    assert found.rle(box)["size"] == [picture.height, picture.width]
        written = images.parent / "written.json"
        write_labels(written, Results(found, selection, ()))
        assert len(json.loads(written.read_bytes())["annotations"]) == len(found.rows)


def look(path, images):
    spec = SimpleNamespace(
        dataset=SimpleNamespace(
            val_ann_path=str(path), val_img_dir=str(images), type="coco", point_size=None, load_mask=True
        ),
        inference=SimpleNamespace(ann_path="", img_dir="", load_mask=False),
        compat="off",
    )
    spec.dataset.train_ann_path = spec.dataset.train_img_dir = ""
    for problem in check_data(spec, ["val"], thorough=True).problems:
        assert "\n" not in str(problem)
        assert problem.fix


@FUZZ
@given(tree=trees)
def test_coco_of_any_tree(folder, tree):
    (folder / "ann.json").write_text(json.dumps(tree))
    use(folder / "ann.json", folder / "img")
    look(folder / "ann.json", folder / "img")


@FUZZ
@given(
    row=st.fixed_dictionaries({}, optional={"bbox": flat, "point": flat, "keypoints": flat, "segmentation": anything})
)
def test_coco_of_any_row(folder, row):
    (folder / "ann.json").write_text(json.dumps(sound_tree(**row)))
    use(folder / "ann.json", folder / "img")
    look(folder / "ann.json", folder / "img")


@FUZZ
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@pytest.mark.parametrize("name", ["ann.json", "a.txt", "a.xml", "classes.txt"])
def test_files_of_any_bytes(folder, name, data):
    (folder / "ann").mkdir(exist_ok=True)
    (folder / "ann" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    if name == "a.xml":
        (folder / "ann" / "a.txt").unlink()
    (folder / "ann" / name).write_bytes(data)
    use(folder / "ann", folder / "img")
    use(folder / "ann" / name, folder / "img")
    (folder / "ann" / name).unlink()


words = st.sampled_from(["0", "1", "0.5", "-1", "nan", "1e999", "1_0", "٣", "9" * 5000, "x", "0x1", ""]) | st.text(
    max_size=4
)


@FUZZ
@given(lines=st.lists(st.lists(words, max_size=9).map(" ".join), max_size=4), classes=st.none() | st.text(max_size=9))
def test_yolo_of_any_words(folder, lines, classes):
    labels = folder / "labels"
    labels.mkdir(exist_ok=True)
    (labels / "a.txt").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    (labels / "classes.txt").unlink(missing_ok=True)
    if classes is not None:
        (labels / "classes.txt").write_text(classes, encoding="utf-8", errors="replace")
    use(labels, folder / "img")


tags = st.sampled_from(
    ["annotation", "object", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width", "height", "filename", "name"]
)
elements = st.recursive(
    words.map(lambda word: word.replace("<", "").replace("&", "")),
    lambda inner: st.tuples(tags, st.lists(inner, max_size=4)).map(
        lambda item: f"<{item[0]}>{''.join(item[1])}</{item[0]}>"
    ),
    max_leaves=20,
)


@FUZZ
@given(body=elements)
def test_voc_of_any_elements(folder, body):
    labels = folder / "labels"
    labels.mkdir(exist_ok=True)
    (labels / "a.xml").write_text(f"<annotation>{body}</annotation>", encoding="utf-8", errors="replace")
    use(labels, folder / "img")


def billion_laughs():
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    return f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><annotation><name>&e11;</name></annotation>'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xml", billion_laughs()),
        ("a.xml", "<a>" * 300_000 + "</a>" * 300_000),
        ("a.xml", "<annotation " + " ".join(f'a{i}=""' for i in range(100_000)) + "/>"),
        ("ann.json", "[" * 1_000_000),
        ("ann.json", '{"images":' * 100_000),
        ("ann.json", "9" * 1_000_000),
        ("ann.json", '{"images": [], "annotations": [], "categories": [{"id": 1e400}]}'),
        ("a.txt", "0 " + "0.5 " * 1_000_001),
        ("a.txt", "x\n" * 200_000),
    ],
)
def test_files_that_are_made_to_do_harm(folder, name, content):
    (folder / "labels").mkdir()
    (folder / "labels" / name).write_text(content)
    use(folder / "labels", folder / "img")


@FUZZ
@given(segmentation=segmentations, height=st.integers(1, 300), width=st.integers(1, 300))
def test_segmentations(segmentation, height, width):
    if isinstance(segmentation, dict) and "size" in segmentation:
        segmentation["size"] = [height, width]
    with suppress(ValueError):
        checked_rle(segmentation, (height, width))


@FUZZ
@given(text=st.text(alphabet=[chr(48 + n) for n in range(64)], max_size=40))
def test_compressed_run_lengths_that_pycocotools_would_believe(text):
    """They are read as it reads them, or refused: one at a time, by the rule of its source."""
    with suppress(ValueError):
        found = runs_of(text).tolist()
        expected, place = [], 0
        while place < len(text):
            value, more, k = 0, True, 0
            while more:
                bits = ord(text[place]) - 48
                value |= (bits & 31) << 5 * k
                more, place, k = bool(bits & 32), place + 1, k + 1
                if not more and bits & 16:
                    value -= 1 << 5 * k
            expected.append(value + expected[-2] if len(expected) > 2 else value)
        assert found == expected
