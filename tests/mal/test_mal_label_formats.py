"""Masks in the files of labelling tools, read back by what the formats' own documents say of them."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.path import Path as MplPath
from PIL import Image

from mal.annotations import Rules, read_annotations, select
from mal.decode import PlacedMask
from mal.label_formats import WRITERS, polygons
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
    assert np.array_equal(pixels == 2, results[1][1])
    assert np.array_equal(pixels == 1, results[1][0] & ~results[1][1])


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
    (path,) = write("label_studio", results[0], tmp_path / "out")
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
