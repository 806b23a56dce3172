"""What a checkpoint's tensors say of the spec, and how a spec that does not fit is explained."""

import json
from pathlib import Path

import pytest
import torch

from changenet.classify.model import build_classifier
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.weights import architecture_of, differences
from fiducial.backbones.names import BACKBONES
from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError
from fiducial.spec.knob import plain

STORED = Path(__file__).parents[2] / "stored"


def shapes_of(**arguments) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = build_classifier(**{"image_size": (224, 224), "embed_dim": 32, **arguments})
    return {f"model.{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize("case", sorted(STORED.glob("classify_*.json")), ids=lambda path: path.stem)
def test_stored_checkpoints_of_tao(case):
    manifest = json.loads(case.read_text())
    model, data = manifest["config"]["model"], manifest["config"]["dataset"]["classify"]
    known = architecture_of({key: torch.empty(shape, device="meta") for key, shape, _ in manifest["state_dict"]})
    height, width = manifest["inputs"]["img0"]["shape"][-2:]
    difference = model["classify"]["difference_module"]
    assert known["model.backbone.type"] == model["backbone"]["type"]
    assert known["model.classify.difference_module"] == difference
    assert known["pixels"] == height * width
    if difference == "euclidean":
        assert known["model.classify.embedding_vectors"] == model["classify"]["embedding_vectors"]
    else:
        assert (
            known["model.decode_head.decoder_params.embed_dim"] == model["decode_head"]["decoder_params"]["embed_dim"]
        )
        for key in ("embed_dec", "learnable_difference_modules"):
            assert known[f"model.classify.{key}"] == model["classify"][key]
        assert known["dataset.classify.num_classes"] == data["num_classes"]


@pytest.mark.parametrize("name", [name for name in BACKBONES if "huge" not in name and "v3" not in name])
@pytest.mark.parametrize("difference", ["learnable", "euclidean"])
def test_backbones(name, difference):
    known = architecture_of(shapes_of(backbone=name, difference_module=difference))
    assert known["model.backbone.type"] == name
    assert known["model.classify.difference_module"] == difference


@pytest.mark.parametrize("used", [True, False])
def test_summary_token(used):
    shapes = shapes_of(
        backbone="c_radio_v2_vit_base_patch16_224", difference_module="learnable", use_summary_token=used
    )
    assert architecture_of(shapes)["model.decode_head.use_summary_token"] is used


def test_several_goldens_cannot_be_counted():
    shapes = shapes_of(backbone="vit_large_nvdinov2", difference_module="learnable", num_golden=3)
    assert "dataset.classify.num_golden" not in architecture_of(shapes)


class TestDifferences:
    """The spec is the tiny one: FAN tiny, learnable, 64 × 32 composed of two lights, embed_dim 16, embed_dec 8."""

    def of(self, spec, trained=None, **arguments):
        tiny = {
            "backbone": "fan_tiny_8_p4_hybrid",
            "difference_module": "learnable",
            "image_size": (64, 32),
            "embed_dim": 16,
            "embed_dec": 8,
        }
        return [(p.where, p.found, p.fix) for p in differences(spec, shapes_of(**{**tiny, **arguments}), trained)]

    def test_the_right_spec(self, make_spec):
        assert self.of(make_spec()) == []
        assert self.of(make_spec(), trained=plain(make_spec())) == []

    @pytest.mark.parametrize(
        ("arguments", "key", "value"),
        [
            ({"backbone": "fan_small_12_p4_hybrid"}, "model.backbone.type", "fan_small_12_p4_hybrid"),
            ({"difference_module": "euclidean"}, "model.classify.difference_module", "euclidean"),
            ({"embed_dim": 32}, "model.decode_head.decoder_params.embed_dim", 32),
            ({"embed_dec": 30}, "model.classify.embed_dec", 30),
            ({"learnable_difference_modules": 2}, "model.classify.learnable_difference_modules", 2),
            ({"num_classes": 3}, "dataset.classify.num_classes", 3),
        ],
    )
    def test_keys(self, make_spec, arguments, key, value):
        found = self.of(make_spec(), **arguments)
        assert (key, f"set {key}={value}") in [(where, fix) for where, _, fix in found]
        assert len(found) == 1

    @pytest.mark.parametrize("difference", ["learnable", "euclidean"])
    def test_another_image_size(self, make_spec, difference):
        spec = make_spec(model__classify={"difference_module": difference, "embed_dec": 8})
        ((where, found, _),) = self.of(spec, difference_module=difference, image_size=(64, 64))
        assert "image_height" in where
        assert found == "the spec composes 64 x 32 images, the checkpoint was trained on 4096 pixels (64 x 64)"

    def test_our_own_files_also_tell_the_lights(self, make_spec):
        trained = plain(make_spec(dataset__classify__input_map={"WhiteLight": 0, "SolderLight": 1}))
        ((where, found, _),) = self.of(make_spec(), trained=trained)
        assert where == "dataset.classify.input_map"
        assert "WhiteLight" in found

    def test_the_order_of_the_lights_counts(self, make_spec):
        trained = plain(make_spec(dataset__classify__input_map={"WhiteLight": 1, "SolderLight": 0}))
        assert [where for where, _, _ in self.of(make_spec(), trained=trained)] == ["dataset.classify.input_map"]


class TestLoading:
    @pytest.fixture
    def runtime(self, make_spec):
        return ClassifyRuntime(make_spec())

    def save(self, path, network, **changes):
        weights = {f"model.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": {**weights, **changes}, "pytorch-lightning_version": "2.5.0"}, path)
        return read(path)

    def test_criterion_weight_and_missing_counters_are_fine(self, runtime, tmp_path):
        network = runtime.network()
        checkpoint = self.save(tmp_path / "a.pth", network, **{"criterion.weight": torch.ones(2)})
        checkpoint.state_dict.pop(next(key for key in checkpoint.state_dict if key.endswith("num_batches_tracked")))
        assert runtime.load_weights(runtime.network(), checkpoint).missing == ()

    def test_older_layout_of_the_radio_adapter_is_renamed(self, make_spec, tmp_path):
        changes = {
            "model__backbone__type": "c_radio_v2_vit_base_patch16_224",
            "dataset__classify__input_map": None,
            "dataset__classify__num_input": 1,
            "dataset__classify__image_width": 64,
            "dataset__classify__image_height": 64,
        }
        runtime = ClassifyRuntime(make_spec(**changes))
        shapes = runtime_shapes(runtime)
        old = {
            key.replace("backbone.radio.radio.radio.model.", "backbone.radio.model."): v for key, v in shapes.items()
        }
        assert old.keys() != shapes.keys()
        torch.save({"state_dict": old, "pytorch-lightning_version": "2.3.0"}, tmp_path / "old.pth")
        report = runtime.load_weights(runtime.network(), read(tmp_path / "old.pth"))
        assert report.layouts == ("C-RADIO adapter of TAO up to 6.25.7",)
        assert report.matched == report.wanted

    def test_spec_keys_are_named(self, runtime, make_spec, tmp_path):
        other = ClassifyRuntime(make_spec(model__classify__embed_dec=30)).network()
        with pytest.raises(CheckpointError, match=r"set model\.classify\.embed_dec=30"):
            runtime.load_weights(runtime.network(), self.save(tmp_path / "a.pth", other))

    def test_another_size_keeps_what_depends_on_it(self, runtime, make_spec, tmp_path):
        other = ClassifyRuntime(make_spec(dataset__classify__image_width=64)).network()
        checkpoint = self.save(tmp_path / "a.pth", other)
        with pytest.raises(CheckpointError, match="image_height"):
            runtime.load_weights(runtime.network(), checkpoint)
        report = runtime.load_weights(runtime.network(), checkpoint, strict=False)
        assert report.kept == ("model.decoder.classifier.0.weight",)

    def test_something_else_is_refused(self, runtime, tmp_path):
        torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
        with pytest.raises(CheckpointError, match="only 0 of"):
            runtime.load_weights(runtime.network(), read(tmp_path / "resnet.pth"))


def runtime_shapes(runtime) -> dict[str, torch.Tensor]:
    return {f"model.{key}": value.clone() for key, value in runtime.network().state_dict().items()}
