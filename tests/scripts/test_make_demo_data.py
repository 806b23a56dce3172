"""The drawn data sets: the same bytes twice, honest splits, defects and changes where the labels say."""

import csv
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

_SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path += [str(_SCRIPTS), str(_SCRIPTS / "bench")]  # programs, not a package: they find each other as when run

import demo_baseline  # noqa: E402
import make_demo_data  # noqa: E402
from demo_data import boards, digits, paint, scenes, shapes  # noqa: E402

LIGHTS = ("SolderLight", "WhiteLight")


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.float64) / 255


@pytest.fixture(scope="module")
def aoi(tmp_path_factory) -> tuple[Path, dict[str, list[dict[str, str]]]]:
    out = tmp_path_factory.mktemp("aoi")
    make_demo_data.main(["classify", str(out), "--boards", "20", "--parts", "12", "--size", "48"])
    rows = {}
    for split in boards.SPLITS:
        with (out / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            rows[split] = list(csv.DictReader(file))
    return out, rows


@pytest.fixture(scope="module")
def aerial(tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    out = tmp_path_factory.mktemp("aerial")
    return out, scenes.make_scenes(out, num_scenes=20, size=96, seed=0)


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    """The folder, and its annotation files."""
    out = tmp_path_factory.mktemp("instances")
    make_demo_data.main(["mal", str(out), "--pictures", "12", "--shapes", "4", "--size", "96"])
    return out, {split: json.loads((out / f"{split}.json").read_text()) for split in shapes.SPLITS}


@pytest.fixture(scope="module")
def recognition(tmp_path_factory) -> dict[str, dict[str, set[str]]]:
    """The names of the pictures of each part, by class."""
    out = tmp_path_factory.mktemp("recognition")
    make_demo_data.main(["mlrecog", str(out), "--size", "16"])
    parts = [folder for half in ("known", "unseen") for folder in (out / half).iterdir()]
    return {
        str(part.relative_to(out)): {digit.name: {path.name for path in digit.iterdir()} for digit in part.iterdir()}
        for part in parts
    }


class TestClassify:
    def test_same_seed_same_bytes(self, tmp_path):
        command = ["classify", "--boards", "4", "--parts", "6", "--size", "32"]
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            make_demo_data.main([*command, "--seed", seed, str(tmp_path / name)])
        a, b, c = (digest(tmp_path / name) for name in "abc")
        assert a == b
        assert a.keys() == c.keys()
        assert a["images/golden/design_0/R1_WhiteLight.png"] != c["images/golden/design_0/R1_WhiteLight.png"]

    def test_rows_as_asked_for(self, aoi):
        _, rows = aoi
        assert {split: len(of_split) for split, of_split in rows.items()} == {
            "train": 12 * 12, "val": 3 * 12, "test": 4 * 12, "infer": 12,
        }  # fmt: skip
        assert list(rows["test"][0]) == list(boards.COLUMNS)

    def test_no_board_is_in_two_splits(self, aoi):
        _, rows = aoi
        boards_of = [{row["board"] for row in of_split} for of_split in rows.values()]
        assert sum(map(len, boards_of)) == len(set.union(*boards_of)) == 20

    def test_every_image_exists_with_its_golden(self, aoi):
        out, rows = aoi
        named = {
            out / "images" / row[column] / f"{row['object_name']}_{light}.png"
            for of_split in rows.values() for row in of_split
            for column in ("input_path", "golden_path") for light in LIGHTS
        }  # fmt: skip
        assert named == set((out / "images").rglob("*.png"))
        assert {Image.open(path).size for path in named} == {(48, 48)}

    def test_labels_and_defects(self, aoi):
        _, rows = aoi
        everything = [row for of_split in rows.values() for row in of_split]
        assert {(row["label"], row["defect"] == boards.GOOD) for row in everything} == {
            ("PASS", True),
            ("NO_PASS", False),
        }
        defects = Counter(row["defect"] for row in everything if row["label"] == "NO_PASS")
        assert set(defects) == set(boards.DEFECTS)
        assert 0.12 < sum(defects.values()) / len(everything) < 0.22
        assert all(row["defect"] in (boards.GOOD, *boards.KINDS[row["component"]].defects) for row in everything)

    def test_brightness_and_background_do_not_tell(self, aoi):
        """Light, drift, board and the corner where no part is: the same lottery for good and defect."""
        out, rows = aoi
        everything = [row for of_split in rows.values() for row in of_split]
        labels = np.array([int(row["label"] != "PASS") for row in everything])
        for light in LIGHTS:
            tiles, goldens = (
                np.stack(
                    [read_image(out / "images" / row[at] / f"{row['object_name']}_{light}.png") for row in everything]
                )
                for at in ("input_path", "golden_path")
            )
            corner = tiles[:, :5, :5]
            for cue in (tiles, tiles - goldens, corner):
                assert 0.35 < demo_baseline.auroc(cue.mean((1, 2, 3)), labels) < 0.65
            assert 0.35 < demo_baseline.auroc(corner.std((1, 2, 3)), labels) < 0.65

    def test_many_rows_share_a_golden(self, aoi):
        _, rows = aoi
        goldens = Counter((row["golden_path"], row["object_name"]) for of_split in rows.values() for row in of_split)
        assert set(goldens.values()) == {10}  # twenty boards of two designs

    def test_the_readme_names_every_defect_and_component(self, aoi):
        text = (aoi[0] / "README.txt").read_text(encoding="utf-8")
        assert all(name in text for name in (*boards.DEFECTS, *boards.KINDS, *LIGHTS))

    def test_prints_the_label_histogram(self, tmp_path, capsys):
        make_demo_data.main(
            ["classify", str(tmp_path), "--boards", "4", "--parts", "2", "--size", "16", "--defects", "0"]
        )
        assert "val.csv: 2 rows of 1 boards; PASS 2; none 2" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argument", "message"),
        [("--boards=3", "--boards 4 or more"), ("--size=8", "--size 16"), ("--defects=2", "0 to 1")],
    )
    def test_impossible_arguments(self, tmp_path, argument, message):
        with pytest.raises(SystemExit, match=message):
            make_demo_data.main(["classify", str(tmp_path), argument])


class TestTile:
    @pytest.mark.parametrize("light", list(boards.LIGHTS))
    def test_defects_change_the_component_more_than_anything_else_does(self, light):
        """In one capture without noise, over the part itself, every defect outdoes another lot's good part."""
        good_lot, other_lot = (boards.draw_lot(np.random.default_rng(seed)) for seed in (1, 2))
        capture = boards.Capture(0.3, 0.0, {light: (1.0, 1.0, 1.0)}, {light: (0.0, 0.0)})
        part_region = np.maximum(abs(paint.Grid.of_size(48).x), abs(paint.Grid.of_size(48).y)) < 0.8

        def tile(part: boards.Part, defect: str, lot: boards.Lot, seed: int) -> np.ndarray:
            surface = boards.paint_tile(part, defect, lot, np.random.default_rng(seed), 48, (0.0, 0.0))
            return boards.photograph(surface, light, capture, np.random.default_rng(0))[part_region]

        for part in boards.draw_design(np.random.default_rng(3), len(boards.KINDS)):
            golden = tile(part, boards.GOOD, good_lot, 0)
            changed = {
                defect: np.mean([abs(tile(part, defect, good_lot, seed) - golden).mean() for seed in range(1, 5)])
                for defect in (boards.GOOD, *boards.KINDS[part.kind].defects)
            }
            assert min(changed, key=changed.get) == boards.GOOD
            assert abs(tile(part, boards.GOOD, other_lot, 1) - golden).mean() > changed[boards.GOOD]

    def test_solder_light_tells_flat_from_steep(self):
        surface = boards.Surface(2, (0, 0, 0))
        surface.metal[:] = 1
        surface.steep[:] = [[0.0, 0.45], [0.95, 1.0]]
        brightest = boards.LIGHTS["SolderLight"](surface).argmax(-1)
        assert brightest.tolist() == [[0, 1], [2, 2]]  # red, green, blue


class TestSplit:
    def test_shares_of_forty_boards(self):
        split_of = boards.split_boards(np.random.default_rng(0), 40)
        assert sorted(split_of) == list(range(40))
        assert Counter(split_of.values()) == {"train": 24, "val": 6, "test": 8, "infer": 2}


class TestSegment:
    def test_same_seed_same_bytes(self, tmp_path):
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            make_demo_data.main(["segment", str(tmp_path / name), "--scenes", "4", "--size", "32", "--seed", seed])
        a, b, c = (digest(tmp_path / name) for name in "abc")
        assert a == b
        assert a["A/scene_000.png"] != c["A/scene_000.png"]

    def test_layout(self, aerial):
        out, _ = aerial
        names = [name for split in scenes.SPLITS for name in (out / "list" / f"{split}.txt").read_text().split()]
        assert len(names) == len(set(names)) == 20
        for folder in ("A", "B", "label"):
            assert {path.name for path in (out / folder).iterdir()} == set(names)

    def test_masks_are_black_and_white_and_as_reported(self, aerial):
        out, shares = aerial
        for split, of_split in shares.items():
            for name, share in zip((out / "list" / f"{split}.txt").read_text().split(), of_split, strict=True):
                mask = read_image(out / "label" / name)
                assert mask.ndim == 2
                assert set(np.unique(mask)) <= {0.0, 1.0}
                assert mask.mean() == pytest.approx(share)
        assert any(share == 0 for of_split in shares.values() for share in of_split)

    def test_no_change_is_an_empty_mask(self):
        place = scenes.draw_place(np.random.default_rng(0), 64)
        assert not scenes.change_mask(place, place.buildings, place.buildings).any()

    def test_mask_is_where_the_building_was(self):
        """On the same visit, a demolished building changes nothing but its own place and its shadow."""
        place = scenes.draw_place(np.random.default_rng(1), 64)
        visit = scenes.draw_visit(np.random.default_rng(2), len(place.fields))
        still = scenes.Visit(**{**vars(visit), "sun": (0.0, 0.0), "shift": (0.0, 0.0), "noise": 0.0, "focus": 0.0})
        before, after = place.buildings, place.buildings[:-1]  # the last one is drawn last: the others draw as before
        tree_less = scenes.Place(place.fields, place.roads, place.buildings, (), place.texture)
        a, b = (scenes.paint_scene(tree_less, s, still, np.random.default_rng(0)) for s in (before, after))
        mask = scenes.change_mask(place, before, after) > 0
        changed = abs(a - b).max(-1) > 0.02
        assert mask.any()
        assert (changed & mask).sum() > 0.9 * mask.sum()
        beside = changed & ~mask  # its edge, which covers a part of a pixel
        mask_and_edge = paint.blur(mask.astype(np.float32), 0.5) > 0
        assert not (beside & ~mask_and_edge).any()

    def test_too_few_scenes(self, tmp_path):
        with pytest.raises(SystemExit, match="--scenes 4 or more"):
            make_demo_data.main(["segment", str(tmp_path), "--scenes", "3"])


class TestMal:
    def test_same_seed_same_bytes(self, tmp_path):
        command = ["mal", "--pictures", "3", "--shapes", "2", "--size", "64"]
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            make_demo_data.main([*command, "--seed", seed, str(tmp_path / name)])
        a, b, c = (digest(tmp_path / name) for name in "abc")
        assert a == b
        assert a.keys() == c.keys()
        assert a["images/0000.png"] != c["images/0000.png"]
        assert a["train.json"] != c["train.json"]

    def test_training_has_boxes_alone(self, instances):
        masks = {
            name: [bool(row.get("segmentation")) for row in tree["annotations"]] for name, tree in instances[1].items()
        }
        assert not any(masks["train"])
        assert all(masks["val"] + masks["test"])
        assert all(masks.values())  # each has some annotations

    def test_boxes_are_tight_around_the_masks(self, instances):
        for split in ("val", "test"):
            for row in instances[1][split]["annotations"]:
                rows, columns = np.nonzero(coco_mask.decode(row["segmentation"]))
                x, y, width, height = row["bbox"]
                assert (x, y) == (columns.min(), rows.min())
                assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)

    def test_masks_are_where_the_shapes_are(self, instances):
        """A shape is lighter than what lies around it in its box."""
        out, trees = instances
        files = {picture["id"]: picture["file_name"] for picture in trees["val"]["images"]}
        for row in trees["val"]["annotations"]:
            x, y, width, height = row["bbox"]
            window = (slice(y, y + height), slice(x, x + width))
            mask = coco_mask.decode(row["segmentation"])[window] > 0
            pixels = read_image(out / "images" / files[row["image_id"]])[window].mean(-1)
            assert pixels[mask].mean() > pixels[~mask].mean() + 0.05

    def test_no_picture_is_in_two_splits(self, instances):
        out, trees = instances
        names = [picture["file_name"] for tree in trees.values() for picture in tree["images"]]
        assert len(names) == len(set(names)) == 12
        assert {path.name for path in (out / "images").iterdir()} == set(names)
        for tree in trees.values():
            assert {row["image_id"] for row in tree["annotations"]} <= {picture["id"] for picture in tree["images"]}
            ids = [row["id"] for row in tree["annotations"]]
            assert len(ids) == len(set(ids))


class TestMlrecog:
    def test_same_seed_same_bytes(self, tmp_path):
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            make_demo_data.main(["mlrecog", "--size", "8", "--seed", seed, str(tmp_path / name)])
        a, b, c = (digest(tmp_path / name) for name in "abc")
        assert a == b
        assert a.keys() != c.keys()  # others are held back

    def test_unseen_classes_are_not_trained_on(self, recognition):
        known, unseen = (set(recognition[f"{part}/query"]) for part in ("known", "unseen"))
        assert set(recognition["known/train"]) == set(recognition["known/reference"]) == known
        assert set(recognition["unseen/reference"]) == unseen
        assert len(unseen) == digits.UNSEEN
        assert not known & unseen
        assert known | unseen == set("0123456789")

    def test_no_picture_is_in_two_parts(self, recognition):
        files = [name for classes in recognition.values() for of_class in classes.values() for name in of_class]
        assert len(files) == len(set(files)) == 1797  # all of scikit-learn's


class TestPaint:
    def test_cover_of_a_box_is_its_area(self):
        grid = paint.Grid.of_size(64).moved(0.013, -0.007, 30)
        area = grid.cover(grid.box(0, 0, 0.4, 0.25)).sum() * grid.pixel**2
        assert area == pytest.approx(4 * 0.4 * 0.25, rel=0.01)

    def test_blur_keeps_the_mean_of_a_constant_and_spreads_a_point(self):
        assert paint.blur(np.full((9, 9), 0.3, np.float32), 1.5) == pytest.approx(0.3)
        point = np.zeros((21, 21), np.float32)
        point[10, 10] = 1
        assert paint.blur(point, 1.0)[10, 10] == pytest.approx(1 / (2 * np.pi), rel=0.02)


@pytest.mark.parametrize(
    ("words", "lights"),
    [
        (["--lights", "UniformLight", "out"], ["UniformLight"]),
        (["--lights", "UniformLight", "WhiteLight", "out"], ["UniformLight", "WhiteLight"]),
        (["--lights", "UniformLight,WhiteLight", "out"], ["UniformLight", "WhiteLight"]),
        (["--lights=UniformLight", "WhiteLight", "out", "--seed", "3"], ["UniformLight", "WhiteLight"]),
        (["out", "--lights", "WhiteLight", "--parts", "4"], ["WhiteLight"]),
        (["out"], ["SolderLight", "WhiteLight"]),
    ],
)
def test_the_folder_is_no_light(words, lights):
    arguments = make_demo_data.parse_arguments(["classify", *words])
    assert (arguments.lights, arguments.out) == (lights, Path("out"))


@pytest.mark.parametrize("words", [["--lights", "Blacklight", "out"], ["--lights", "WhiteLight,", "out"]])
def test_a_light_that_is_none(words, capsys):
    with pytest.raises(SystemExit):
        make_demo_data.parse_arguments(["classify", *words])
    assert "is no light: choose from" in capsys.readouterr().err
