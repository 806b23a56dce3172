"""What ``check train`` and ``train`` say of weights before anything is built: one rule for both."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.task import CLASSIFY
from fiducial.deploy.card import ENTRY
from fiducial.errors import UserError
from fiducial.spec.knob import plain

BACKBONE, WHOLE = "model.backbone.pretrained_backbone_path", "train.pretrained_model_path"
PLACE = {
    "loops": {
        "fit_loop": {
            "epoch_progress": {"current": {"completed": 1, "processed": 1, "ready": 1}},
            "epoch_loop.batch_progress": {"current": {"processed": 3, "ready": 3}, "is_last_batch": True},
        }
    }
}


def dotted(key):
    return key.replace(".", "__")


@pytest.fixture
def save(tmp_path):
    """Writes the untrained network of a spec as a checkpoint, or its backbone alone."""

    def write(spec, name="m.pth", *, backbone=False, place=False, **changes):
        network = ClassifyRuntime(spec).network()
        tensors = dict((network.backbone if backbone else network).state_dict())
        if not backbone:
            tensors = {f"model.{key}": tensor for key, tensor in tensors.items()}
        tensors |= changes
        if name.endswith(".safetensors"):
            save_file(tensors, tmp_path / name)
        else:
            says = {ENTRY: {}, "hyper_parameters": plain(spec)}
            torch.save(
                {"state_dict": tensors, "pytorch-lightning_version": "2.6.1", **says, **(PLACE if place else {})},
                tmp_path / name,
            )
        return str(tmp_path / name)

    return write


def found(spec, resume=None):
    return [(problem.where, problem.found, problem.fix) for problem in CLASSIFY.check_weights(spec, resume)]


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
@pytest.mark.parametrize("difference", ["learnable", "euclidean"])
def test_weights_that_fit(make_spec, save, caplog, name, difference):
    change = {"model__classify__difference_module": difference, "train__classify__loss": "ce"}
    if difference == "euclidean":
        change["train__classify__loss"] = "contrastive"
    spec = make_spec(**change)
    with caplog.at_level(logging.INFO):
        assert found(make_spec(**change, **{dotted(BACKBONE): save(spec, name, backbone=True)})) == []
        assert found(make_spec(**change, **{dotted(WHOLE): save(spec, name)})) == []
    assert "tensors loaded" not in caplog.text


class TestWeightsThatDoNot:
    def test_of_another_backbone(self, make_spec, save):
        path = save(make_spec(model__backbone__type="fan_small_12_p4_hybrid"), backbone=True)
        ((where, told, fix),) = found(make_spec(**{dotted(BACKBONE): path}))
        assert where == path
        assert told.startswith("the file holds fan_small_12_p4_hybrid; ")
        assert "fan_tiny_8_p4_hybrid" in fix

    def test_of_another_network(self, make_spec, save):
        path = save(make_spec(model__decode_head__decoder_params__embed_dim=24))
        problems = found(make_spec(**{dotted(WHOLE): path}))
        assert problems
        assert all(where == path and "in the file" in told for where, told, _ in problems)

    def test_a_backbone_where_a_network_belongs(self, make_spec, save):
        path = save(make_spec(), backbone=True)
        ((where, told, fix),) = found(make_spec(**{dotted(WHOLE): path}))
        assert (where, told) == (path, "a file of FAN alone, without the network around it")
        assert BACKBONE in fix

    @pytest.mark.parametrize("key", [BACKBONE, WHOLE])
    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "empty file"), (b"PK\x03\x04x", "damaged"), (b"\x80\x02cos\nsystem\n)R.", "would run code")],
    )
    def test_no_weights(self, make_spec, tmp_path, key, content, words):
        (tmp_path / "m.pth").write_bytes(content)
        ((where, told, _),) = found(make_spec(**{dotted(key): str(tmp_path / "m.pth")}))
        assert where == str(tmp_path / "m.pth")
        assert words in told

    @pytest.mark.parametrize("key", [BACKBONE, WHOLE])
    def test_not_there(self, make_spec, key):
        ((where, told, _),) = found(make_spec(**{dotted(key): "/no/such.pth"}))
        assert where == key
        assert "/no/such.pth" in told

    @pytest.mark.parametrize("key", [BACKBONE, WHOLE])
    def test_encrypted(self, make_spec, tmp_path, key):
        torch.save({"state_dict": b"xyz", "state_dict_encrypted": 2}, tmp_path / "m.pth")
        ((_, told, fix),) = found(make_spec(**{dotted(key): str(tmp_path / "m.pth")}))
        assert told == "encrypted with NVIDIA EFF"
        assert "nvidia-eff" in fix

    def test_training_says_the_same(self, make_spec, save):
        path = save(make_spec(model__backbone__type="fan_small_12_p4_hybrid"), backbone=True)
        spec = make_spec(**{dotted(BACKBONE): path})
        with pytest.raises(UserError) as caught:
            ClassifyRuntime(spec).module(pretrained=True)
        assert [(p.where, p.found, p.fix) for p in caught.value.problems] == found(spec)


class TestResume:
    def test_that_fits(self, make_spec, save):
        assert found(make_spec(), save(make_spec(), place=True)) == []

    def test_of_another_network(self, make_spec, save):
        path = save(make_spec(model__classify__embed_dec=30), place=True)
        ((where, _, fix),) = found(make_spec(), path)
        assert (where, fix) == ("model.classify.embed_dec", "set model.classify.embed_dec=30")

    def test_without_its_place(self, make_spec, save):
        ((_, told, fix),) = found(make_spec(), save(make_spec()))
        assert told == "holds weights, but not where its training stood"
        assert WHOLE in fix

    def test_comes_before_what_the_spec_begins_with(self, make_spec, save):
        spec = make_spec(**{dotted(BACKBONE): "/no/such.pth"})
        assert found(spec, save(make_spec(), place=True)) == []


def test_a_wrong_spec_builds_nothing(make_spec, save):
    path = save(make_spec())
    assert found(make_spec(**{dotted(WHOLE): path, "dataset__classify__image_width": 33})) == []


class TestHub:
    """Nothing is fetched, and nobody is asked: the cache of this machine is empty."""

    @pytest.fixture(autouse=True)
    def _empty_cache(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def said(self, make_spec, value, backbone="c_radio_v2_vit_base_patch16_224"):
        spec = make_spec(**{"model__backbone__type": backbone, dotted(BACKBONE): value})
        (problem,) = CLASSIFY.check_weights(spec)
        assert problem.where == BACKBONE
        return problem

    @pytest.mark.parametrize("value", ["nvidia/C-RADIOv2-B", "hf://nvidia/C-RADIOv2-B"])
    def test_known(self, make_spec, value):
        problem = self.said(make_spec, value)
        assert problem.level == "warning"
        assert problem.found == (
            f"{value!r} means file model.safetensors of hub repository nvidia/C-RADIOv2-B, which is not on this machine"
        )
        assert "downloads it" in problem.fix

    def test_known_to_hold_something_else(self, make_spec):
        problem = self.said(make_spec, "nvidia/C-RADIOv2-L")
        assert problem.level == "error"
        assert problem.found.startswith("hub repository nvidia/C-RADIOv2-L holds c_radio_v2_vit_large_patch16_224, not")
        assert problem.fix == "give nvidia/C-RADIOv2-B, or name the backbone that it holds"

    def test_not_known(self, make_spec):
        problem = self.said(make_spec, "weights/mine")
        assert problem.level == "warning"
        assert problem.found.endswith("nor known to hold c_radio_v2_vit_base_patch16_224")

    def test_offline(self, make_spec, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert self.said(make_spec, "nvidia/C-RADIOv2-B").level == "error"

    def test_in_the_cache_it_is_compared(self, make_spec, save, tmp_path):
        commit = "0" * 40
        folder = tmp_path / "hub" / "models--some--fan"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        path = save(make_spec(model__backbone__type="fan_small_12_p4_hybrid"), "m.safetensors", backbone=True)
        (folder / "snapshots" / commit / "model.safetensors").symlink_to(path)
        problem = next(iter(CLASSIFY.check_weights(make_spec(**{dotted(BACKBONE): "some/fan"}))))
        assert problem.found.startswith("the file holds fan_small_12_p4_hybrid")
        assert problem.level == "error"

    def test_addresses_keep_their_secrets(self, make_spec):
        problem = self.said(make_spec, "https://me:hunter2@files.test/m.pth?sig=hunter3")
        assert problem.level == "warning"
        assert "files.test/m.pth" in problem.found
        assert "hunter" not in str(problem)
