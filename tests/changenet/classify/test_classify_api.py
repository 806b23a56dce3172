from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import changenet
from changenet.api import load
from changenet.classify.runtime import ClassifyRuntime
from changenet.config import ExperimentSpec
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.errors import CheckpointError, DatasetError, MetricError
from fiducial.spec.compose import to_yaml
from fiducial.spec.knob import plain

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def tiny_spec(**data: object) -> ExperimentSpec:
    augmentation = {"rgb_input_mean": list(MEAN), "rgb_input_std": list(STD)}
    tile = {"image_width": 16, "image_height": 32, "augmentation_config": augmentation}
    lights = {"input_map": {"Red": 0, "Blue": 1}, "num_input": 2, "concat_type": "linear"}
    return ExperimentSpec.model_validate(
        {
            "task": "classify",
            "model": {
                "backbone": {"type": "fan_tiny_8_p4_hybrid"},
                "decode_head": {"decoder_params": {"embed_dim": 8}},
                "classify": {"difference_module": "learnable", "embed_dec": 4, "eval_margin": 0.45},
            },
            "dataset": {"classify": {**tile, **lights, **data}},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training leaves it, with the spec in the checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "train"
    folder.mkdir()
    runtime = ClassifyRuntime(tiny_spec())
    network = runtime.network().eval()
    checkpoint = {
        "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
        "hyper_parameters": plain(runtime.spec),
        "fiducial": {"mean": list(MEAN), "std": list(STD)},
        "pytorch-lightning_version": "2.6.1",
        "epoch": 3,
    }
    torch.save(checkpoint, folder / "model_epoch_003_step_00012.pth")
    foreign = folder.parent / "foreign"
    foreign.mkdir()
    torch.save({key: checkpoint[key] for key in ("state_dict", "epoch")}, foreign / "peer.pth")
    return folder


@pytest.fixture(scope="module")
def arrays() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: {light: rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for light in ("Red", "Blue")}
        for name in ("test", "golden")
    }


def network_of(trained: Path) -> torch.nn.Module:
    network = ClassifyRuntime(tiny_spec()).network().eval()
    weights = torch.load(trained / "model_epoch_003_step_00012.pth", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    return network


def by_hand(trained: Path, arrays: dict[str, dict[str, np.ndarray]]) -> float:
    """The score by the definition: resize each light, stack downwards, normalise, softmax of the logits."""

    def image(lights: dict[str, np.ndarray]) -> torch.Tensor:
        tiles = [np.asarray(Image.fromarray(lights[n]).resize((16, 32), Image.Resampling.BILINEAR)) for n in lights]
        x = torch.from_numpy(np.concatenate(tiles)).permute(2, 0, 1).float() / 255
        return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]

    with torch.no_grad():
        return float(network_of(trained)(image(arrays["test"]), image(arrays["golden"])).softmax(1)[0, 1])


class TestLoad:
    def test_importing_the_package_loads_nothing_heavy(self):
        code = "import sys, changenet, fiducial; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_every_public_name_is_there(self):
        assert all(getattr(changenet, name) is not None for name in changenet.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            changenet.nothing  # noqa: B018

    def test_run_folder_and_checkpoint_give_the_score_of_the_definition(self, trained, arrays):
        expected = by_hand(trained, arrays)
        for path in (trained.parent, trained, trained / "model_epoch_003_step_00012.pth"):
            found = changenet.load(path).score(arrays["test"], arrays["golden"])
            assert found.score == pytest.approx(expected, abs=1e-5)
            assert found.decision == ("FAIL" if expected > 0.45 else "PASS")

    @pytest.mark.slow
    def test_an_exported_model_gives_the_score_of_the_definition(self, trained, arrays, tmp_path):
        runtime, path = ClassifyRuntime(tiny_spec()), tmp_path / "model.onnx"
        samples = [{name: torch.randn(2, *item.shape) for name, item in runtime.graph().inputs.items()}]
        settings = ExportSettings(18, -1)
        export_onnx(network_of(trained), path, runtime.graph(), settings, card=runtime.card(), samples=samples)
        found = changenet.load(path).score(arrays["test"], arrays["golden"])
        assert found.score == pytest.approx(by_hand(trained, arrays), abs=1e-5)

    def test_a_quantized_checkpoint_gives_nearly_the_score_of_the_definition(self, trained, arrays, tmp_path):
        keys = (f"quantize.model_path={trained}", "quantize.compare=false", f"results_dir={tmp_path}")
        path = changenet.run("quantize", plain(tiny_spec()), *keys).files[0]
        found = changenet.load(path).score(arrays["test"], arrays["golden"])
        assert found.score == pytest.approx(by_hand(trained, arrays), abs=2e-3)
        assert found.score != pytest.approx(by_hand(trained, arrays), abs=1e-6), "it is the quantized one that runs"

    def test_margin_decides(self, trained, arrays):
        inspector = load(trained)
        score = inspector.score(arrays["test"], arrays["golden"]).score
        inspector.margin = score - 0.01
        assert inspector.score(arrays["test"], arrays["golden"]).decision == "FAIL"
        inspector.margin = score + 0.01
        assert inspector.score(arrays["test"], arrays["golden"]).decision == "PASS"

    def test_peer_checkpoint_takes_its_spec_from_the_file_beside_it_or_the_argument(self, trained, arrays, tmp_path):
        peer = trained.parent / "foreign" / "peer.pth"
        with pytest.raises(CheckpointError, match="spec="):
            load(peer)
        spec = tmp_path / "spec.yaml"
        spec.write_text(to_yaml(plain(tiny_spec())))
        expected = pytest.approx(by_hand(trained, arrays), abs=1e-5)
        assert load(peer, spec=spec).score(arrays["test"], arrays["golden"]).score == expected
        beside = tmp_path / "peer.pth"
        beside.write_bytes(peer.read_bytes())
        spec.rename(tmp_path / "experiment.yaml")
        assert load(beside).score(arrays["test"], arrays["golden"]).score == expected

    def test_no_model(self, tmp_path):
        with pytest.raises(CheckpointError):
            load(tmp_path / "nothing.pth")
        (tmp_path / "broken.onnx").write_bytes(b"not a graph")
        with pytest.raises(CheckpointError, match="ONNX"):
            load(tmp_path / "broken.onnx")


class TestPickled:
    @pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
    def test_scores_the_same(self, trained, arrays, tmp_path, kind):
        path = trained
        if kind == "onnxruntime":
            runtime, path = ClassifyRuntime(tiny_spec()), tmp_path / "model.onnx"
            settings = ExportSettings(17, -1)
            export_onnx(network_of(trained), path, runtime.graph(), settings, card=runtime.card(), samples=[])
        inspector = changenet.load(path)
        inspector.margin = 0.123
        expected = inspector.score(arrays["test"], arrays["golden"])
        for other in (pickle.loads(pickle.dumps(inspector)), copy.deepcopy(inspector)):
            assert other.score(arrays["test"], arrays["golden"]) == expected
            assert (other.margin, repr(other)) == (0.123, repr(inspector))


class TestScore:
    def test_paths_pil_images_and_arrays_are_the_same(self, trained, arrays, tmp_path):
        inspector = load(trained)
        expected = inspector.score(arrays["test"], arrays["golden"])
        files: dict[str, list[str]] = {}
        for name, lights in arrays.items():
            files[name] = []
            for light, pixels in lights.items():
                Image.fromarray(pixels).save(tmp_path / f"{name}_{light}.png")
                files[name].append(str(tmp_path / f"{name}_{light}.png"))
        images = {name: [Image.fromarray(p) for p in lights.values()] for name, lights in arrays.items()}
        assert inspector.score(files["test"], files["golden"]) == expected
        assert inspector.score(images["test"], images["golden"]) == expected

    def test_many_in_order_whatever_the_batch(self, trained, arrays):
        inspector = load(trained)
        swapped = [(arrays["test"], arrays["golden"]), (arrays["golden"], arrays["test"])] * 2
        alone = [inspector.score(*pair).score for pair in swapped]
        for size in (1, 3, 16):
            found = [item.score for item in inspector.score_many(iter(swapped), batch_size=size)]
            assert found == pytest.approx(alone, abs=1e-5)
        assert inspector.score_many([]) == []

    def test_wrong_pictures_say_what_is_wanted(self, trained, arrays):
        inspector = load(trained)
        with pytest.raises(DatasetError, match="no light Blue"):
            inspector.score({"Red": arrays["test"]["Red"]}, arrays["golden"])
        with pytest.raises(DatasetError, match="the model takes 2 per image"):
            inspector.score(arrays["test"]["Red"], arrays["golden"])
        with pytest.raises(DatasetError, match="float64 array"):
            inspector.score([np.zeros((4, 4, 3))] * 2, arrays["golden"])
        with pytest.raises(DatasetError, match=r"missing\.png"):
            inspector.score(["missing.png", "missing.png"], arrays["golden"])


class TestUnsoundScores:
    @pytest.fixture
    def broken(self, trained: Path, tmp_path: Path) -> Path:
        checkpoint = torch.load(next(trained.glob("*.pth")), weights_only=True)
        for name, value in checkpoint["state_dict"].items():
            if "classifier" in name and value.is_floating_point():
                value.fill_(float("nan"))
        torch.save(checkpoint, tmp_path / "broken.pth")
        return tmp_path / "broken.pth"

    def test_are_never_pass(self, broken: Path) -> None:
        image = np.full((32, 16, 3), 120, np.uint8)
        pair = [image, image], [image, image]
        with pytest.raises(MetricError, match="pair 0 · the score is NaN or infinite"):
            load(broken).score(*pair)
        with pytest.raises(MetricError) as caught:
            load(broken).score_many([pair] * 3, batch_size=2)
        assert [problem.where for problem in caught.value.problems] == ["pair 0", "pair 1"]

    @pytest.mark.parametrize("margin", [float("nan"), float("inf")])
    def test_nor_at_a_margin_that_is_no_number(self, trained: Path, margin: float) -> None:
        inspector = load(trained)
        inspector.margin = margin
        image = np.full((32, 16, 3), 120, np.uint8)
        with pytest.raises(MetricError, match="eval_margin"):
            inspector.score([image, image], [image, image])
