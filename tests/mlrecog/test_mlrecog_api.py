"""The library: models loaded from every kind of file, embeddings by the definition, search, galleries, errors."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gallery_makers import TinyRuntime
from mlrecog_shelves import COLOURS, make_folders
from PIL import Image

import mlrecog
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.errors import CheckpointError, DatasetError, SpecError
from fiducial.spec.compose import to_yaml
from fiducial.spec.knob import plain
from mlrecog import gallery_embed
from mlrecog.config import ExperimentSpec
from mlrecog.gallery import UNKNOWN, Gallery, GalleryCard, Part
from mlrecog.gallery_embed import model_facts
from mlrecog.runtime import RecogRuntime

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
HEIGHT, WIDTH, DIM = 32, 48, 8


def tiny_spec(**model):
    sizes = {"backbone": "fan_tiny", "input_height": HEIGHT, "input_width": WIDTH, "feat_dim": DIM}
    tree = {"model": {**sizes, **model}, "dataset": {"pixel_mean": list(MEAN), "pixel_std": list(STD)}}
    return ExperimentSpec.model_validate(tree)


def weights_of(network):
    return {f"model.{key}": value for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    built = RecogRuntime(tiny_spec()).network().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "gamma" in name:
                parameter.fill_(1)  # as initialised, pictures hardly count
    return built


@pytest.fixture(scope="module")
def run(tmp_path_factory, network):
    """A folder as training leaves it, with the spec in the checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "train"
    folder.mkdir()
    card = {"mean": list(MEAN), "std": list(STD), "details": {"image_size": [HEIGHT, WIDTH]}}
    checkpoint = {
        "state_dict": weights_of(network),
        "hyper_parameters": plain(tiny_spec()),
        "fiducial": card,
        "pytorch-lightning_version": "2.6.1",
        "epoch": 3,
    }
    torch.save(checkpoint, folder / "model_epoch_003_step_00012.pth")
    return folder


@pytest.fixture
def tao_file(tmp_path, network):
    """A checkpoint that does not say what it was trained with."""
    folder = tmp_path / "tao"
    folder.mkdir()
    torch.save({"state_dict": weights_of(network), "epoch": 3}, folder / "tao.pth")
    return folder / "tao.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network):
    path, runtime = tmp_path_factory.mktemp("onnx") / "model.onnx", RecogRuntime(tiny_spec())
    export_onnx(network, path, runtime.graph(), ExportSettings(17, -1), card=runtime.card(), samples=())
    return path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, run):
    """What torchao made of the run."""
    keys = (f"quantize.model_path={run}", "quantize.compare=false", f"results_dir={tmp_path_factory.mktemp('int8')}")
    return mlrecog.run("quantize", plain(tiny_spec()), *keys).files[0]


@pytest.fixture(scope="module")
def recognizer(run):
    return mlrecog.load(run, device="cpu")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """``<class>/<number>.png``, three of each."""
    return make_folders(tmp_path_factory.mktemp("shelf"), each=3)


@pytest.fixture
def kept(tmp_path, recognizer, run, shelf):
    """The path of a kept gallery of the shelf, of this model."""
    runtime = recognizer._runtime
    facts = model_facts(recognizer._predictor, runtime, run / "model_epoch_003_step_00012.pth")
    pictures = sorted(shelf.glob("*/*.png"))
    part = Part.of(
        [p.parent.name for p in pictures], [f"{p.parent.name}/{p.name}" for p in pictures], recognizer.embed(pictures)
    )
    Gallery.build(str(tmp_path / "kept"), GalleryCard(facts, dim=DIM), [part])
    return tmp_path / "kept"


def by_hand(network, pixels):
    """By the definition: to 1.14 times the size, its middle, normalised, embedded, brought to length 1."""
    tall, wide = int(1.14 * HEIGHT), int(1.14 * WIDTH)
    image = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR)
    top, left = round((tall - HEIGHT) / 2), round((wide - WIDTH) / 2)
    x = torch.from_numpy(np.asarray(image)[top : top + HEIGHT, left : left + WIDTH].copy()).permute(2, 0, 1) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        return F.normalize(network(x[None]))


def drawn(seed=0, height=50, width=70):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return coarse.repeat(height // 5, 0).repeat(width // 7, 1)


class TestLoad:
    def test_importing_the_package_loads_nothing_heavy(self):
        code = "import sys, mlrecog, fiducial; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_every_public_name_is_there(self):
        assert all(getattr(mlrecog, name) is not None for name in mlrecog.__all__)
        assert set(mlrecog.__all__) <= set(dir(mlrecog))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            mlrecog.nothing  # noqa: B018

    def test_results_folder_training_folder_and_file(self, run, network):
        expected = by_hand(network, drawn())
        for path in (run.parent, run, str(run / "model_epoch_003_step_00012.pth")):
            torch.testing.assert_close(mlrecog.load(path, device="cpu").embed(drawn()), expected)

    def test_exported(self, exported, network):
        loaded = mlrecog.load(exported)
        torch.testing.assert_close(loaded.embed(drawn()), by_hand(network, drawn()))
        assert "pictures of 48 x 32, onnxruntime" in repr(loaded)
        assert (loaded.spec.model.input_height, loaded.spec.dataset.pixel_mean) == (HEIGHT, list(MEAN))
        with pytest.raises(ValueError, match="onnx"):
            loaded.network  # noqa: B018

    def test_quantized(self, quantized, network):
        loaded, expected = mlrecog.load(quantized, device="cpu"), by_hand(network, drawn())
        torch.testing.assert_close(loaded.embed(drawn()), expected, atol=0.03, rtol=0)
        assert not torch.allclose(loaded.embed(drawn()), expected)

    def test_what_was_loaded(self, recognizer, network):
        assert repr(recognizer) == "<TrainedRecognizer: fan_tiny, pictures of 48 x 32, torch on cpu>"
        assert recognizer.spec.model.feat_dim == DIM
        assert not recognizer.network.training
        assert recognizer.network.state_dict().keys() == network.state_dict().keys()

    def test_a_file_of_tao_takes_its_spec_from_the_argument_or_the_file_beside_it(self, tao_file, tmp_path, network):
        with pytest.raises(CheckpointError, match=r"does not say what it was trained with · give spec="):
            mlrecog.load(tao_file)
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec())))
        expected = by_hand(network, drawn())
        torch.testing.assert_close(mlrecog.load(tao_file, spec=spec, device="cpu").embed(drawn()), expected)
        spec.rename(tao_file.parent / "experiment.yaml")
        torch.testing.assert_close(mlrecog.load(tao_file, device="cpu").embed(drawn()), expected)

    def test_the_file_s_width_counts_and_is_told(self, tao_file, tmp_path, network, caplog):
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec(feat_dim=256))))
        loaded = mlrecog.load(tao_file, spec=spec, device="cpu")
        torch.testing.assert_close(loaded.embed(drawn()), by_hand(network, drawn()))
        assert "model.feat_dim: 256 in the spec, 8 in the checkpoint" in caplog.text


class TestNotLoaded:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nothing\.pth"):
            mlrecog.load(tmp_path / "nothing.pth")
        with pytest.raises(CheckpointError):
            mlrecog.load(tmp_path)

    def test_damaged(self, tmp_path):
        for name, said in (("a.pth", "not a model file"), ("a.onnx", "ONNX")):
            (tmp_path / name).write_bytes(b"no model")
            with pytest.raises(CheckpointError, match=said):
                mlrecog.load(tmp_path / name)

    def test_another_network(self, tmp_path, network):
        weights = {f"model.backbone.{key}": value for key, value in network.trunk.state_dict().items()}
        torch.save(weights | {"model.decoder.diff_c1.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(
            CheckpointError, match="ChangeNet classify with FAN, no ML Recog · give what `mlrecog train"
        ):
            mlrecog.load(tmp_path / "other.pth")

    def test_a_spec_of_another_backbone(self, tao_file, tmp_path):
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec(backbone="fan_small"))))
        with pytest.raises(CheckpointError, match="the file holds fan_tiny, the network fan_small"):
            mlrecog.load(tao_file, spec=spec)

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            ({"backbone": "resnet_18"}, r"model\.backbone · unknown: 'resnet_18'"),
            ({"input_width": 50}, "no multiple of 16"),
        ],
    )
    def test_a_spec_of_no_network(self, tao_file, tmp_path, model, said):
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec(**model))))
        with pytest.raises(SpecError, match=said):
            mlrecog.load(tao_file, spec=spec)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"task": ""}, "does not say how its inputs are prepared · export it with `mlrecog export`"),
            ({"task": "segment"}, "a model of task segment"),
            ({"details": {}}, "its model card lacks 'image_size' · export the model again"),
            ({"details": {"image_size": 3}}, "its model card says what cannot be"),
            ({"details": {"image_size": [32, 48, 3]}}, "its model card says what cannot be"),
            ({"details": {"image_size": [32, "x"]}}, "its model card says what cannot be"),
            ({"backbone": "resnet_18"}, "its model card says what cannot be: a backbone 'resnet_18'"),
            ({"mean": (0.5,)}, "its model card says what cannot be"),
        ],
        ids=str,
    )
    def test_an_export_whose_card_does_not_fit(self, tmp_path, change, said):
        runtime, path = TinyRuntime(tiny_spec()), tmp_path / "model.onnx"
        fitting = {"backbone": "fan_tiny", "details": {"image_size": [HEIGHT, WIDTH]}}
        card = dataclasses.replace(runtime.card(), **{**fitting, **change})
        export_onnx(runtime.network(), path, runtime.graph(), ExportSettings(17, -1), card=card, samples=())
        with pytest.raises(CheckpointError, match=said):
            mlrecog.load(path)


class TestEmbed:
    def test_any_kind_of_picture(self, recognizer, network, tmp_path):
        pixels = drawn()
        Image.fromarray(pixels).save(tmp_path / "a.png")
        expected = by_hand(network, pixels)
        for picture in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
            torch.testing.assert_close(recognizer.embed(picture), expected)
            torch.testing.assert_close(recognizer.embed([picture]), expected)

    def test_grey_and_transparent_ones(self, recognizer, network):
        grey = drawn()[..., 0]
        expected = by_hand(network, grey[..., None].repeat(3, 2))
        torch.testing.assert_close(recognizer.embed(grey), expected)
        opaque = Image.fromarray(grey).convert("RGBA")
        torch.testing.assert_close(recognizer.embed(opaque), expected)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
    def test_many_in_batches(self, recognizer, network, batch_size):
        pictures = [drawn(seed) for seed in range(5)]
        found = recognizer.embed((picture for picture in pictures), batch_size=batch_size)
        expected = torch.cat([by_hand(network, picture) for picture in pictures])
        assert (found.shape, found.dtype, found.device.type) == ((5, DIM), torch.float32, "cpu")
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
        assert (expected[0] - expected[1]).norm() > 0.1  # it tells pictures apart

    def test_none(self, recognizer):
        assert len(recognizer.embed([])) == 0

    def test_what_is_no_picture(self, recognizer, tmp_path):
        (tmp_path / "a.png").write_text("no picture")
        for picture, said in (
            (tmp_path / "a.png", "a.png"),
            (tmp_path / "none.png", "none.png"),
            (drawn().astype(np.float32), "float32 array"),
            (np.stack([drawn(), drawn()]), r"array of shape \(2, 50, 70, 3\)"),
        ):
            with pytest.raises(DatasetError, match=said):
                recognizer.embed([drawn(), picture])

    def test_several_models_side_by_side_keep_their_preprocessing(self, run, exported, network):
        loaded = [mlrecog.load(run, device="cpu"), mlrecog.load(exported)]
        expected = by_hand(network, drawn())
        for _ in range(2):
            for model in loaded:
                torch.testing.assert_close(model.embed(drawn()), expected)


class TestGallery:
    def test_in_memory(self, recognizer, shelf):
        pictures = {name: sorted((shelf / name).iterdir()) for name in COLOURS}
        gallery = recognizer.gallery(pictures)
        assert gallery.counts == dict.fromkeys(COLOURS, 3)
        torch.testing.assert_close(gallery.embeddings_ND[:3], recognizer.embed(pictures["blue"]))
        assert gallery.entries[3].source == str(shelf / "green" / "0.png")

    def test_of_arrays_which_have_no_source(self, recognizer):
        gallery = recognizer.gallery({"a": [drawn(1)], "b": [Image.fromarray(drawn(2)), drawn(3)]})
        assert gallery.counts == {"a": 1, "b": 2}
        (found,) = recognizer.search(drawn(3), gallery, k=1)
        assert (found.label, found.matches[0].source) == ("b", "")
        assert found.matches[0].distance == pytest.approx(0, abs=1e-5)

    def test_one_picture_of_a_class(self, recognizer, shelf):
        """A path is no sequence of pictures with names of one letter."""
        paths = {name: shelf / name / "0.png" for name in COLOURS}
        for pictures in (paths, {name: str(path) for name, path in paths.items()}):
            gallery = recognizer.gallery(pictures)
            assert [(entry.label, entry.source) for entry in gallery.entries] == [
                (name, str(path)) for name, path in paths.items()
            ]
        assert len(recognizer.gallery({"a": drawn(1), "b": Image.fromarray(drawn(2))})) == 2

    def test_of_nothing(self, recognizer):
        with pytest.raises(DatasetError, match="an empty gallery · add pictures to it"):
            recognizer.search(drawn(), recognizer.gallery({}))


class TestSearch:
    def test_matches_are_the_nearest(self, recognizer, shelf):
        pictures = {name: sorted((shelf / name).iterdir()) for name in COLOURS}
        gallery = recognizer.gallery(pictures)
        queries = [drawn(seed) for seed in range(3)]
        distance = (recognizer.embed(queries)[:, None] - gallery.embeddings_ND).square().sum(2)
        for row, answer in zip(distance, recognizer.search(queries, gallery, k=4), strict=True):
            torch.testing.assert_close(torch.tensor([m.distance for m in answer.matches]), row.sort().values[:4])
            for match in answer.matches:
                assert row[[e.source for e in gallery.entries].index(match.source)] == pytest.approx(
                    match.distance, abs=1e-5
                )
                assert Path(match.source).parent.name == match.label
            assert answer.label == answer.matches[0].label
            assert answer.is_known

    def test_a_picture_of_the_gallery_is_found(self, recognizer, kept, shelf):
        for gallery in (kept, str(kept), mlrecog.open_gallery(str(kept))):
            (answer,) = recognizer.search(shelf / "red" / "1.png", gallery, k=1)
            assert (answer.label, answer.matches[0].label, answer.matches[0].source) == ("red", "red", "red/1.png")
            assert answer.matches[0].distance == pytest.approx(0, abs=1e-5)

    def test_quantized_it_searches_the_gallery_of_what_it_was(self, quantized, kept, shelf, tmp_path):
        picture = shelf / "red" / "1.png"
        (answer,) = mlrecog.load(quantized, device="cpu").search(picture, kept, k=1)
        assert answer.label == "red"
        words = (f"inference.checkpoint={quantized}", "inference.is_quantized=true", f"inference.gallery={kept}")
        words += (f"inference.input_path={picture}", "inference.inference_input_type=image", f"results_dir={tmp_path}")
        mlrecog.run("inference", plain(tiny_spec()), *words)
        assert "red/1.png" in (tmp_path / "inference" / "neighbours.csv").read_text()

    def test_no_pictures(self, recognizer, kept):
        assert recognizer.search([], kept) == []

    def test_more_neighbours_than_there_are(self, recognizer, kept):
        (answer,) = recognizer.search(drawn(), kept, k=99)
        assert len(answer.matches) == 12

    def test_threshold_and_margin_decide(self, recognizer, kept):
        (answer,) = recognizer.search(drawn(), kept)
        nearest = answer.matches[0]
        (unknown,) = recognizer.search(drawn(), kept, threshold=nearest.distance - 1e-6)
        assert (unknown.label, unknown.is_known, unknown.matches) == (UNKNOWN, False, answer.matches)
        (known,) = recognizer.search(drawn(), kept, threshold=nearest.distance + 1e-6)
        assert (known.label, known.is_known) == (nearest.label, True)
        assert not recognizer.search(drawn(), kept, margin=4.0)[0].is_known

    def test_the_gallery_s_own_decide_unless_others_are_given(self, recognizer, kept):
        mlrecog.open_gallery(str(kept)).decide_by(1e-9, None)
        assert not recognizer.search(drawn(), kept)[0].is_known
        assert recognizer.search(drawn(), kept, threshold=4.0)[0].is_known

    def test_of_another_model_it_is_refused(self, kept, tmp_path, network):
        torch.save(
            {"state_dict": {key: value + 0.5 for key, value in weights_of(network).items()}}, tmp_path / "other.pth"
        )
        (tmp_path / "experiment.yaml").write_text(to_yaml(plain(tiny_spec())))
        with pytest.raises(CheckpointError, match=r"built with fan_tiny model_epoch_003.*other.pth"):
            mlrecog.load(tmp_path / "other.pth", device="cpu").search(drawn(), kept)

    def test_weights_are_read_again_only_when_they_change(self, run, kept, monkeypatch):
        recognizer, read = mlrecog.load(run, device="cpu"), []
        hashed = gallery_embed.weights_hash
        monkeypatch.setattr(gallery_embed, "weights_hash", lambda weights: (read.append(1), hashed(weights))[1])
        for _ in range(3):
            recognizer.search(drawn(), kept)
        assert len(read) == 1
        with torch.no_grad():
            next(recognizer.network.parameters()).add_(1)
        with pytest.raises(CheckpointError, match="built with"):
            recognizer.search(drawn(), kept)

    def test_no_gallery(self, recognizer, tmp_path):
        with pytest.raises(DatasetError, match="no gallery there"):
            recognizer.search(drawn(), tmp_path / "none")


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_pickled_and_copied_it_embeds_the_same(run, exported, kind):
    loaded = mlrecog.load(run if kind == "torch" else exported, device="cpu")
    expected = loaded.embed(drawn())
    for other in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        torch.testing.assert_close(other.embed(drawn()), expected)
        assert repr(other) == repr(loaded)


class TestRun:
    def test_all_problems_of_a_spec(self, tmp_path):
        spec = {"results_dir": str(tmp_path), "model": {"backbone": "fan_tiny", "input_width": 40}, "train": {"x": 1}}
        with pytest.raises(SpecError, match=r"train\.x"):
            mlrecog.run("train", spec)

    def test_inference_is_the_command_s(self, run, shelf, tmp_path):
        spec = plain(tiny_spec()) | {"results_dir": str(tmp_path)}
        spec["dataset"] |= {"workers": 0, "val_dataset": {"reference": str(shelf), "query": str(shelf)}}
        spec["inference"] |= {"input_path": str(shelf / "red"), "inference_input_type": "image_folder", "topk": 2}
        found = mlrecog.run("inference", spec, f"inference.checkpoint={run}")
        assert found.kpis == {"pictures": 3.0, "unknown": 0.0}
        assert len((tmp_path / "inference" / "result.csv").read_text().splitlines()) == 3
