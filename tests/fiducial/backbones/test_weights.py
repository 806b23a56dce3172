"""Files of every layout into tiny networks that stand in for the published ones."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fiducial.backbones import dinov2, radio, weights
from fiducial.backbones.dinov2 import DinoV2Embedding, DinoV2Pyramid, DinoV2Shape
from fiducial.backbones.dinov3 import DinoV3Embedding, DinoV3Pyramid, build_vit
from fiducial.backbones.names import build_embedding, build_pyramid
from fiducial.backbones.radio import RadioEmbedding, RadioPyramid, RadioShape, RadioViT
from fiducial.backbones.weights import adapt_state_dict, load_backbone
from fiducial.checkpoints.keys import translate
from fiducial.errors import CheckpointError, SourceError

RADIO, NVDINO, FAN = "c_radio_v2_vit_base_patch16_224", "vit_large_nvdinov2", "fan_tiny_8_p4_hybrid"
DINO3 = "vit_small_dinov3"
TINY_RADIO = RadioShape(32, 4, 4, 4, 4, 3, layer_scale=1e-5)
TINY_DINO = DinoV2Shape(32, 4, 4, 48)
SMALL = {"heads": 4, "planes": 8}
GRID, SIZE = 6, (64, 64)
STORED = Path(__file__).parents[2] / "stored"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(radio, "GRID", GRID)
    monkeypatch.setattr(dinov2, "EMBEDDING_GRID", GRID)
    torch.manual_seed(0)


def make(name, role):
    if name == RADIO:
        vit = RadioViT(TINY_RADIO, grid=GRID)
        return RadioPyramid(vit, **SMALL) if role == "pyramid" else RadioEmbedding(vit)
    if name == DINO3:
        vit = build_vit(DINO3, embed_dim=32, depth=4, num_heads=4)
        return DinoV3Pyramid(vit, **SMALL) if role == "pyramid" else DinoV3Embedding(vit)
    if role == "pyramid":
        return DinoV2Pyramid(TINY_DINO, grid=dinov2.pyramid_grid(SIZE), **SMALL)
    return DinoV2Embedding(TINY_DINO, grid=GRID)


def bare(name):
    """The ViT's own keys and tensors."""
    model = make(name, "embedding")
    return dict({RADIO: lambda: model.vit, DINO3: lambda: model.inner}.get(name, lambda: model)().state_dict())


def prefixed(tensors, prefix):
    return {prefix + key: tensor for key, tensor in tensors.items()}


RADIO_LAYOUTS = {
    "hub": lambda t: (
        {"radio_model.model." + k.replace("gamma", "grandma"): v for k, v in t.items()}
        | {
            "radio_model.summary_idxs": torch.arange(3),
            "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
            "radio_model.model.reg_token": torch.zeros(1, 4, 32),
        }
    ),
    "upstream": lambda t: prefixed(t, "base_model.") | {"_heads.x": torch.zeros(1)},
    "data parallel": lambda t: prefixed(t, "module.base_model."),
    "TAO embedding": lambda t: prefixed(t, "radio.radio.model."),
    "TAO adapter": lambda t: prefixed(t, "radio.radio.radio.model."),
    "ChangeNet euclidean": lambda t: (
        prefixed(t, "model.backbone.radio.radio.model.") | {"model.fc1.0.weight": torch.zeros(2)}
    ),
    "ChangeNet learnable": lambda t: (
        prefixed(t, "model.backbone.radio.radio.radio.model.") | {"model.decoder.diff_c1.0.bias": torch.zeros(2)}
    ),
    "ChangeNet up to 6.25.7": lambda t: (
        prefixed(t, "model.backbone.radio.model.") | {"model.decoder.diff_c1.0.bias": torch.zeros(2)}
    ),
    "teacher and student": lambda t: (
        prefixed(t, "teacher.backbone.") | {f"student.backbone.{k}": v * 0 for k, v in t.items()}
    ),
}
DINO_LAYOUTS = {
    "bare": lambda t: t | {"mask_token": torch.zeros(1, 32)},
    "ChangeNet": lambda t: prefixed(t, "model.backbone.") | {"model.decoder.diff_c1.0.bias": torch.zeros(2)},
    "classification": lambda t: prefixed(t, "model."),
    "teacher and student": RADIO_LAYOUTS["teacher and student"],
    "student alone": lambda t: prefixed(t, "student.backbone."),
}


def as_meta(tensors):
    """DINOv3 under the names that Meta gives it, with what a transformer has no use for."""
    names = {"reg_token": "storage_tokens"}
    made = {
        names.get(key, key).replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): tensor
        for key, tensor in tensors.items()
    }
    blocks = {f"blocks.{i}.attn.qkv.{name}": torch.zeros(96) for i in range(4) for name in ("bias", "bias_mask")}
    return made | blocks | {"rope_embed.periods": torch.ones(2), "mask_token": torch.zeros(1, 32)}


DINO3_LAYOUTS = {
    "timm": lambda t: t,
    "Meta": as_meta,
    "TAO embedding": lambda t: prefixed(t, "model.backbone.inner.") | {"model.fc1.0.weight": torch.zeros(2)},
    "TAO adapter": lambda t: prefixed(t, "model.backbone.vit.") | {"model.decoder.diff_c1.0.bias": torch.zeros(2)},
    "teacher and student": RADIO_LAYOUTS["teacher and student"],
}


class TestLayouts:
    @pytest.mark.parametrize("role", ["pyramid", "embedding"])
    @pytest.mark.parametrize("layout", RADIO_LAYOUTS)
    def test_radio(self, layout, role):
        given, model = bare(RADIO), make(RADIO, role)
        report = load_backbone(model, RADIO, role, RADIO_LAYOUTS[layout](given), SIZE)
        assert (report.matched, report.missing, report.unexpected) == (len(given), (), ())
        for key, tensor in model.vit.state_dict().items():
            assert torch.equal(tensor, given[key]), key

    @pytest.mark.parametrize("layout", DINO_LAYOUTS)
    def test_dinov2_embedding(self, layout):
        given, model = bare(NVDINO), make(NVDINO, "embedding")
        report = load_backbone(model, NVDINO, "embedding", DINO_LAYOUTS[layout](given), SIZE)
        assert (report.missing, report.unexpected) == ((), ())
        assert all(torch.equal(tensor, given[key]) for key, tensor in model.state_dict().items())

    @pytest.mark.parametrize("layout", DINO_LAYOUTS)
    def test_dinov2_pyramid_takes_another_size(self, layout):
        given, model = bare(NVDINO), make(NVDINO, "pyramid")
        report = load_backbone(model, NVDINO, "pyramid", DINO_LAYOUTS[layout](given), SIZE)
        assert (report.missing, report.unexpected) == ((), ())
        expected = F.interpolate(given["patch_embed.proj.weight"], size=(16, 16), mode="bicubic")
        torch.testing.assert_close(model.patch_embed.proj.weight, expected)
        table = given["pos_embed"]
        expected = F.interpolate(table[:, 1:].reshape(1, 6, 6, 32).permute(0, 3, 1, 2), size=(4, 4), mode="bicubic")
        torch.testing.assert_close(model.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
        assert torch.equal(model.pos_embed[:, :1], table[:, :1])

    @pytest.mark.parametrize("role", ["pyramid", "embedding"])
    @pytest.mark.parametrize("layout", DINO3_LAYOUTS)
    def test_dinov3(self, layout, role, caplog):
        given, model = bare(DINO3), make(DINO3, role)
        with caplog.at_level(logging.WARNING, logger="fiducial"):
            report = load_backbone(model, DINO3, role, DINO3_LAYOUTS[layout](given), SIZE)
        assert (report.matched, report.missing, report.unexpected) == (len(given), (), ())
        assert not caplog.text
        for key, tensor in (model.vit if role == "pyramid" else model.inner).state_dict().items():
            assert torch.equal(tensor, given[key]), key

    def test_biases_that_dinov3_has_no_place_for_are_told_of(self, caplog):
        given = as_meta(bare(DINO3))
        given["blocks.2.attn.qkv.bias"][:32] = 1
        given["blocks.3.attn.qkv.bias"][32:64] = 1  # of the keys: softmax does not see them
        with caplog.at_level(logging.WARNING, logger="fiducial"):
            load_backbone(make(DINO3, "embedding"), DINO3, "embedding", given, SIZE)
        (record,) = caplog.records
        assert "blocks.2.attn.qkv.bias is not 0, and is left out" in record.getMessage()

    @pytest.mark.parametrize(
        ("name", "role"), [(n, r) for n in (RADIO, NVDINO, DINO3) for r in ("pyramid", "embedding")]
    )
    def test_own_checkpoints_come_back_whole(self, name, role):
        source, model = make(name, role), make(name, role)
        file = prefixed(source.state_dict(), "model.backbone.") | {
            "model.decoder.diff_c1.0.bias": torch.zeros(2),
            "criterion.weight": torch.ones(2),
        }
        load_backbone(model, name, role, file, SIZE)
        for key, tensor in source.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key

    def test_fan_heads_are_left_out(self):
        given = {"cls_token": torch.zeros(1), "norm.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
        assert list(adapt_state_dict(FAN, "pyramid", prefixed(given, "backbone."), SIZE)) == ["cls_token"]

    @pytest.mark.parametrize("role", ["pyramid", "embedding"])
    def test_fan_from_a_classifier(self, role):
        build = build_pyramid if role == "pyramid" else build_embedding
        source, model = build(FAN, image_size=SIZE), build(FAN, image_size=SIZE)
        width = 192
        file = prefixed(source.state_dict(), "model.backbone.") | {
            "model.backbone.norm.weight": torch.ones(width),
            "model.backbone.head.weight": torch.ones(1000, width),
        }
        report = load_backbone(model, FAN, role, file, SIZE)
        assert (report.missing, report.unexpected) == ((), ())
        assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())

    def test_half_precision_files(self):
        given, model = bare(RADIO), make(RADIO, "embedding")
        load_backbone(model, RADIO, "embedding", {k: v.half() for k, v in given.items()}, SIZE)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        torch.testing.assert_close(
            model.vit.blocks[0].mlp.fc1.weight, given["blocks.0.mlp.fc1.weight"], atol=1e-3, rtol=1e-3
        )


class TestSizes:
    def test_radio_table_of_another_grid(self):
        given = bare(RADIO) | {"patch_generator.pos_embed": torch.randn(1, 16, 32)}
        adapted = adapt_state_dict(RADIO, "embedding", given, SIZE)["radio.radio.model.patch_generator.pos_embed"]
        before, after = given["patch_generator.pos_embed"].reshape(4, 4, 32), adapted.reshape(6, 6, 32)
        torch.testing.assert_close(after[::5, ::5], before[::3, ::3])  # corners stay corners

    def test_radio_kernel_of_another_patch(self):
        kernel = torch.randn(32, 3, 14, 14)
        given = bare(RADIO) | {"patch_generator.embedder.weight": kernel.flatten(1)}
        adapted = adapt_state_dict(RADIO, "embedding", given, SIZE)["radio.radio.model.patch_generator.embedder.weight"]
        expected = F.interpolate(kernel, size=(16, 16), mode="bicubic", align_corners=True)
        torch.testing.assert_close(adapted, expected.flatten(1))

    def test_same_sizes_are_not_touched(self):
        given = bare(NVDINO)
        adapted = adapt_state_dict(NVDINO, "embedding", given, SIZE)
        assert all(adapted[key] is tensor for key, tensor in given.items())

    def test_stored_numbers(self):
        """A file of 37 x 37 positions and patches of 14, made for 224 pixels and patches of 16."""
        case = json.loads((STORED / "vit_checkpoint_interpolation.json").read_text())
        given = {
            key: torch.from_numpy(np.random.RandomState(entry["seed"]).standard_normal(entry["shape"])).float()
            for key, entry in case["inputs"].items()
        }
        adapted = adapt_state_dict(NVDINO, "pyramid", given, (224, 224))
        with np.load(STORED / "vit_checkpoint_interpolation.npz") as stored:
            for key, info in case["outputs"].items():
                assert list(adapted[key].shape) == info["shape"]
                found = adapted[key].flatten()[:: info["stride"]].numpy()
                np.testing.assert_allclose(found, stored[key], atol=info["atol"], rtol=info["rtol"])


class TestOldCheckpoints:
    def test_radio_adapter(self):
        ours = prefixed(make(RADIO, "pyramid").state_dict(), "model.backbone.")
        old = {key.replace("radio.radio.radio.", "radio."): tensor for key, tensor in ours.items()}
        assert old.keys() != ours.keys()
        renamed, layouts = translate(old, weights.KEY_MAPS)
        assert renamed.keys() == ours.keys()
        assert layouts == ("C-RADIO adapter of TAO up to 6.25.7",)

    @pytest.mark.parametrize(("name", "role"), [(RADIO, "embedding"), (NVDINO, "embedding"), (RADIO, "pyramid")])
    def test_current_ones_stay_as_they_are(self, name, role):
        ours = prefixed(make(name, role).state_dict(), "model.backbone.")
        assert translate(ours, weights.KEY_MAPS) == (ours, ())


class TestRefusals:
    def test_other_family(self):
        with pytest.raises(CheckpointError, match=r"a file of C-RADIO, but vit_large_nvdinov2 is NVDINOv2"):
            adapt_state_dict(NVDINO, "embedding", bare(RADIO), SIZE)
        with pytest.raises(CheckpointError, match=r"a file of NVDINOv2.*, but fan_tiny_8_p4_hybrid is FAN"):
            adapt_state_dict(FAN, "pyramid", bare(NVDINO), SIZE)

    @pytest.mark.parametrize(("name", "other"), [(DINO3, NVDINO), (NVDINO, DINO3), (DINO3, RADIO)])
    def test_dinov3_is_a_family_of_its_own(self, name, other):
        for given in (bare(other), *([as_meta(bare(other))] if other == DINO3 else [])):
            with pytest.raises(CheckpointError, match=rf"a file of .*, but {name} is .*DINOv"):
                adapt_state_dict(name, "embedding", given, SIZE)

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            (DINO3, "cls_token"),
            (DINO3, "patch_embed.proj.weight"),
            (RADIO, "patch_generator.pos_embed"),
            (NVDINO, "pos_embed"),
            (NVDINO, "patch_embed.proj.weight"),
        ],
    )
    def test_no_position_table(self, name, key):
        given = {k: v for k, v in bare(name).items() if k != key}
        with pytest.raises(CheckpointError, match=f"no .*{key} in the file"):
            adapt_state_dict(name, "embedding", given, SIZE, where="weights.pth")

    def test_too_little_in_the_file(self):
        model, given = make(RADIO, "pyramid"), {k: v for k, v in bare(RADIO).items() if ".attn." not in k}
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="tensors match"):
            load_backbone(model, RADIO, "pyramid", given, SIZE)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_another_width_of_the_same_family(self):
        given = {k: torch.cat([v, v], dim=0) if ".norm1." in k else v for k, v in bare(RADIO).items()}
        with pytest.raises(CheckpointError, match=r"\[64\] in the file, \[32\] in the model"):
            load_backbone(make(RADIO, "embedding"), RADIO, "embedding", given, SIZE)

    @pytest.mark.parametrize("spare", ["blocks.4.norm1.weight", "blocks.0.ls3.gamma"])
    def test_blocks_without_a_place(self, spare):  # else a deeper network, or another version, would load in silence
        given = bare(RADIO) | {spare: torch.ones(32)}
        with pytest.raises(CheckpointError, match=rf"1 tensors of the file's blocks are not in {RADIO}: .*{spare}"):
            load_backbone(make(RADIO, "embedding"), RADIO, "embedding", given, SIZE)

    @pytest.mark.parametrize("table", [torch.zeros(1, 38, 32), torch.zeros(37, 32), torch.zeros(())])
    def test_malformed_position_table(self, table):
        with pytest.raises(CheckpointError, match="position table of no usable shape"):
            adapt_state_dict(NVDINO, "embedding", bare(NVDINO) | {"pos_embed": table}, SIZE, where="weights.pth")

    def test_no_file(self, tmp_path):
        with pytest.raises(SourceError, match=r"some\.key"):
            load_backbone(make(RADIO, "embedding"), RADIO, "embedding", tmp_path / "no.pth", SIZE, key="some.key")


class TestFiles:
    def test_addresses_keep_their_secrets(self, tmp_path, monkeypatch, caplog):
        save_file(RADIO_LAYOUTS["hub"](bare(RADIO)), tmp_path / "model.safetensors")
        monkeypatch.setattr(
            "fiducial.backbones.weights.resolve_weights", lambda *_, **__: tmp_path / "model.safetensors"
        )
        address = "https://me:hunter2@files.test/model.safetensors?sig=hunter3"
        with caplog.at_level(logging.INFO, logger="fiducial"):
            report = load_backbone(make(RADIO, "embedding"), RADIO, "embedding", address, SIZE)
        assert "files.test/model.safetensors" in report.what
        assert "hunter" not in report.what + caplog.text

    def test_safetensors_and_lightning_say_what_was_loaded(self, tmp_path, caplog):
        given, model = bare(RADIO), make(RADIO, "pyramid")
        save_file(RADIO_LAYOUTS["hub"](given), tmp_path / "model.safetensors")
        lightning = {"state_dict": RADIO_LAYOUTS["ChangeNet learnable"](given), "pytorch-lightning_version": "2.6.1"}
        torch.save(lightning | {"tao_model": "visual_changenet_classify"}, tmp_path / "tao.pth")
        for file in ("model.safetensors", "tao.pth"):
            with caplog.at_level(logging.INFO, logger="fiducial"):
                report = load_backbone(model, RADIO, "pyramid", tmp_path / file, SIZE)
            assert report.matched == len(given)
            assert str(tmp_path / file) in caplog.text
            assert f"{len(given)} of {len(given)} tensors" in caplog.text
            assert torch.equal(model.vit.blocks[3].ls2.gamma, given["blocks.3.ls2.gamma"])

    def test_tao_classification_file(self, tmp_path):
        given, model = bare(NVDINO), make(NVDINO, "embedding")
        file = {"state_dict": prefixed(given, "model."), "tao_model": "classification"}
        torch.save(file, tmp_path / "classification.pth")
        assert load_backbone(model, NVDINO, "embedding", tmp_path / "classification.pth", SIZE).missing == ()


class TestOtherPublishers:
    """Files that look like the backbone and are not: the message says what they are, and no more than is true."""

    def refused(self, module, name, given, **words):
        with pytest.raises(CheckpointError) as caught:
            load_backbone(module, name, "pyramid", given, (224, 224))
        (problem,) = caught.value.problems
        return problem

    def meta(self, *, width=1024, depth=24, hidden=4096, grid=37, mlp=("fc1", "fc2"), **extra):
        """A DINOv2 of Meta's, without its numbers."""

        def empty(*shape):
            return torch.empty(shape, device="meta")

        given = {
            "cls_token": empty(1, 1, width),
            "pos_embed": empty(1, 1 + grid**2, width),
            "mask_token": empty(1, width),
            "patch_embed.proj.weight": empty(width, 3, 14, 14),
            "patch_embed.proj.bias": empty(width),
            "norm.weight": empty(width),
            "norm.bias": empty(width),
        }
        inner = hidden if mlp[0] == "fc1" else hidden // 2
        for index in range(depth):
            shapes = {
                **{f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
                "attn.qkv.weight": (3 * width, width),
                "attn.qkv.bias": (3 * width,),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "ls1.gamma": (width,),
                "ls2.gamma": (width,),
                f"mlp.{mlp[0]}.weight": (hidden, width),
                f"mlp.{mlp[0]}.bias": (hidden,),
                f"mlp.{mlp[1]}.weight": (width, inner),
                f"mlp.{mlp[1]}.bias": (width,),
            }
            given |= {f"blocks.{index}.{key}": empty(*shape) for key, shape in shapes.items()}
        return given | {key: empty(*shape) for key, shape in extra.items()}

    @pytest.fixture
    def nvdino(self):
        with torch.device("meta"):
            return build_pyramid(NVDINO, image_size=(224, 224))

    @pytest.mark.parametrize(
        "sizes",
        [
            {},
            {"register_tokens": (1, 4, 1024)},
            {"width": 768, "depth": 12, "hidden": 3072},
            {"width": 384, "depth": 12, "hidden": 1536},
            {"width": 1536, "depth": 40, "hidden": 8192, "mlp": ("w12", "w3")},
        ],
    )
    def test_dinov2_of_meta(self, nvdino, sizes):
        problem = self.refused(nvdino, NVDINO, self.meta(**sizes))
        assert "DINOv2 as Meta publishes it" in problem.found
        assert problem.fix == f"give a file of {NVDINO}, such as NVIDIA's NV_DINOV2_518; no backbone here takes Meta's"

    def test_the_same_file_with_nvidias_mlp_loads(self, nvdino):
        given = self.meta(hidden=5472)
        for index in range(24):
            given[f"blocks.{index}.mlp.fc2.weight"] = torch.empty(1024, 2736, device="meta")
        assert load_backbone(nvdino, NVDINO, "pyramid", given, (224, 224)).unexpected == ()

    @pytest.mark.parametrize("other", ["fan_small_12_p4_hybrid", "fan_large_16_p4_hybrid"])
    def test_another_size_of_fan(self, other):
        with torch.device("meta"):
            module, source = (build_pyramid(name, image_size=SIZE) for name in (FAN, other))
        problem = self.refused(module, FAN, source.state_dict())
        assert problem.found.startswith(f"the file holds {other}; ")
        assert problem.fix == f"name that backbone, or give a file of {FAN}"

    @pytest.mark.parametrize("other", ["c_radio_v2_vit_large_patch16_224", "c_radio_v3_vit_base_patch16_reg4_dinov2"])
    def test_another_radio(self, monkeypatch, other):
        monkeypatch.setattr(radio, "GRID", 128)
        with torch.device("meta"):
            module, source = (build_pyramid(name, image_size=SIZE) for name in (RADIO, other))
        assert self.refused(module, RADIO, source.state_dict()).found.startswith(f"the file holds {other}; ")

    def test_a_family_without_a_backbone_is_not_offered(self):
        resnet = {"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1), "layer4.0.conv1.weight": torch.zeros(1)}
        with pytest.raises(CheckpointError) as caught:
            adapt_state_dict(FAN, "pyramid", resnet, SIZE)
        assert caught.value.problems[0].fix == "give a file of FAN"

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
    def test_compiled_and_data_parallel(self, prefix):
        given, model = bare(RADIO), make(RADIO, "embedding")
        report = load_backbone(model, RADIO, "embedding", prefixed(given, prefix), SIZE)
        assert (report.missing, report.unexpected) == ((), ())
