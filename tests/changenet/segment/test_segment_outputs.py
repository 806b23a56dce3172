"""Logits to masks, records and files."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from changenet.segment.evaluator import SegmentEvaluator
from changenet.segment.files import Split
from changenet.segment.image_files import ImageRecord
from changenet.segment.image_results import ImageResult
from changenet.segment.metrics import confusion
from changenet.segment.objects import ObjectCounts
from changenet.segment.outputs import object_kpis, training_curves
from changenet.segment.runtime import SegmentRuntime
from changenet.segment.tiles import blend, windows
from fiducial.errors import MetricError


class Kept:
    """Takes images in place of their files; remembers them."""

    def __init__(self, *, probabilities=False):
        self.images = []
        self.data = SimpleNamespace(outputs=SimpleNamespace(probabilities=probabilities))

    def where(self, index):
        return f"list:{index}"

    def __call__(self, image):
        self.images.append(image)
        return ImageRecord(image.index, int(image.mask.sum()), image.mask.size, None)


def outputs(logits):
    return {"output_final": logits}


def batch_of(indices, sizes, **more):
    return {"index": torch.tensor(indices), "size": torch.tensor(sizes), **more}


class TestEvaluator:
    def test_masks_and_truth_of_every_image(self):
        kept = Kept()
        evaluator = SegmentEvaluator("test", 3, files=kept)
        logits = torch.randn(2, 3, 8, 8)
        evaluator.update(outputs(logits), batch_of([4, 1], [[8, 8]] * 2, L=torch.ones(2, 8, 8, dtype=torch.uint8)))
        assert [record.index for record in evaluator.finish().records] == [1, 4]
        assert (kept.images[0].mask == logits[0].argmax(0).numpy()).all()
        assert kept.images[0].mask.dtype == np.uint8
        assert kept.images[0].prob is None
        assert (kept.images[1].label == 1).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_first_of_equally_likely_classes(self, dtype):
        kept, logits = Kept(), torch.randint(0, 3, (1, 4, 30, 30)).to(dtype)
        SegmentEvaluator("test", 4, files=kept).update(outputs(logits), batch_of([0], [[30, 30]]))
        counted = SegmentEvaluator("val", 4)
        label = torch.from_numpy(logits[0].float().numpy().argmax(0)).to(torch.uint8)
        counted.update(outputs(logits), batch_of([0], [[30, 30]], L=label[None]))
        assert np.trace(counted.finish().matrix) == 900
        assert (kept.images[0].mask == label.numpy()).all()

    def test_probabilities_on_request(self):
        kept = Kept(probabilities=True)
        logits = torch.randn(1, 2, 4, 4)
        evaluator = SegmentEvaluator("infer", 2, files=kept)
        evaluator.update(outputs(logits), batch_of([0], [[4, 4]]))
        evaluator.finish()
        assert torch.allclose(torch.from_numpy(kept.images[0].prob), logits[0].softmax(0))

    def test_original_size(self):
        kept = Kept()
        logits, label = torch.randn(1, 2, 8, 8), torch.zeros(20, 12, dtype=torch.uint8)
        evaluator = SegmentEvaluator("test", 2, files=kept)
        evaluator.update(outputs(logits), batch_of([0], [[20, 12]], L=[label]))
        evaluator.finish()
        want = F.interpolate(logits, size=(20, 12), mode="bilinear").argmax(1)[0]
        assert (kept.images[0].mask == want.numpy()).all()
        assert kept.images[0].label.shape == (20, 12)

    def test_windows_are_blended_across_batches(self):
        kept, size = Kept(probabilities=True), (20, 13)
        cover = windows(*size, 8, 3)
        logits = torch.randn(len(cover), 2, 8, 8)
        truth = torch.randint(0, 2, (24, 24), dtype=torch.uint8)
        evaluator = SegmentEvaluator("test", 2, files=kept)
        for start in range(0, len(cover), 3):
            part = cover[start : start + 3]
            evaluator.update(
                outputs(logits[start : start + 3]),
                batch_of(
                    [7] * len(part),
                    [size] * len(part),
                    corner=torch.tensor([[w.top, w.left] for w in part]),
                    L=torch.stack([truth[w.slices] for w in part]),
                ),
            )
        assert len(evaluator.finish().records) == 1
        want = blend(zip(cover, logits.softmax(1).numpy(), strict=True), 2, *size)
        assert np.allclose(kept.images[0].prob, want)
        assert (kept.images[0].mask == want.argmax(0)).all()
        assert (kept.images[0].label == truth[:20, :13].numpy()).all()

    def test_windows_that_did_not_come(self):
        evaluator = SegmentEvaluator("test", 2, files=Kept())
        evaluator.update(outputs(torch.zeros(1, 2, 8, 8)), batch_of([0], [[20, 8]], corner=torch.tensor([[0, 0]])))
        with pytest.raises(MetricError, match="windows of image 0"):
            evaluator.finish()

    @pytest.mark.parametrize("stage", ["test", "infer"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_what_is_no_number_is_never_unchanged(self, stage, bad, dtype):
        kept, logits = Kept(), torch.zeros(3, 2, 8, 8, dtype=dtype)
        logits[1, 0, 7, 7] = logits[2, 1] = bad
        evaluator = SegmentEvaluator(stage, 2, files=kept)
        with pytest.raises(MetricError, match="outputs of the model are NaN or infinite") as caught:
            evaluator.update(outputs(logits), batch_of([4, 5, 6], [[8, 8]] * 3, L=torch.zeros(3, 8, 8)))
        assert [problem.where for problem in caught.value.problems] == ["list:5", "list:6"]
        assert kept.images == []

    def test_nor_are_windows(self):
        corners = torch.tensor([[0, 0], [12, 0]])
        evaluator = SegmentEvaluator("infer", 2, files=Kept())
        with pytest.raises(MetricError, match=r"^list:3 · outputs"):
            evaluator.update(outputs(torch.full((2, 2, 8, 8), np.nan)), batch_of([3, 3], [[20, 8]] * 2, corner=corners))

    def test_nothing(self):
        with pytest.raises(MetricError, match="no images"):
            SegmentEvaluator("test", 2, files=Kept()).finish()


class TestWithoutFiles:
    """Validation and training count pixels where the logits are."""

    @pytest.mark.parametrize("stage", ["train", "val"])
    def test_no_metric_is_known_of_what_is_no_number(self, stage):
        evaluator, sound = SegmentEvaluator(stage, 2), torch.randn(2, 2, 8, 8)
        label = torch.zeros(2, 8, 8, dtype=torch.uint8)
        evaluator.update(outputs(sound), {"L": label})
        evaluator.update(outputs(sound * torch.nan), {"L": label})
        kpis = evaluator.kpis(evaluator.finish())
        assert f"{stage}_miou" in kpis
        assert all(np.isnan(value) for value in kpis.values())
        evaluator.update(outputs(sound), {"L": label})  # the next epoch begins anew
        assert not any(np.isnan(value) for value in evaluator.kpis(evaluator.finish()).values())

    LOGITS = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    LABELS = torch.randint(0, 2, (3, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)

    def test_the_numbers_are_those_of_the_test_set(self):
        """One evaluator: what validation says of images, ``evaluate`` says too."""
        kpis = []
        for stage, files in (("val", None), ("test", Counting())):
            evaluator = SegmentEvaluator(stage, 2, files=files)
            evaluator.update(outputs(self.LOGITS), batch_of([0, 1, 2], [[8, 8]] * 3, L=self.LABELS))
            kpis.append(evaluator.kpis(evaluator.finish()))
        assert len(kpis[0]) == 13
        assert kpis[0].items() <= {name.replace("test_", "val_"): value for name, value in kpis[1].items()}.items()

    def test_windows_of_validation_are_blended_and_those_of_training_are_not(self):
        size, found = (12, 8), {}
        cover = windows(*size, 8, 4)
        truth = torch.randint(0, 2, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        logits = torch.randn(len(cover), 2, 8, 8, generator=torch.Generator().manual_seed(4))
        batch = batch_of(
            [0] * len(cover),
            [size] * len(cover),
            corner=torch.tensor([[w.top, w.left] for w in cover]),
            L=torch.stack([truth[w.slices] for w in cover]),
        )
        for stage in ("train", "val"):
            evaluator = SegmentEvaluator(stage, 2)
            evaluator.update(outputs(logits), batch)
            found[stage] = evaluator.finish().matrix
        assert (found["train"].sum(), found["val"].sum()) == (2 * 64, 96)
        mask = blend(zip(cover, logits.softmax(1).numpy(), strict=True), 2, *size).argmax(0)
        assert np.trace(found["val"]) == (mask == truth.numpy()).sum()

    def test_an_image_that_was_only_tried(self):
        """Before training a few batches are validated, which may end within an image."""
        evaluator = SegmentEvaluator("val", 2)
        evaluator.update(outputs(torch.zeros(1, 2, 8, 8)), batch_of([0], [[20, 8]], corner=torch.tensor([[0, 0]])))
        assert evaluator.kpis(evaluator.finish()) == {}


class Counting(Kept):
    """Measures images as their files would."""

    def __call__(self, image):
        matrix = confusion(torch.from_numpy(image.mask)[None], torch.from_numpy(image.label)[None], 2)[0].numpy()
        return ImageRecord(image.index, 0, image.mask.size, ImageResult("x", matrix))


def evaluate_perfectly(spec, action="evaluate"):
    """Run the files of an action on a predictor that knows the truth."""
    runtime, folder = SegmentRuntime(spec), Path(spec.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stage = {"evaluate": "test", "inference": "infer"}[action]
    evaluator = runtime.evaluator(stage, folder=folder)
    side, truth = spec.dataset.segment.img_size, runtime.dataset("test")
    (loader,) = runtime.loaders(stage)
    for batch in loader:
        logits = []
        for i, index in enumerate(batch["index"].tolist()):
            label = truth.reader.scene(truth.split.pairs[index]).label
            if "corner" in batch:
                top, left = batch["corner"][i].tolist()
                label = label[top : top + side, left : left + side]
            label = np.array(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST)) % 255
            logits.append(8 * F.one_hot(torch.from_numpy(label).long(), 2).permute(2, 0, 1).float())
        evaluator.update(outputs(torch.stack(logits)), batch)
    result = evaluator.finish()
    written = evaluator.write(result, {"model": "model.pth"})
    assert all(path.is_file() for path in written)
    return evaluator.kpis(result)


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

    def test_names_are_listed_once_and_not_for_every_image(self, make_spec, monkeypatch):
        listed = []
        names = Split.names.fget
        monkeypatch.setattr(Split, "names", property(lambda split: listed.append(split) or names(split)))
        evaluate_perfectly(make_spec(inference__vis_after_n_batches=1), "inference")
        assert len(listed) == 1

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


class TestObjectKpis:
    def test_objects(self):
        kpis = object_kpis(ObjectCounts(matched=2, missed=1, false=2))
        assert kpis["test_object_recall"] == pytest.approx(2 / 3)
        assert kpis["test_object_precision"] == pytest.approx(1 / 2)

    def test_no_objects(self):
        assert object_kpis(ObjectCounts())["test_object_f1"] == 0.0


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
