from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import changenet
from changenet.config import ExperimentSpec
from changenet.segment.model import ChangeSegmenter
from changenet.segment.runtime import SegmentRuntime
from changenet.segment.tiles import blend, cut, windows
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.errors import CheckpointError, DatasetError
from fiducial.spec.compose import to_yaml
from fiducial.spec.knob import plain

SIDE = 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAME = "model_epoch_003_step_00012.pth"


def tiny_spec(**data: object) -> ExperimentSpec:
    segment = {"img_size": SIDE, "num_classes": 3, "label_transform": "None"}
    segment |= {"augmentation": {"mean": list(MEAN), "std": list(STD)}, **data}
    decoder = {"decode_head": {"decoder_params": {"embed_dim": 8}}}
    return ExperimentSpec.model_validate(
        {
            "task": "segment",
            "model": {"backbone": {"type": "fan_tiny_8_p4_hybrid"}, **decoder},
            "dataset": {"segment": segment},
        }
    )


def save(network: ChangeSegmenter, spec: ExperimentSpec, folder: Path) -> Path:
    """A run as training leaves it: its folder."""
    train = folder / "train"
    train.mkdir(parents=True)
    checkpoint = {
        "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
        "hyper_parameters": plain(spec),
        "fiducial": {"mean": list(MEAN), "std": list(STD)},
        "pytorch-lightning_version": "2.6.1",
        "tao_model": "visual_changenet_segment",
        "epoch": 3,
    }
    torch.save(checkpoint, train / NAME)
    (train / "changenet_model_segment_best.pth").symlink_to(NAME)
    return folder


@pytest.fixture(scope="module")
def network() -> ChangeSegmenter:
    torch.manual_seed(0)
    network = SegmentRuntime(tiny_spec()).network().eval()
    for module in network.modules():  # a fresh network hardly tells its inputs apart
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.01, 0.1)
    return network


@pytest.fixture(scope="module")
def run(network, tmp_path_factory) -> Path:
    return save(network, tiny_spec(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def detector(run) -> changenet.ChangeDetector:
    return changenet.load(run)


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return before, after


@torch.no_grad()
def by_hand(network: ChangeSegmenter, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Probabilities ``(K, H, W)`` of a pair of the network's input size, by the definition."""

    def prepared(pixels: np.ndarray) -> torch.Tensor:
        x = torch.tensor(pixels).permute(2, 0, 1).float() / 255
        return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]

    return network(prepared(before), prepared(after))[-1].softmax(1)[0].numpy()


class TestLoad:
    def test_run_folder_and_checkpoint_give_what_the_definition_says(self, run, network):
        before, after = pictures(SIDE, SIDE)
        expected = by_hand(network, before, after)
        assert np.ptp(expected[0]) > 0.01  # the network does look at its input
        for path in (run, run / "train", run / "train" / NAME):
            detector = changenet.load(path)
            assert isinstance(detector, changenet.ChangeDetector)
            change = detector.detect(before, after)
            np.testing.assert_allclose(change.probability, expected, atol=1e-5)
            assert np.array_equal(change.mask, change.probability.argmax(0))
            assert (change.mask.dtype, change.probability.dtype) == (np.uint8, np.float32)

    @pytest.mark.slow
    def test_an_exported_model_gives_the_same(self, network, tmp_path):
        runtime = SegmentRuntime(tiny_spec())
        samples = [{name: torch.randn(2, *item.shape) for name, item in runtime.graph().inputs.items()}]
        path, settings = tmp_path / "model.onnx", ExportSettings(18, -1)
        export_onnx(network, path, runtime.graph(), settings, card=runtime.card(), samples=samples)
        before, after = pictures(SIDE, SIDE)
        change = changenet.load(path).detect(before, after)
        np.testing.assert_allclose(change.probability, by_hand(network, before, after), atol=1e-5)

    def test_onnx_remembers_how_pictures_are_read(self, network, tmp_path):
        runtime = SegmentRuntime(tiny_spec(windows={"enable": True, "overlap": 0.5}, raster={"percentiles": [2, 98]}))
        about = runtime.card()
        spec = ExperimentSpec.model_validate(changenet.ChangeDetector.spec_of(about))
        assert SegmentRuntime(spec).card() == about
        assert spec.dataset.segment.windows == runtime.data.windows

    def test_foreign_checkpoint_tells_its_task_by_its_tensors(self, run, network, tmp_path):
        before, after = pictures(SIDE, SIDE)
        torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "peer.pth")
        with pytest.raises(CheckpointError, match="spec="):
            changenet.load(tmp_path / "peer.pth")
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec())).replace("task: segment", "task: classify"))
        change = changenet.load(tmp_path / "peer.pth", spec=spec).detect(before, after)
        np.testing.assert_allclose(change.probability, by_hand(network, before, after), atol=1e-5)

    def test_another_network_is_refused(self, tmp_path):
        torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="no Visual ChangeNet"):
            changenet.load(tmp_path / "other.pth")


def restored(detector):
    return pickle.loads(pickle.dumps(detector))


class TestPickled:
    @pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
    def test_finds_the_same(self, run, network, tmp_path, kind):
        if kind == "onnxruntime":
            runtime, run = SegmentRuntime(tiny_spec()), tmp_path / "model.onnx"
            settings = ExportSettings(17, -1)
            export_onnx(network, run, runtime.graph(), settings, card=runtime.card(), samples=[])
        detector = changenet.load(run)
        expected = detector.detect(*pictures(SIDE, SIDE))
        for other in (restored(detector), copy.deepcopy(detector)):
            assert np.array_equal(other.detect(*pictures(SIDE, SIDE)).probability, expected.probability)
            assert repr(other) == repr(detector)

    def test_after_splits_were_read(self):
        runtime = SegmentRuntime(tiny_spec())
        with pytest.raises(DatasetError):
            runtime.split("test")
        assert restored(runtime).spec == runtime.spec


class TestSizes:
    def test_smaller_pictures_are_enlarged_and_the_result_is_theirs(self, detector):
        before, after = pictures(20, 27)
        change = detector.detect(before, after)
        assert change.mask.shape == change.changed.shape == (20, 27)
        np.testing.assert_allclose(change.probability.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(change.changed, change.probability[1:].sum(0), atol=1e-5)

    def test_larger_ones_are_blended_from_windows_whatever_the_batch(self, detector, network):
        before, after = pictures(50, 72)
        cover = windows(50, 72, SIDE, 8)  # a quarter of 32
        assert len(cover) > 4
        parts = ((w, by_hand(network, cut(before, w), cut(after, w))) for w in cover)
        expected = blend(parts, 3, 50, 72)
        for batch_size in (1, 4, 100):
            change = detector.detect(before, after, batch_size=batch_size)
            np.testing.assert_allclose(change.probability, expected, atol=1e-5)

    def test_cutting_pictures_that_training_resized_is_said_once(self, run, caplog):
        detector = changenet.load(run)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                detector.detect(*pictures(40, 40))
                detector.detect(*pictures(40, 40), tiled=False)
        assert sum("tiled=False" in record.getMessage() for record in caplog.records) == 1

    def test_not_tiled_is_what_inference_writes_without_windows(self, detector, network):
        before, after = pictures(2 * SIDE, 2 * SIDE)
        small = [np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for x in (before, after)]
        log_prob = torch.from_numpy(by_hand(network, *small)).log()[None]
        expected = F.interpolate(log_prob, scale_factor=2, mode="bilinear").softmax(1)[0].numpy()
        change = detector.detect(before, after, tiled=False)
        np.testing.assert_allclose(change.probability, expected, atol=1e-5)

    def test_trained_on_windows_small_pictures_are_mirrored_not_resized(self, network, tmp_path):
        detector = changenet.load(save(network, tiny_spec(windows={"enable": True}), tmp_path))
        before, after = pictures(20, 32)
        mirrored = [np.pad(x, ((0, 12), (0, 0), (0, 0)), mode="reflect") for x in (before, after)]
        expected = by_hand(network, *mirrored)[:, :20]
        np.testing.assert_allclose(detector.detect(before, after).probability, expected, atol=1e-5)

    def test_two_sizes(self, detector, tmp_path):
        (before, _), (_, after) = pictures(20, 20), pictures(20, 21)
        with pytest.raises(DatasetError, match="20 × 20 and 20 × 21"):
            detector.detect(before, after)
        for name, pixels in (("a", before), ("b", after)):
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        with pytest.raises(DatasetError, match="20 × 2"):
            detector.detect(tmp_path / "a.png", tmp_path / "b.png")


class TestPictures:
    def test_paths_pil_images_and_arrays_are_the_same(self, detector, tmp_path):
        arrays = pictures(SIDE, SIDE)
        expected = detector.detect(*arrays).probability
        paths = [tmp_path / f"{name}.png" for name in "ab"]
        images = [Image.fromarray(pixels) for pixels in arrays]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        for pair in (images, paths, map(str, paths), (images[0], str(paths[1]))):
            assert np.array_equal(detector.detect(*pair).probability, expected)

    def test_missing_and_wrong_ones_are_named(self, detector):
        before, _ = pictures(8, 8)
        for name in ("missing.png", "missing.tif"):
            with pytest.raises(DatasetError, match=name):
                detector.detect(name, before)
        with pytest.raises(DatasetError, match="float64 array"):
            detector.detect(before, np.zeros((8, 8, 3)))
        for shape in ((8, 8, 2), (0, 0, 3), (8,)):
            with pytest.raises(DatasetError, match="uint8 array of shape"):
                detector.detect(before, np.zeros(shape, np.uint8))
        with pytest.raises(DatasetError, match="NoneType"):
            detector.detect(None, before)

    def test_masks_are_saved_as_class_numbers(self, detector, tmp_path):
        change = detector.detect(*pictures(SIDE, SIDE))
        change.save(tmp_path / "mask.png")
        with Image.open(tmp_path / "mask.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), change.mask)
        with pytest.raises(ValueError, match=r"mask\.jpg"):
            change.save(tmp_path / "mask.jpg")


class TestRasters:
    def test_deep_rasters_keep_their_place_and_what_has_no_data(self, network, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        detector = changenet.load(save(network, tiny_spec(raster={"scaling": [1000, 3550]}), tmp_path / "run"))
        before, after = pictures(SIDE, SIDE)
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
        for name, pixels in (("a", before), ("b", after)):
            values = (1000 + 10 * pixels.astype(np.uint16)).transpose(2, 0, 1)
            values[:, :4] = 0 if name == "b" else values[:, :4]
            profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint16", "nodata": 0}
            with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, **place) as file:
                file.write(values)
        change = detector.detect(tmp_path / "a.tif", tmp_path / "b.tif")
        after[:4] = 0
        np.testing.assert_allclose(change.probability, by_hand(network, before, after), atol=1e-5)
        assert (change.mask[:4] == 255).all()
        assert (change.mask[4:] < 3).all()
        change.save(tmp_path / "mask.tif")
        with rasterio.open(tmp_path / "mask.tif") as file:
            assert file.crs == rasterio.crs.CRS.from_epsg(32633)
            assert file.transform == place["transform"]
            assert np.array_equal(file.read(1), change.mask)

    def test_rasters_of_different_places_are_refused(self, detector, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        for name, east in (("a", 5e5), ("b", 6e5)):
            profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8"}
            place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, east, 0, -0.5, 5e6)}
            with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, **place) as file:
                file.write(np.ones((3, SIDE, SIDE), np.uint8))
        with pytest.raises(DatasetError, match="pixels apart"):
            detector.detect(tmp_path / "a.tif", tmp_path / "b.tif")
