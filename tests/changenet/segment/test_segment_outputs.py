"""The files of a run, made by a predictor that knows the truth."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from changenet.segment.evaluator import ImageRecord
from changenet.segment.image_results import ImageResult
from changenet.segment.objects import ObjectCounts
from changenet.segment.outputs import test_kpis, training_curves, write_evaluation
from changenet.segment.runtime import SegmentRuntime


def evaluate_perfectly(spec, action="evaluate"):
    """Run the files of an action on a predictor that knows the truth."""
    runtime = SegmentRuntime(spec)
    Path(spec.results_dir).mkdir(parents=True, exist_ok=True)
    evaluator, split = runtime.evaluator(), {"evaluate": "test", "inference": "infer"}[action]
    side, truth = spec.dataset.segment.img_size, runtime.dataset("test")
    for batch in runtime.loader(split):
        logits = []
        for i, index in enumerate(batch["index"].tolist()):
            label = truth.reader.scene(truth.split.pairs[index]).label
            if "corner" in batch:
                top, left = batch["corner"][i].tolist()
                label = label[top : top + side, left : left + side]
            label = np.array(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST)) % 255
            logits.append(8 * F.one_hot(torch.from_numpy(label).long(), 2).permute(2, 0, 1).float())
        evaluator.update(torch.stack(logits), batch)
    records = evaluator.finish()
    return runtime.write(action, records, Path(spec.results_dir), {"model": "model.pth"})


class TestFiles:
    def test_evaluation(self, make_spec, scene_data):
        spec = make_spec(evaluate__vis_after_n_batches=2)
        folder = Path(spec.results_dir)
        kpis = evaluate_perfectly(spec)
        assert kpis["test_iou_1"] == pytest.approx(1, abs=1e-6)
        assert kpis["test_object_f1"] == 1
        assert list(kpis)[5:9] == ["test_iou_1", "test_F1_1", "test_precision_1", "test_recall_1"]
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert names == {
            "evaluate.csv",
            "metrics.json",
            "report.html",
            *(f"masks/test_{i}.png" for i in range(3)),
            *(f"{prefix}test_{i}.png.jpg" for i in (0, 1) for prefix in ("", "combined_visualisation/")),
        }
        with (
            Image.open(folder / "masks" / "test_1.png") as mask,
            Image.open(scene_data / "label" / "test_1.png") as label,
        ):
            assert (np.asarray(mask) == np.asarray(label) // 255).all()
            assert (np.asarray(mask.convert("L")) == np.asarray(label)).all()
        with Image.open(folder / "combined_visualisation" / "test_0.png.jpg") as strip:
            assert strip.size == (4 * 32 + 30, 32)
        with (folder / "evaluate.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == ["test_0.png", "test_1.png", "test_2.png"]
        assert {row["changed_pixels"] for row in rows} == {"144"}
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["confusion"] == [[3 * (1024 - 144), 0], [0, 3 * 144]]
        assert list(metrics["classes"]) == ["change", "no change"]
        assert metrics["objects"]["matched"] == 3
        assert "test_0.png" in (folder / "report.html").read_text()

    def test_inference(self, make_spec):
        spec = make_spec(inference__vis_after_n_batches=1, dataset__segment__outputs={"probabilities": True})
        folder = Path(spec.results_dir)
        assert evaluate_perfectly(spec, "inference") == {}
        with (folder / "inference.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows[0] == {
            "name": "test_0.png",
            "mask": "masks/test_0.png",
            "pixels": "1024",
            "changed_pixels": "144",
            "changed_share": "0.140625",
        }
        with Image.open(folder / "combined_visualisation" / "test_0.png.jpg") as strip:
            assert strip.size == (3 * 32 + 20, 32)
        assert (folder / "probabilities" / "test_0.png").is_file()
        assert not (folder / "metrics.json").exists()

    def test_pictures_can_be_left_out(self, make_spec):
        spec = make_spec(evaluate__vis_after_n_batches=1, dataset__segment__outputs={"pictures": False})
        evaluate_perfectly(spec)
        assert not list(Path(spec.results_dir).rglob("*.jpg"))

    @pytest.mark.parametrize("way", [{"outputs": {"original_size": True}}, {"windows": {"enable": True}}])
    def test_original_size_and_windows(self, tmp_path, make_scenes, make_spec, way):
        make_scenes(tmp_path / "large", "test", 2, size=(64, 96))
        changes = {f"dataset__segment__{name}": value for name, value in way.items()}
        spec = make_spec(tmp_path / "large", evaluate__vis_after_n_batches=1, **changes)
        kpis = evaluate_perfectly(spec)
        assert kpis["test_iou_1"] > (0.999 if "windows" in way else 0.6)
        with Image.open(Path(spec.results_dir) / "masks" / "test_0.png") as mask:
            assert mask.size == (96, 64)
        metrics = json.loads((Path(spec.results_dir) / "metrics.json").read_text())
        assert np.sum(metrics["confusion"]) == 2 * 64 * 96

    def test_color_map_and_names_with_folders(self, tmp_path, make_scenes, make_list, make_spec):
        root = tmp_path / "data"
        make_scenes(root, "x", 1)
        for part in ("A", "B", "label"):
            (root / part / "sub").mkdir()
            (root / part / "x_0.png").rename(root / part / "sub" / "x_0.png")
        make_list(root, "test", ["sub/x_0.png"])
        colours = {0: [255, 255, 255], 1: [200, 0, 0]}
        spec = make_spec(root, evaluate__vis_after_n_batches=1, dataset__segment__color_map=colours)
        evaluate_perfectly(spec)
        with Image.open(Path(spec.results_dir) / "masks" / "sub" / "x_0.png") as mask:
            assert set(mask.convert("RGB").get_flattened_data()) == {(255, 255, 255), (200, 0, 0)}
        assert (Path(spec.results_dir) / "combined_visualisation" / "sub" / "x_0.png.jpg").is_file()

    def test_geotiff_in_geotiff_and_polygons_out(self, tmp_path, make_scenes, make_list, make_spec):
        rasterio = pytest.importorskip("rasterio")
        root, place = tmp_path / "geo", rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5500000)
        make_scenes(root, "x", 1, size=(40, 48))
        for part in ("A", "B"):
            with Image.open(root / part / "x_0.png") as image:
                values = np.asarray(image).astype(np.uint16).transpose(2, 0, 1) * 10 + 1
            values[:, :4, :4] = 0
            profile = {"driver": "GTiff", "count": 3, "height": 40, "width": 48, "dtype": "uint16", "nodata": 0}
            with rasterio.open(root / part / "x_0.tif", "w", **profile, crs="EPSG:32633", transform=place) as file:
                file.write(values)
        make_list(root, "test", ["x_0.tif"])
        raster = {"dataset__segment__raster": {"scaling": [1, 2551]}, "dataset__segment__windows": {"enable": True}}
        spec = make_spec(root, **raster, dataset__segment__outputs={"probabilities": True})
        kpis = evaluate_perfectly(spec)
        assert kpis["test_iou_1"] == pytest.approx(1, abs=1e-6)
        folder = Path(spec.results_dir)
        assert np.sum(json.loads((folder / "metrics.json").read_text())["confusion"]) == 40 * 48 - 16
        with rasterio.open(folder / "masks" / "x_0.tif") as mask:
            assert (mask.crs.to_epsg(), mask.transform, mask.nodata) == (32633, place, 255)
            assert (mask.read(1) == 1).sum() == 144
            assert (mask.read(1)[:4, :4] == 255).all()
            classes = mask.read(1)
        with rasterio.open(folder / "probabilities" / "x_0.tif") as prob:
            assert (prob.crs.to_epsg(), prob.transform, prob.dtypes) == (32633, place, ("float32",))
            assert np.isnan(prob.nodata)
            changed = prob.read(1)
        assert np.array_equal(np.isnan(changed), classes == 255)
        assert np.array_equal(changed > 0.5, classes == 1)
        found = json.loads((folder / "polygons" / "x_0.geojson").read_text())
        assert [feature["properties"]["area_m2"] for feature in found["features"]] == [pytest.approx(36, rel=2e-3)]


class TestKpis:
    def test_objects(self):
        kpis = test_kpis(np.eye(2, dtype=int), ObjectCounts(matched=2, missed=1, false=2))
        assert kpis["test_object_recall"] == pytest.approx(2 / 3)
        assert kpis["test_object_precision"] == pytest.approx(1 / 2)

    def test_no_objects(self):
        assert test_kpis(np.eye(2, dtype=int), ObjectCounts())["test_object_f1"] == 0.0

    def test_written_without_a_training_beside_the_model(self, make_spec, tmp_path):
        spec = make_spec()
        Path(spec.results_dir).mkdir()
        runtime = SegmentRuntime(spec)
        result = ImageResult("test_0.png", np.diag([9, 1]), ObjectCounts(1))
        files = runtime.files("test")
        kpis = write_evaluation(Path(spec.results_dir), [ImageRecord(0, 1, 10, result)], files, {"model": "x.onnx"})
        assert kpis["test_acc"] == pytest.approx(1)


class TestCurves:
    def test_from_the_status_file(self, tmp_path):
        records = [
            {"message": "Starting"},
            {"message": "Eval metrics generated.", "epoch": 0, "kpi": {"val_loss": 2.0, "val_iou_1": 0.1}},
            {"message": "Training loop in progress", "epoch": 0, "kpi": {"val_loss": 2.0, "val_iou_1": 0.1}},
            {"message": "Train metrics generated.", "epoch": 0, "kpi": {"train_loss": 3.0, "val_loss": 2.0}},
            {"message": "Eval metrics generated.", "epoch": 1, "kpi": {"val_loss": 1.0, "val_iou_1": None}},
        ]
        path = tmp_path / "status.json"
        path.write_text("\n".join(map(json.dumps, records)) + '\n{"epoch": 2, "kp')
        assert training_curves(path) == {
            "Loss": {"train_loss": ([0.0], [3.0]), "val_loss": ([0.0, 1.0], [2.0, 1.0])},
            "IoU of class 1": {"val_iou_1": ([0.0], [0.1])},
        }

    def test_no_file(self, tmp_path):
        assert training_curves(tmp_path / "status.json") == {}
