"""Masks in the files of labelling tools, read back by what the formats' own documents say of them."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.path import Path as MplPath
from PIL import Image

from mal.annotations import Rules, read_annotations, select
from mal.coco_labels import EMPTY, REASON, write_labels
from mal.decode import PlacedMask
from mal.label_formats import WRITERS, label_studio, polygons
from mal.quality import Judgement
from mal.results import Labelled, Results

WIDTH, HEIGHT = 40, 30


def drawn(polygon_list):
    """Pixels whose centre is inside of one."""
    centres = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), -1).reshape(-1, 2)
    inside = [MplPath(np.asarray(polygon)).contains_points(centres) for polygon in polygon_list]
    return np.any(inside, axis=0).reshape(HEIGHT, WIDTH)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


class TestPolygons:
    def test_a_rectangle(self):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[10:20, 5:25] = True
        (polygon,) = polygons(mask)
        xs, ys = zip(*polygon, strict=True)
        assert (min(xs), max(xs), min(ys), max(ys)) == (5, 25, 10, 20)

    def test_the_edge_of_the_picture(self):
        (polygon,) = polygons(np.ones((HEIGHT, WIDTH), bool))
        xs, ys = zip(*polygon, strict=True)
        assert (min(xs), max(xs), min(ys), max(ys)) == (0, WIDTH, 0, HEIGHT)

    def test_parts_largest_first(self):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[2:5, 2:5] = mask[10:25, 10:30] = True
        first, second = polygons(mask)
        assert min(x for x, _ in first) == 10
        assert min(x for x, _ in second) == 2

    def test_nothing(self):
        assert polygons(np.zeros((4, 4), bool)) == []

    @pytest.mark.parametrize("seed", range(5))
    def test_they_cover_the_mask(self, seed):
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        mask = ((columns - rng.uniform(12, 28)) / 9) ** 2 + ((rows - rng.uniform(10, 20)) / 7) ** 2 < 1
        assert iou(drawn(polygons(mask)), mask) == 1


@pytest.fixture
def results(tmp_path):
    """Two objects in the first of two pictures, one of them in two parts."""
    tree = {
        "images": [
            {"id": 1, "file_name": "sub/a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "../../b.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "bbox": [2, 2, 10, 10], "colour": "red"},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [10, 5, 20, 20]},
        ],
        "categories": [{"id": 4, "name": "cup & <saucer>"}, {"id": 5, "name": "plate"}],
    }
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(tree))
    annotations = read_annotations(path)
    one = PlacedMask(np.ones((8, 6), bool), 3, 4, WIDTH, HEIGHT)
    two = np.zeros((20, 20), bool)
    two[:5, :5] = two[10:, 8:] = True
    other = PlacedMask(two, 10, 5, WIDTH, HEIGHT)
    labelled = tuple(
        Labelled(place, mask.rle(), mask.area, mask.bounds(), 0.9, quality=Judgement(0.5 + 0.1 * place))
        for place, mask in enumerate((one, other))
    )
    return Results(annotations, select(annotations, Rules()), labelled), [one.full(), other.full()]


def write(name, results, folder):
    folder.mkdir(exist_ok=True)
    return WRITERS[name](folder, results)


def test_straight_edges_have_no_corners_between():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 5:25] = True
    assert len(polygons(mask)[0]) == 8  # corners are cut by half a pixel


def test_coco_polygons(results, tmp_path):
    (path,) = write("coco_polygons", results[0], tmp_path / "out")
    read = read_annotations(path)
    for box, mask in zip(read.boxes, results[1], strict=True):
        assert iou(read.mask(box) != 0, mask) > 0.9
    assert read.rows[0]["colour"] == "red"


class TestTheWholeInputIsThere:
    """What has no mask stays, and says why."""

    @pytest.fixture
    def rows(self, results, tmp_path):
        """Of both COCO files: an annotation with a mask, one with an empty mask, one that cannot be used."""
        found, _ = results
        tree = json.loads(found.annotations.path.read_text())
        tree["annotations"].append({"id": 3, "image_id": 1, "category_id": 4, "bbox": [float("nan"), 1, 2, 3]})
        found.annotations.path.write_text(json.dumps(tree))
        annotations = read_annotations(found.annotations.path)
        nothing = PlacedMask(np.zeros((4, 4), bool), 0, 0, WIDTH, HEIGHT)
        empty = Labelled(1, nothing.rle(), 0, None, 0.0, quality=Judgement(0.0))
        result = Results(annotations, select(annotations, Rules()), (found.labelled[0], empty))
        write_labels(tmp_path / "rle.json", result)
        (polygons_file,) = write("coco_polygons", result, tmp_path / "out")

        def refuse(name):
            raise AssertionError(f"{name} is no JSON")

        return [
            json.loads(path.read_text(), parse_constant=refuse)["annotations"]
            for path in (tmp_path / "rle.json", polygons_file)
        ]

    def test_reasons(self, rows):
        for of_file in rows:
            assert [row["id"] for row in of_file] == [1, 2, 3]
            assert [row.get(REASON) for row in of_file] == [
                None,
                EMPTY,
                "its bbox is not four numbers x, y, width, height",
            ]

    def test_numbers_that_are_none_are_null(self, rows):
        assert [of_file[2]["bbox"] for of_file in rows] == [[None, 1, 2, 3]] * 2

    def test_empty_masks(self, rows):
        (_, of_rle, _), (_, of_polygons, _) = rows
        assert of_rle["mask_area"] == of_polygons["area"] == 0
        assert of_polygons["segmentation"] == []


def test_a_point_prompt_has_its_box_in_every_coco_file(tmp_path):
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "point": [20, 15]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(tree))
    annotations = read_annotations(tmp_path / "ann.json", point_size=8)
    mask = PlacedMask(np.ones((4, 4), bool), 18, 13, WIDTH, HEIGHT)
    labelled = Labelled(0, mask.rle(), mask.area, mask.bounds(), 0.9)
    (path,) = write("coco_polygons", Results(annotations, select(annotations, Rules()), (labelled,)), tmp_path / "out")
    (row,) = json.loads(path.read_text())["annotations"]
    assert row["bbox"] == [16, 11, 8, 8]


@pytest.mark.parametrize(("name", "kept"), [("yolo", "yolo/{}.txt"), ("png", "masks/{}.png")])
def test_pictures_that_differ_in_their_suffix_alone(results, tmp_path, name, kept):
    found, _ = results
    tree = json.loads(found.annotations.path.read_text())
    tree["images"][1]["file_name"] = "sub/a.png"
    found.annotations.path.write_text(json.dumps(tree))
    annotations = read_annotations(found.annotations.path)
    write(name, Results(annotations, found.selection, found.labelled), tmp_path / "out")
    files = [tmp_path / "out" / kept.format(stem) for stem in ("sub/a", "sub/a.png")]
    assert all(file.is_file() for file in files)
    assert files[0].read_bytes() != files[1].read_bytes()  # the second picture has no object


def test_yolo(results, tmp_path):
    """``class x y x y …``, shares of width and height."""
    write("yolo", results[0], tmp_path / "out")
    lines = (tmp_path / "out/yolo/sub/a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    shares = np.array(lines[0].split()[1:], float).reshape(-1, 2)
    assert iou(drawn([shares * (WIDTH, HEIGHT)]), results[1][0]) == 1
    assert (tmp_path / "out/yolo/b.txt").read_text() == ""  # nothing is written outside the folder
    assert (tmp_path / "out/yolo/classes.txt").read_text() == "cup & <saucer>\nplate\n"


def test_png(results, tmp_path):
    write("png", results[0], tmp_path / "out")
    pixels = np.asarray(Image.open(tmp_path / "out/masks/sub/a.png"))
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels == 1, results[1][0])  # the smaller one is on top
    assert np.array_equal(pixels == 2, results[1][1] & ~results[1][0])
    with (tmp_path / "out/masks/objects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [["sub/a.png", "1", "1", "cup & <saucer>"], ["sub/a.png", "2", "2", "plate"]]


def test_cvat(results, tmp_path):
    """ "CVAT for images 1.1": image with polygons, ``points`` as ``x,y;x,y``."""
    (path,) = write("cvat", results[0], tmp_path / "out")
    root = ElementTree.parse(path).getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    first, second = root.findall("image")
    assert (first.get("name"), first.get("width"), first.get("height")) == ("sub/a.jpg", "40", "30")
    assert second.findall("polygon") == []
    shapes = [
        (p.get("label"), p.get("group_id"), [tuple(map(float, xy.split(","))) for xy in p.get("points").split(";")])
        for p in first.findall("polygon")
    ]
    assert [shape[:2] for shape in shapes] == [("cup & <saucer>", "1"), ("plate", "2"), ("plate", "2")]
    assert iou(drawn([points for *_, points in shapes[1:]]), results[1][1]) == 1


def test_label_studio(results, tmp_path):
    """Tasks with predictions: ``polygonlabels``, points in percent of the picture."""
    path, _ = write("label_studio", results[0], tmp_path / "out")
    first, second = json.loads(path.read_text())
    assert first["data"] == {"image": "sub/a.jpg"}
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.5  # the worst of the picture
    shapes = prediction["result"]
    assert {shape["type"] for shape in shapes} == {"polygonlabels"}
    assert all(0 <= n <= 100 for shape in shapes for point in shape["value"]["points"] for n in point)
    points = np.array(shapes[0]["value"]["points"]) * (WIDTH, HEIGHT) / 100
    assert iou(drawn([points]), results[1][0]) == 1
    assert second["predictions"][0]["result"] == []


def test_label_studio_interface(results, tmp_path):
    """The names that the predictions refer to, and the classes that they have."""
    path, interface = write("label_studio", results[0], tmp_path / "out")
    root = ElementTree.parse(interface).getroot()
    shape = json.loads(path.read_text())[0]["predictions"][0]["result"][0]
    labels, image = root.find("PolygonLabels"), root.find("Image")
    assert (labels.get("name"), labels.get("toName")) == (shape["from_name"], shape["to_name"])
    assert (image.get("name"), image.get("value")) == (shape["to_name"], "$image")
    assert [label.get("value") for label in labels] == ["cup & <saucer>", "plate"]


def test_label_studio_is_told_where_the_pictures_are(results, tmp_path):
    path, _ = label_studio(tmp_path, results[0], "/data/local-files/?d=images/")
    assert json.loads(path.read_text())[0]["data"]["image"] == "/data/local-files/?d=images/sub/a.jpg"


def test_names_that_xml_cannot_hold(results, tmp_path):
    found, _ = results
    tree = json.loads(found.annotations.path.read_text())
    tree["categories"][0]["name"] = "a\x01b"
    found.annotations.path.write_text(json.dumps(tree))
    annotations = read_annotations(found.annotations.path)
    (path,) = write("cvat", Results(annotations, found.selection, found.labelled), tmp_path / "out")
    assert ElementTree.parse(path).getroot().find("image/polygon").get("label") == "a\N{REPLACEMENT CHARACTER}b"
