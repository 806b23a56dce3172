"""What a newcomer gets wrong: each is told in one line, with its place and what to do, before any work starts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiducial import cli
from mal.__main__ import TASKS

torch.set_num_threads(1)


@pytest.fixture
def told(write_spec, pictures, tmp_path, capsys):
    """Runs a command on a spec whose files are changed first; gives its exit code and what it says."""

    def run(action, *overrides, train=None, val=None, spec=None):
        changes = dict(spec or {})
        for split, change in (("train", train), ("val", val)):
            if change is not None:
                tree = json.loads((pictures / split / "ann.json").read_text())
                content = change(tree)
                path = tmp_path / f"{split}.json"
                path.write_text(content if isinstance(content, str) else json.dumps(tree))
                changes[f"dataset__{split}_ann_path"] = str(path)
        code = cli.main(TASKS, [*action.split(), "-e", str(write_spec(tmp_path, **changes)), *overrides], prog="mal")
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, said

    return run


def each(table, **values):
    """A change of every row of a table; a function is given the row."""

    def change(tree):
        for row in tree[table]:
            row |= {name: value(row) if callable(value) else value for name, value in values.items()}

    return change


def first(table, count, **values):
    def change(tree):
        each(table, **values)({table: tree[table][:count]})

    return change


def without(table, name, count=None):
    def change(tree):
        for row in tree[table][:count]:
            del row[name]

    return change


def as_shares(row):
    x, y, width, height = row["bbox"]
    return [x / 128, y / 96, width / 128, height / 96]


def as_corners(row):
    x, y, width, height = row["bbox"]
    return [x, y, x + width, y + height]


NAN = float("nan")
ERRORS = {
    "no JSON": (lambda _: '{"images": [', ["train.json · no JSON (Expecting value: line 1", "export the annotations"]),
    "a table of text": (lambda _: "a,b\n1,2\n", ["no JSON", "COCO's JSON"]),
    "a web page": (lambda _: "<!DOCTYPE html><html>", ["no JSON (a web page"]),
    "a git-lfs pointer": (lambda _: "version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "an empty file": (lambda _: "", ["an empty file"]),
    "a list": (lambda _: "[]", ["a JSON list, no object"]),
    "no tables": (
        lambda tree: tree.clear(),
        ["has no list 'images'", "has no list 'annotations'", "has no list 'categories'"],
    ),
    "no annotations": (lambda tree: tree["annotations"].clear(), ["no annotations · give annotations with boxes"]),
    "no size": (without("images", "width"), ["train.json: 0.png · width None, height 96", "4.png · width None"]),
    "a size beyond all pictures": (first("images", 1, width=10**6, height=10**6), ["more than 536,870,912 pixels"]),
    "images twice": (each("images", id=1), ["images · 1 ids stand twice (first: 1) · give each its own id"]),
    "nothing but NaN": (
        each("annotations", bbox=[1, 2, NAN, 3]),
        ["15 of 15 annotations: its bbox is not four numbers", "none of its 15 annotations can be used"],
    ),
    "corners": (
        each("annotations", bbox=as_corners),
        ["most boxes reach beyond their picture, and would not as corners", "convert x0, y0, x1, y1"],
    ),
    "shares": (
        each("annotations", bbox=as_shares),
        ["most boxes lie within the first pixel: shares of the picture, 0 to 1 (first: 0, 1, 2)", "multiply by"],
    ),
    "pictures that are not there": (
        first("images", 4, file_name=lambda row: f"gone/{row['file_name']}"),
        [f"gone/{i}.png (4 of 5 are missing)" for i in range(4)] + ["gone does not exist", "dataset.train_img_dir"],
    ),
    "another suffix": (first("images", 1, file_name="0.jpg"), ["there is 0.png: file_name must have the suffix .png"]),
    "capitals": (first("images", 1, file_name="0.PNG"), ["there is 0.png: capitals count"]),
    "a name that is too long": (
        first("images", 1, file_name="x" * 300),
        ["(1 of 5 are missing)", "longer than a name"],
    ),
    "other sizes": (
        first("images", 1, width=200),
        ["0.png · 128 x 96 pixels, 200 x 96 in the annotations · annotate this version"],
    ),
    "turned pictures": (first("images", 1, width=96, height=128), ["a turn by EXIF is not applied"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_annotations_that_cannot_be_trained_on(told, name):
    change, expected = ERRORS[name]
    code, said = told("check train", train=change)
    assert code == 1
    for text in expected:
        assert text in said


WARNINGS = {
    "NaN": (first("annotations", 2, bbox=[1, 2, NAN, 3]), "2 of 15 annotations: its bbox is not four numbers"),
    "negative sides": (first("annotations", 1, bbox=[50, 50, -9, 20]), "has a negative width or height (first: 0)"),
    "negative corners": (first("annotations", 1, bbox=[-9, -9, 40, 40]), "1 of 15 boxes reach beyond their picture"),
    "outside": (first("annotations", 1, bbox=[500, 9, 40, 40]), "1 of 15 annotations: has no area in its picture"),
    "gaps in the categories": (first("annotations", 2, category_id=5), "its category_id is none of the categories"),
    "no such image": (first("annotations", 2, image_id=77), "its image_id is none of the images (first: 0, 1)"),
    "no box": (without("annotations", "bbox", 3), "it has neither bbox nor point (first: 0, 1, 2)"),
    "ids twice": (each("annotations", id=3), "1 annotation ids stand more than once (first: 3)"),
    "crowds": (first("annotations", 2, iscrowd=1), "2 of 15 annotations: is a crowd"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_annotations_that_are_left_out_are_told(told, name):
    change, expected = WARNINGS[name]
    code, said = told("check train", train=change)
    assert (code, expected in said) == (0, True)


def test_shares_are_not_labelled_either(told, pictures, tmp_path):
    tree = json.loads((pictures / "val" / "ann.json").read_text())
    each("annotations", bbox=as_shares)(tree)
    (tmp_path / "todo.json").write_text(json.dumps(tree))
    code, said = told("check inference", f"inference.ann_path={tmp_path / 'todo.json'}", "inference.checkpoint=x")
    assert (code, "shares of the picture, 0 to 1" in said) == (1, True)


def test_category_ids_with_gaps_are_fine(told):
    def change(tree):
        for row in [*tree["annotations"], *tree["categories"]]:
            key = "category_id" if "category_id" in row else "id"
            row[key] = {3: 90, 7: 1}[row[key]]

    assert told("check train", train=change)[0] == 0


def test_points_are_boxes(told):
    def change(tree):
        for row in tree["annotations"]:
            x, y, width, height = row.pop("bbox")
            row["point"] = [x + width / 2, y + height / 2]

    assert told("check train", train=change)[0] == 0


class TestMasks:
    def test_none_at_all(self, told):
        code, said = told("check train", val=without("annotations", "segmentation"))
        assert code == 1
        assert "dataset.load_mask · true, but 6 of 6 annotations have no segmentation (first: 0)" in said
        assert "set dataset.load_mask=false (no mIoU)" in said

    def test_damaged_ones(self, told):
        code, said = told("check train", val=first("annotations", 2, segmentation=[[1, 2]]))
        assert code == 1
        for number in (0, 1):
            assert f"annotation {number} · its segmentation is no mask (polygons are lists" in said

    def test_evaluate_needs_them(self, told):
        code, said = told("check evaluate", spec={"dataset__load_mask": False})
        assert (code, "dataset.load_mask · false: evaluate has nothing to compare with" in said) == (1, True)


SPECS = {
    "crop": ({"dataset__crop_size": 500}, "500 is no multiple of the patch 16 of vit-deit-tiny/16 · set 496 or 512"),
    "arch": ({"model__arch": "resnet50"}, "model.arch · "),
    "convolutions": ({"model__mask_head_num_convs": 3}, "model.mask_head_num_convs · found 3 · must be at least 4"),
    "ratio": ({"model__mask_scale_ratio": 3}, "model.mask_scale_ratio · found 3 · 2, or not_adjust_scale=true"),
    "ratio before": ({"model__mask_scale_ratio_pre": 2}, "model.mask_scale_ratio_pre · found 2"),
    "kernel": ({"train__crf_kernel_size": 4}, "train.crf_kernel_size · 4 is even · use an odd number such as 3"),
    "two thresholds": ({"train__mask_thres": [0.1, 0.2]}, "train.mask_thres · 2 numbers · give one, or three"),
    "no thresholds": ({"train__mask_thres": []}, "train.mask_thres"),
    "four thresholds": ({"train__mask_thres": [0.1] * 4}, "at most 3 items after validation, not 4"),
    "one margin": ({"train__margin_rate": [0.1]}, "at least 2 items after validation, not 1"),
    "three margins": ({"train__margin_rate": [0, 1, 2]}, "at most 2 items after validation, not 3"),
    "checkpoints": ({"train__checkpoint_interval": 9}, "train.checkpoint_interval · 9 is more than train.num_epochs 2"),
    "validations": ({"train__validation_interval": 9}, "train.validation_interval · 9 is more than train.num_epochs 2"),
    "sizes": ({"dataset__min_obj_size": 20000}, "all 15 boxes are at most 20000 square pixels (median"),
    "no annotations": ({"dataset__train_ann_path": ""}, "dataset.train_ann_path · not set"),
    "no such weights": ({"train__pretrained_model_path": "no.pth"}, "train.pretrained_model_path · no file 'no.pth'"),
}


@pytest.mark.parametrize("name", SPECS)
def test_specs(told, name):
    changes, expected = SPECS[name]
    code, said = told("check train", spec=changes)
    assert (code, expected in said) == (1, True), said


def test_everything_is_told_at_once(told):
    code, said = told(
        "check train",
        train=first("images", 1, width=200),
        spec={"dataset__crop_size": 500, "train__crf_kernel_size": 4, "dataset__val_img_dir": "no/where"},
    )
    assert code == 1
    for text in ("crop_size · 500", "4 is even", "200 x 96", "dataset.val_img_dir · no file or folder"):
        assert text in said


def test_both_places_of_a_split_are_told(told):
    _, said = told("check train", spec={"dataset__train_ann_path": "no.json", "dataset__train_img_dir": "no"})
    assert "dataset.train_ann_path · no file or folder 'no.json'" in said
    assert "dataset.train_img_dir · no file or folder 'no'" in said


def test_a_picture_where_a_folder_is_meant(told, pictures):
    _, said = told("check train", spec={"dataset__train_img_dir": str(pictures / "train" / "img" / "0.png")})
    assert "is no folder · give a folder, or an archive of one" in said


class TestPictures:
    @pytest.fixture
    def images(self, pictures, tmp_path):
        return Path(shutil.copytree(pictures / "train" / "img", tmp_path / "img"))

    def refused(self, told, images):
        code, said = told("check train", spec={"dataset__train_img_dir": str(images)})
        assert code == 1
        return said

    def test_cut_off(self, told, images):
        whole = (images / "1.png").read_bytes()
        (images / "1.png").write_bytes(whole[: len(whole) // 2])
        assert "1.png · an image that cannot be read" in self.refused(told, images)

    def test_of_no_range(self, told, images):
        Image.fromarray(np.zeros((96, 128), np.float32)).save(images / "1.png", "TIFF")
        assert "(32 bits) have no known range" in self.refused(told, images)

    def test_something_else(self, told, images):
        (images / "1.png").write_text("version https://git-lfs.github.com/spec/v1\n")
        (images / "2.png").write_bytes(b"")
        said = self.refused(told, images)
        assert "1.png · not an image but a git-lfs pointer" in said
        assert "2.png · an empty file" in said


def test_fewer_epochs_than_the_warm_up_takes(told):
    code, said = told("check train", spec={"train__warmup_epochs": 3})
    assert (code, "train.warmup_epochs · 3 of 2 epochs · the learning rate only grows" in said) == (0, True)


class TestWeights:
    def test_of_something_else(self, told, tmp_path):
        torch.save({"model": {"a": torch.zeros(3)}}, tmp_path / "w.pth")
        code, said = told("check train", spec={"train__pretrained_model_path": str(tmp_path / "w.pth")})
        assert (code, "only 0 of 150 tensors match" in said) == (1, True)

    def test_a_backbone_is_no_checkpoint(self, told, tmp_path):
        from fiducial.backbones.mae import build_vit

        torch.save({"model": build_vit("vit-deit-tiny/16").state_dict()}, tmp_path / "mae.pth")
        code, said = told("evaluate", f"evaluate.checkpoint={tmp_path / 'mae.pth'}")
        assert (code, "ViT (MAE, DeiT) alone, no MAL checkpoint" in said) == (1, True)
        assert "a backbone is train.pretrained_model_path" in said


def test_out_of_memory_says_what_saves_some(told, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("mal.lightning.MalModule.training_step", step)
    code, said = told("train")
    assert code == 1
    for saver in ("lower the batch size", "dataset.crop_size", "model.activation_checkpointing=true", "model.arch"):
        assert saver in said


def test_fewer_boxes_than_a_batch_holds(told):
    """Validation takes what there is."""

    def one(tree):
        del tree["annotations"][1:]

    assert told("train", "train.batch_size=8", "train.num_epochs=1", val=one)[0] == 0
