"""Every action through the command line, on pictures that the tests make."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from pycocotools import mask as coco_mask

from fiducial import cli
from fiducial.errors import DatasetError
from fiducial.run.status import read_status
from mal.__main__ import TASKS

torch.set_num_threads(1)


def run(action, spec, *overrides):
    return cli.main(TASKS, [*action.split(), "-e", str(spec), *map(str, overrides)], prog="mal")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(write_spec, tmp_path_factory):
    """(spec file, results folder) of two epochs."""
    spec = write_spec(tmp_path_factory.mktemp("mal"))
    assert run("train", spec) == 0
    return spec, spec.parent / "results"


@pytest.fixture(scope="module")
def evaluated(trained):
    assert run("evaluate", trained[0]) == 0
    return trained[1] / "evaluate"


@pytest.fixture(scope="module")
def labelled(trained):
    formats = "inference.formats=[coco_polygons,yolo,png,cvat,label_studio]"
    assert run("inference", trained[0], formats, "inference.load_mask=true") == 0
    return trained[1] / "inference"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    target = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert run("export", trained[0], f"export.onnx_file={target}") == 0
    return target


class TestTrain:
    def test_files(self, trained):
        folder = trained[1] / "train"
        names = {path.name for path in folder.iterdir()}
        assert {"experiment.yaml", "status.json", "mal_model_latest.pth", "mal_model_best.pth"} <= names
        assert "model_epoch_001_step_00008.pth" in names  # 15 boxes: 4 batches an epoch

    def test_checkpoint_is_one_of_tao(self, trained):
        raw = torch.load(trained[1] / "train" / "mal_model_latest.pth", weights_only=True)
        assert raw["tao_model"] == "mal"
        sides = {key.split(".")[0] for key in raw["state_dict"]}
        assert sides == {"student", "teacher"}
        for key in (
            "backbone.cls_token",
            "backbone.head.weight",
            "roi_head.mlp2.bias",
            "mask_head.convs.3.conv.weight",
        ):
            assert f"student.{key}" in raw["state_dict"]

    def test_status(self, trained):
        records = read_status(trained[1] / "train" / "status.json")
        assert records[0]["message"] == "Starting MAL train."
        validations = [r for r in records if r["message"] == "Eval metrics generated."]
        assert [r["epoch"] for r in validations] == [0, 1]
        assert {"mIoU", "mIoU_small", "mIoU_medium", "mIoU_large"} <= set(validations[0]["kpi"])
        assert records[-1]["status"] == "SUCCESS"

    def test_teacher_follows_the_student(self, trained):
        first, last = (
            torch.load(trained[1] / "train" / f"model_epoch_00{e}_step_0000{s}.pth", weights_only=True)["state_dict"]
            for e, s in ((0, 4), (1, 8))
        )
        key = "mask_head.convs.3.conv.weight"
        moved = (last[f"teacher.{key}"] - first[f"teacher.{key}"]).abs().max()
        assert 0 < moved < 0.01
        apart = [(w[f"student.{key}"] - w[f"teacher.{key}"]).norm() for w in (first, last)]
        assert apart[1] < apart[0]  # the teacher begins with heads of its own

    def test_continued_equals_uninterrupted(self, write_spec, tmp_path, trained):
        spec = write_spec(tmp_path, train__accum_grad_batches=3)
        assert run("train", spec, "train.num_epochs=1") == 0
        assert run("train", spec) == 0
        whole = write_spec(tmp_path / "whole", train__accum_grad_batches=3)
        assert run("train", whole) == 0
        continued, uninterrupted = (
            torch.load(path / "results" / "train" / "mal_model_latest.pth", weights_only=True)["state_dict"]
            for path in (tmp_path, tmp_path / "whole")
        )
        assert all(torch.equal(continued[key], uninterrupted[key]) for key in uninterrupted)

    def test_without_validation(self, write_spec, tmp_path, capsys):
        spec = write_spec(tmp_path, dataset__val_ann_path="", dataset__val_img_dir="", train__num_epochs=1)
        assert run("train", spec) == 0
        assert "training runs without validation" in capsys.readouterr().err

    def test_frozen_stages(self, write_spec, tmp_path):
        spec = write_spec(tmp_path, model__frozen_stages=[0, 1], train__num_epochs=1, train__lr=0.01)
        assert run("train", spec) == 0
        weights = torch.load(tmp_path / "results/train/mal_model_latest.pth", weights_only=True)
        kept = [len(state) for state in weights["optimizer_states"][0]["state"].values()]
        assert kept
        # biases begin as zeros: those of the frozen parts still are
        assert not weights["state_dict"]["student.backbone.blocks.0.attn.qkv.bias"].any()
        assert weights["state_dict"]["student.backbone.blocks.1.attn.qkv.bias"].any()


class TestEvaluate:
    def test_numbers(self, evaluated):
        kpis = json.loads((evaluated / "metrics.json").read_text())["kpis"]
        assert 0 < kpis["mIoU"] <= 1
        assert {"boundary_F", "object_IoU", "AP_segm", "ARmax100_segm"} <= set(kpis)
        assert kpis["mIoU_large"] is None

    def test_report(self, evaluated):
        page = (evaluated / "report.html").read_text()
        assert page.count("<article") == 6
        first = next(row for row in rows_of(evaluated / "objects.csv"))
        worst = page[page.index("<article") :]
        assert worst.index(f"annotation {first['annotation_id']}<") < worst.index("</article>")
        assert "true mask" in worst

    def test_says_the_numbers(self, trained, tmp_path, capsys):
        assert run("evaluate", trained[0], f"evaluate.results_dir={tmp_path}") == 0
        kpis = json.loads((tmp_path / "metrics.json").read_text())["kpis"]
        assert f"mIoU {kpis['mIoU']:.4g}, mIoU_small" in capsys.readouterr().err

    def test_ap_is_computed_once(self, trained, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr("mal.evaluator.average_precision", lambda result: calls.append(result) or {"AP_segm": 0.5})
        assert run("evaluate", trained[0], f"evaluate.results_dir={tmp_path}") == 0
        assert len(calls) == 1
        assert json.loads((tmp_path / "metrics.json").read_text())["kpis"]["AP_segm"] == 0.5

    def test_per_class(self, evaluated):
        rows = rows_of(evaluated / "per_class_iou.csv")
        assert [(row["category_id"], row["name"], row["n"]) for row in rows] == [
            ("7", "disc", "2"),
            ("3", "other disc", "4"),
        ]
        kpis = json.loads((evaluated / "metrics.json").read_text())["kpis"]
        assert kpis["mIoU"] == pytest.approx(np.mean([float(row["mean_iou"]) for row in rows]), abs=1e-5)

    def test_last_validation_gives_the_same(self, trained, evaluated):
        records = read_status(trained[1] / "train" / "status.json")
        last = [r for r in records if r["message"] == "Eval metrics generated."][-1]["kpi"]["mIoU"]
        assert json.loads((evaluated / "metrics.json").read_text())["kpis"]["mIoU"] == pytest.approx(last, abs=1e-9)

    @pytest.mark.parametrize("key", ["use_teacher_test", "use_mixed_model_test", "use_flip_test"])
    def test_other_networks(self, trained, tmp_path, key):
        assert run("evaluate", trained[0], f"evaluate.{key}=true", f"evaluate.results_dir={tmp_path}") == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["kpis"]["mIoU"] > 0


class TestInference:
    def tree(self, folder, pictures):
        given = json.loads((pictures / "val" / "ann.json").read_text())
        return given, json.loads((folder / "instances_val2017_mal.json").read_text())

    def test_the_input_with_masks(self, labelled, pictures):
        given, found = self.tree(labelled, pictures)
        assert {name: found[name] for name in ("info", "images", "categories")} == {
            name: given[name] for name in ("info", "images", "categories")
        }
        assert len(found["annotations"]) == len(given["annotations"]) == 6
        for row, before in zip(found["annotations"], given["annotations"], strict=True):
            for name in ("id", "image_id", "category_id", "bbox", "attributes"):
                assert row[name] == before[name]
            assert row["area"] == before["bbox"][2] * before["bbox"][3]
            assert row["mask_area"] == coco_mask.area(row["segmentation"])
            overlap = coco_mask.iou([row["segmentation"]], [before["segmentation"]], [0])[0, 0]
            assert row["iou"] == pytest.approx(overlap, abs=1e-6)

    def test_quality(self, labelled):
        rows = rows_of(labelled / "quality.csv")
        scores = [float(row["quality"]) for row in rows]
        assert scores == sorted(scores)
        first = rows[0]
        parts = [float(first[name]) for name in ("box_fit", "agreement", "stability")]
        assert scores[0] == pytest.approx(np.prod(parts) ** (1 / 3), abs=2e-3)

    def test_report(self, labelled):
        page = (labelled / "report.html").read_text()
        assert "Worst first" in page
        assert page.count("<article") == 6
        assert "Is the quality to be trusted?" in page
        assert page.count("true mask") == 2 * 6  # the caption, and the text in its place

    def test_other_formats(self, labelled):
        names = {path.relative_to(labelled).as_posix() for path in labelled.rglob("*") if path.is_file()}
        assert {"labels_polygons.json", "cvat.xml", "label_studio.json", "yolo/classes.txt", "yolo/0.txt"} <= names
        assert {"masks/0.png", "masks/1.png"} <= names

    def test_what_cannot_be_labelled_stays_with_its_reason(self, trained, pictures, tmp_path):
        tree = json.loads((pictures / "val" / "ann.json").read_text())
        tree["annotations"] = tree["annotations"][:2]
        tree["annotations"][0] |= {"bbox": [500, 10, 5, 5]}
        tree["annotations"].append({"id": 9, "image_id": 1, "category_id": 7, "point": [40, 40]})
        (tmp_path / "ann.json").write_text(json.dumps(tree))
        overrides = [f"inference.ann_path={tmp_path / 'ann.json'}", f"inference.results_dir={tmp_path}"]
        assert run("inference", trained[0], *overrides, "inference.quality=false") == 0
        rows = json.loads((tmp_path / "instances_val2017_mal.json").read_text())["annotations"]
        assert rows[0]["mal_reason"] == "has no area in its picture"
        assert "counts" in rows[1]["segmentation"]
        assert rows[2]["bbox"][2:] == [pytest.approx(96 / 5)] * 2  # a fifth of the shorter side
        last = rows_of(tmp_path / "quality.csv")[-1]
        told = (last["annotation_id"], last["file_name"], last["category"], last["reason"])
        assert told == (str(rows[0]["id"]), "0.png", "other disc", "has no area in its picture")

    def test_an_absolute_target(self, trained, tmp_path):
        target = tmp_path / "labels.json"
        overrides = [f"inference.label_dump_path={target}", f"inference.results_dir={tmp_path / 'r'}"]
        assert run("inference", trained[0], *overrides, "inference.quality=false") == 0
        assert target.is_file()

    def test_the_spec_of_auto_label(self, trained, pictures, tmp_path):
        inner = yaml.safe_load(trained[0].read_text())
        images = pictures / "val"
        spec = {
            "autolabel_type": "mal",
            "results_dir": str(tmp_path / "results"),
            "batch_size": 2,
            "num_workers": 0,
            "mal": {
                "checkpoint": str(trained[1] / "train"),
                "model": inner["model"],
                "dataset": {"crop_size": 32},
                "inference": {"ann_path": str(images / "ann.json"), "img_dir": str(images / "img")},
            },
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        assert run("inference", tmp_path / "spec.yaml", "inference.quality=false") == 0
        assert (tmp_path / "results/inference/instances_val2017_mal.json").is_file()


class TestExport:
    def test_evaluates_to_the_same_numbers(self, trained, exported, tmp_path):
        assert run("evaluate", trained[0], f"evaluate.checkpoint={exported}", f"evaluate.results_dir={tmp_path}") == 0
        assert run("evaluate", trained[0]) == 0
        ours, theirs = (
            json.loads((folder / "metrics.json").read_text())["kpis"]["mIoU"]
            for folder in (trained[1] / "evaluate", tmp_path)
        )
        assert ours == pytest.approx(theirs, abs=1e-3)

    def test_in_openvino_s_format_with_pixels_as_inputs(self, trained, evaluated, tmp_path):
        more = ("export.preprocessing=true", "export.openvino=true")
        assert run("export", trained[0], f"export.onnx_file={tmp_path / 'm.onnx'}", *more) == 0
        places = (f"evaluate.checkpoint={tmp_path / 'm.xml'}", f"evaluate.results_dir={tmp_path}")
        assert run("evaluate", trained[0], *places) == 0
        ours, theirs = (
            json.loads((folder / "metrics.json").read_text())["kpis"]["mIoU"] for folder in (evaluated, tmp_path)
        )
        assert ours == pytest.approx(theirs, abs=1e-3)

    def test_as_an_engine(self, trained, exported, tmp_path):
        keys = ("gen_trt_engine.tensorrt.flavor=rtx", "gen_trt_engine.tensorrt.compute_capability=[8.6]")
        keys += (f"gen_trt_engine.onnx_file={exported}", f"gen_trt_engine.trt_engine={tmp_path / 'm.engine'}")
        assert run("gen_trt_engine", trained[0], *keys) == 0
        assert json.loads((tmp_path / "m.engine.card.json").read_text())["engine"]["flavor"] == "rtx"

    def test_labels_the_same(self, trained, exported, tmp_path):
        for name, model in (("torch", trained[1] / "train"), ("onnx", exported)):
            overrides = [f"inference.checkpoint={model}", f"inference.results_dir={tmp_path / name}"]
            assert run("inference", trained[0], *overrides, "inference.quality=false") == 0
        rows = [
            json.loads((tmp_path / n / "instances_val2017_mal.json").read_text())["annotations"]
            for n in ("torch", "onnx")
        ]
        for ours, theirs in zip(*rows, strict=True):
            assert coco_mask.iou([ours["segmentation"]], [theirs["segmentation"]], [0])[0, 0] > 0.99

    def test_as_a_library(self, trained, exported, pictures):
        import mal

        picture = pictures / "val" / "img" / "0.png"
        boxes = [(10, 10, 60, 50), (5.5, 6, 200, 90)]
        found = [mal.load(path).label(picture, boxes) for path in (trained[1], exported)]
        for ours, theirs in zip(*found, strict=True):
            assert ours.mask.shape == (96, 128)
            assert (ours.mask != theirs.mask).mean() < 0.001
            assert 0 < ours.score <= 1
            assert ours.polygons

    def test_as_a_library_quantized(self, trained, pictures, tmp_path):
        import mal

        assert run("quantize", trained[0], f"quantize.results_dir={tmp_path}", "quantize.compare=false") == 0
        places = trained[1], tmp_path / "quantized_model_torchao.pth"
        found = [mal.load(path).label(pictures / "val" / "img" / "0.png", [(10, 10, 60, 50)]) for path in places]
        assert (found[0][0].mask != found[1][0].mask).mean() < 0.01

    @pytest.mark.parametrize("box", [(1, 2, 3), "abcd", (9, 9, 5, 5), (1, 2, float("nan"), 4), None])
    def test_a_box_that_is_none(self, trained, pictures, box):
        import mal

        with pytest.raises(DatasetError, match=r"boxes\[1\] · .* · give corners x0, y0, x1, y1"):
            mal.load(trained[1]).label(pictures / "val" / "img" / "0.png", [(1, 2, 9, 9), box])


def test_old_spellings(make_tree, tmp_path, capsys):
    tree = make_tree(tmp_path / "results")
    tree["model"]["crop_size"] = tree["dataset"].pop("crop_size")
    tree |= {"gpus": [0], "num_nodes": 1, "strategy": "ddp_sharded", "checkpoint": None}
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(tree))
    assert run("check train", spec) == 0
    told = capsys.readouterr().err
    assert "model.crop_size: read as dataset.crop_size" in told
    assert "strategy: ignored" in told
