"""Renames of foreign files, and families told by names."""

import subprocess
import sys

import pytest

from fiducial.checkpoints import KeyMap, backbone_keys, family_of, translate
from fiducial.checkpoints.keys import unwrapped

# stored numbers: what TAO 6.25.10's loader makes of these names, in this order (None: left out)
TAO_RENAMES = {
    "model.backbone.blocks.0.attn.qkv.weight": "blocks.0.attn.qkv.weight",
    "model.model.backbone.norm.weight": "norm.weight",
    "backbone.blocks.1.norm1.bias": "blocks.1.norm1.bias",
    "module.blocks.0.x": "blocks.0.x",
    "model.encoder.a.b": "a.b",
    "model.decoder.c": "c",
    "model.pos_embed": "pos_embed",
    "ema_a": None,
    "blocks.2.mlp.fc1.weight": "blocks.2.mlp.fc1.weight",
    "radio_model.model.blocks.0.norm1.weight": "radio_model.model.blocks.0.norm1.weight",
    "base_model.x": "base_model.x",
    "state.module.y": "module.y",
}
OLD_RADIO = KeyMap(
    layout="C-RADIO adapter of TAO up to 6.25.7",
    has=("model.backbone.radio.model.",),
    lacks=("model.backbone.radio.radio.",),
    renames=(("model.backbone.radio.model.", "model.backbone.radio.radio.radio.model."),),
    drops=("model.backbone.unused.",),
)
RADIO_CLASSIFY = ("patch_generator.pos_embed", "blocks.0.norm1.weight")


class TestBackboneKeys:
    def test_equals_tao(self):
        assert backbone_keys(dict(zip(TAO_RENAMES, TAO_RENAMES, strict=True))) == {
            new: old for old, new in TAO_RENAMES.items() if new
        }

    def test_the_later_of_two_equal_names_wins(self):
        assert backbone_keys({"model.a": 1, "backbone.a": 2}) == {"a": 2}

    def test_classification_files_lose_one_prefix(self):
        assert backbone_keys({"model.model.x": 1, "backbone.y": 2}, tao_model="classification") == {
            "model.x": 1,
            "backbone.y": 2,
        }

    @pytest.mark.parametrize(("prefer", "value"), [("teacher", 2), ("student", 1)])
    def test_one_side_of_a_self_training_file(self, prefer, value):
        both = {"student.backbone.a": 1, "teacher.backbone.a": 2, "student.mask_head.x": 3, "teacher.mask_head.x": 4}
        assert backbone_keys(both, prefer=prefer) == {"a": value}
        assert backbone_keys({"student.a": 1}, prefer=prefer) == {"a": 1}

    def test_a_changenet_checkpoint_gives_its_backbone(self):
        whole = {"model.backbone.norm.weight": 1, "model.decoder.diff_c1.0.weight": 2, "criterion.weight": 3}
        assert backbone_keys(whole) == {"norm.weight": 1}


class TestUnwrapped:
    """What training puts around a model; the model's own names are ``model.a.b`` and ``model.c``."""

    WRAPPED = {
        "nothing": ("model.a.b", "model.c"),
        "data parallel": ("module.model.a.b", "module.model.c"),
        "data parallel within": ("model.module.a.b", "model.module.c"),
        "twice": ("module.model.module.a.b", "module.model.module.c"),
        "compiled": ("_orig_mod.model.a.b", "_orig_mod.model.c"),
        "compiled within": ("model._orig_mod.a.b", "model._orig_mod.c"),
        "a part compiled": ("model.a._orig_mod.b", "model.c"),
        "compiled, then data parallel": ("module._orig_mod.model.a.b", "module._orig_mod.model.c"),
        "data parallel, then compiled": ("_orig_mod.module.model.a.b", "_orig_mod.module.model.c"),
        "sharded": ("_fsdp_wrapped_module.model.a._fsdp_wrapped_module.b", "_fsdp_wrapped_module.model.c"),
        "checkpointed": ("model.a._checkpoint_wrapped_module.b", "model.c"),
    }

    @pytest.mark.parametrize("way", WRAPPED)
    def test_names_are_the_models_own(self, way):
        assert unwrapped(dict(zip(self.WRAPPED[way], (1, 2), strict=True))) == {"model.a.b": 1, "model.c": 2}

    def test_beside_the_model(self):
        given = {"model.module.a": 1, "criterion.weight": 2}
        assert unwrapped(given) == {"model.a": 1, "criterion.weight": 2}
        assert unwrapped({"n_averaged": 5, "module.a": 1}) == {"n_averaged": 5, "a": 1}

    @pytest.mark.parametrize(
        "given", [{"module.a": 1, "b": 2}, {"a.module.b": 1}, {"model.a": 1, "model._orig_mod.a": 2}, {}]
    )
    def test_what_is_no_wrapper_stays(self, given):
        assert unwrapped(given) == given

    def test_a_backbone_of_a_data_parallel_network(self):
        given = {"module.model.backbone._orig_mod.norm.weight": 1, "module.model.decoder.diff_c1.0.weight": 2}
        assert backbone_keys(given) == {"norm.weight": 1}


class TestKeyMap:
    def test_renames_an_old_layout(self):
        old = {
            "model.backbone.radio.model.blocks.0.norm1.weight": 1,
            "model.decoder.x": 2,
            "model.backbone.unused.y": 3,
        }
        new, layouts = translate(old, [OLD_RADIO])
        assert new == {"model.backbone.radio.radio.radio.model.blocks.0.norm1.weight": 1, "model.decoder.x": 2}
        assert layouts == (OLD_RADIO.layout,)
        assert translate(new, [OLD_RADIO]) == (new, ())

    def test_leaves_others_alone(self):
        other = {"model.backbone.radio.radio.model.x": 1, "model.backbone.unused.y": 2}
        assert translate(other, [OLD_RADIO]) == (other, ())

    def test_without_drops_keeps_every_name(self):
        assert KeyMap("x", has=("a.",), renames=(("a.", ""),)).apply({"a.b": 1, "": 2}) == {"b": 1, "": 2}


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["patch_embed.backbone.stem.0.weight", "blocks.0.attn.q.weight"], "FAN"),
        (["radio_model.model.patch_generator.pos_embed"], "C-RADIO"),
        (["patch_embed.proj.weight", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"], "NVDINOv2/DINOv2"),
        (["vit.reg_token", "vit.blocks.0.gamma_1"], "DINOv3"),
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "ViT (MAE, DeiT)"),
        (["conv1.weight", "bn1.weight", "layer4.0.conv1.weight"], "ResNet"),
        (["model.backbone.patch_generator.x", "model.decoder.diff_c1.0.weight"], "ChangeNet classify with C-RADIO"),
        (["model.backbone.patch_generator.x", "model.fc1.0.weight"], "ChangeNet classify with C-RADIO"),
        (["model.decoder.change_probability.conv2d.bias"], "ChangeNet segment"),
        (["foo"], "an unknown model"),
    ],
)
def test_family(keys, family):
    assert family_of(keys) == family


def test_the_package_imports_no_torch():
    program = "import sys, fiducial.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
