"""Weights from TAO's checkpoints of every generation, from files of one part, and from wrong files."""

from pathlib import Path

import omegaconf
import pytest
import torch

from fiducial.backbones import dinov2
from fiducial.backbones.dinov2 import DinoV2Shape, scaled_positions
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.errors import CheckpointError
from mlrecog import trunks
from mlrecog.model import Recognizer, build_recognizer
from mlrecog.trunks import NVDINOV2, TRUNKS, TrunkInfo
from mlrecog.weights import embedding_dim_of, load_network, start_from, trunk_of

VIT = "nvdinov2_vit_large_legacy"
WIDTH = 16


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """NVDINOv2 of two blocks."""
    monkeypatch.setitem(dinov2.VARIANTS, "vit_large_nvdinov2", DinoV2Shape(WIDTH, 2, 2, 24))
    monkeypatch.setitem(trunks.TRUNKS, VIT, TrunkInfo(NVDINOV2, "vit_large_nvdinov2", WIDTH, multiple=14))


def network(seed=0, *, feat_dim=8, size=56):
    torch.manual_seed(seed)
    built = build_recognizer(VIT, feat_dim=feat_dim, image_size=(size, size))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # what is initialised as a constant, too
    return built


def shapes_of(backbone, feat_dim=8) -> Recognizer:
    with torch.device("meta"):
        return build_recognizer(backbone, feat_dim=feat_dim, image_size=(32, 32))


def in_memory(weights, **meta):
    return Checkpoint(Path("files/some.pth"), "state_dict", dict(weights), meta, weights)


def saved(folder, tree):
    torch.save(tree, folder / "some.pth")
    return read(folder / "some.pth")


def renamed(weights, *, trunk, embedder):
    """With other names before those of each part."""
    names = {"trunk.": trunk, "embedder.": embedder}
    parts = [key.partition(".")[0] + "." for key in weights]
    return {
        names[part] + key.removeprefix(part): tensor for part, (key, tensor) in zip(parts, weights.items(), strict=True)
    }


def assert_same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


WHOLE = {
    "ours and TAO's": lambda w: {"state_dict": renamed(w, trunk="model.trunk.", embedder="model.embedder.")},
    "parts alone": lambda w: renamed(w, trunk="trunk.", embedder="embedder."),
    "TAO's first version": lambda w: {"state_dict": renamed(w, trunk="0.", embedder="1.")},
    "first version in a network": lambda w: {"model": renamed(w, trunk="model.0.", embedder="model.1.")},
    "parallel": lambda w: {"state_dict": renamed(w, trunk="module.model.trunk.", embedder="module.model.embedder.")},
    "each part parallel": lambda w: renamed(w, trunk="model.trunk.module.", embedder="model.embedder.module."),
    "first version, each part parallel": lambda w: renamed(w, trunk="0.module.", embedder="1.module."),
    "compiled": lambda w: renamed(w, trunk="model._orig_mod.trunk.", embedder="model._orig_mod.embedder."),
}


class TestWholeCheckpoint:
    @pytest.mark.parametrize("wrap", WHOLE.values(), ids=WHOLE)
    def test_layouts(self, tmp_path, wrap):
        given, ours = network(1), network(2)
        report = load_network(ours, saved(tmp_path, wrap(given.state_dict())))
        assert_same(ours, given)
        assert (report.matched, report.missing, report.unexpected) == (report.wanted, (), ())
        assert report.summary() == f"{tmp_path / 'some.pth'}: {report.wanted} of {report.wanted} tensors loaded"

    def test_a_file_as_tao_writes_it(self, tmp_path):
        """OmegaConf's lists are in the state of its schedules; torch alone refuses to read them."""
        given, ours = network(1), network(2)
        schedule = {"milestones": omegaconf.OmegaConf.create([10, 20]), "gamma": 0.1, "last_epoch": 0}
        tree = {
            "epoch": 3,
            "global_step": 40,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"model.{key}": value for key, value in given.state_dict().items()},
            "loops": {},
            "callbacks": {},
            "optimizer_states": [{"state": {}, "param_groups": []}] * 2,
            "lr_schedulers": [schedule, schedule],
            "hyper_parameters": omegaconf.OmegaConf.create({"model": {"feat_dim": 8}, "steps": [1, 2]}),
        }
        checkpoint = saved(tmp_path, tree)
        with pytest.raises(Exception, match="omegaconf"):
            torch.load(checkpoint.path, weights_only=True)
        load_network(ours, checkpoint)
        assert_same(ours, given)
        assert checkpoint.raw["lr_schedulers"][1]["milestones"] == [10, 20]
        assert checkpoint.meta["hyper_parameters"] == {"model": {"feat_dim": 8}, "steps": [1, 2]}

    @pytest.mark.parametrize("backbone", ["resnet_50", "resnet_101", "fan_tiny"])
    def test_what_tao_leaves_of_classifiers_is_not_used(self, backbone):
        ours = shapes_of(backbone)
        weights = {f"model.{key}": value for key, value in ours.state_dict().items()}
        weights |= {f"model.trunk.{name}.weight": torch.empty(1000, 8, device="meta") for name in ("head", "fc")}
        report = load_network(ours, in_memory(weights))
        assert (report.matched, report.unexpected) == (report.wanted, ())

    def test_fan_as_tao_s_loader_names_it(self):
        ours = shapes_of("fan_tiny")
        weights = {key.replace("patch_embed.backbone.", "patch_embed."): v for key, v in ours.state_dict().items()}
        assert weights.keys() != ours.state_dict().keys()
        assert load_network(ours, in_memory(weights)).missing == ()

    @pytest.mark.parametrize("name", ["net.0", "last_linear"])
    def test_the_linear_layer_by_one_of_its_names(self, name):
        ours = shapes_of("resnet_50")
        other = {"net.0": "last_linear", "last_linear": "net.0"}[name]
        weights = {key: value for key, value in ours.state_dict().items() if f"embedder.{other}" not in key}
        report = load_network(ours, in_memory(weights))
        assert (len(weights) + 2, report.missing) == (len(ours.state_dict()), ())

    def test_counters_of_norms_may_be_missing(self):
        ours = shapes_of("resnet_50")
        weights = {key: value for key, value in ours.state_dict().items() if "num_batches_tracked" not in key}
        assert load_network(ours, in_memory(weights)).missing == ()

    def test_positions_for_another_size_of_pictures(self):
        given, ours = network(1, size=56), network(2, size=84)
        report = load_network(ours, in_memory(given.state_dict()))
        assert report.reshaped == ("trunk.pos_embed",)
        assert "1 resized (trunk.pos_embed)" in report.summary()
        assert torch.equal(ours.trunk.pos_embed, scaled_positions(given.trunk.pos_embed, (6, 6)))


class TestWrongCheckpoint:
    """What is said; and nothing is loaded."""

    def said(self, weights, ours=None):
        ours = ours or network(2)
        before = {key: value.clone() for key, value in ours.state_dict().items() if not value.is_meta}
        with pytest.raises(CheckpointError) as error:
            load_network(ours, in_memory(weights))
        assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items() if key in before)
        assert all(problem.where == "files/some.pth" for problem in error.value.problems)
        return [f"{problem.found} · {problem.fix}" for problem in error.value.problems]

    @pytest.mark.parametrize(
        ("names", "what"),
        [
            (("student.backbone.norm.weight", "student.mask_head.convs.0.w", "student.roi_head.mlp1.w"), "MAL"),
            (("model.backbone.norm.weight", "model.decoder.diff_c1.0.w"), "ChangeNet classify"),
            (("layer4.0.conv1.weight", "bn1.weight", "conv1.weight"), "ResNet"),
            (("a.weight",), "an unknown model"),
        ],
    )
    def test_another_network(self, names, what):
        (said,) = self.said(dict.fromkeys(names, torch.zeros(1)))
        assert f"no checkpoint of ML Recog: it looks like {what}" in said
        assert "has no embedder" in said
        assert "give what `mlrecog train` wrote" in said

    def test_a_backbone_alone_has_a_key_of_its_own(self):
        (said,) = self.said(network(1).trunk.state_dict())
        assert "it looks like NVDINOv2/DINOv2 and has no embedder" in said
        assert said.endswith("a backbone is model.pretrained_trunk_path")

    def test_an_embedder_alone(self):
        (said,) = self.said(network(1).embedder.state_dict())
        assert said == (
            "an embedder alone, no trunk · give what `mlrecog train` wrote; this file may be "
            "model.pretrained_embedder_path"
        )

    @pytest.mark.parametrize(
        ("held", "wanted"),
        [("resnet_101", "resnet_50"), ("resnet_50", "resnet_101"), ("fan_small", "fan_tiny"), ("fan_tiny", "fan_base")],
    )
    def test_another_trunk_of_the_family(self, held, wanted):
        (said,) = self.said(shapes_of(held).state_dict(), shapes_of(wanted))
        assert said == (
            f"the file holds {held}, the network {wanted} · give a file of {wanted}, or set model.backbone to {held}"
        )

    def test_another_family(self):
        (said,) = self.said(shapes_of("resnet_50").state_dict(), shapes_of("fan_tiny"))
        assert said == (
            "a file of resnet_50, where the network's trunk is fan_tiny · give a file of FAN, or set model.backbone to "
            "resnet_50"
        )

    @pytest.mark.parametrize("backbone", ["resnet_50", "fan_tiny"])
    def test_another_width_of_the_embedding(self, backbone):
        said = self.said(shapes_of(backbone, feat_dim=8).state_dict(), shapes_of(backbone, feat_dim=9))
        assert any("is [8, " in line and "[9, " in line for line in said)
        assert all(line.startswith("embedder.") and line.endswith("set model.feat_dim to 8") for line in said)

    def test_a_tensor_that_is_missing_and_one_too_many(self):
        weights = network(1).state_dict()
        weights["embedder.surplus"] = weights.pop("trunk.norm.weight")
        said = self.said(weights)
        assert [line.partition(" ")[0] for line in said] == ["trunk.norm.weight", "embedder.surplus"]
        assert "in the model, not in the file" in said[0]
        assert "in the file, not in the model" in said[1]

    def test_a_plain_dinov2_has_another_mlp(self):
        weights = network(1).state_dict()
        weights["trunk.blocks.0.mlp.fc1.weight"] = torch.zeros(64, WIDTH)
        (said,) = self.said(weights)
        assert "blocks.0.mlp.fc1.weight is [64, 16], not [24, 16]" in said
        assert "NVIDIA's NVDINOv2, whose MLP is gated, not Meta's DINOv2" in said

    def test_a_deeper_trunk(self):
        weights = network(1).state_dict()
        weights |= {key.replace("blocks.1.", "blocks.2."): value for key, value in weights.items()}
        (said,) = self.said(weights)
        assert "14 tensors are too many (blocks.2." in said


TRUNK = {
    "alone": lambda w: w,
    "as a trunk": lambda w: {"state_dict": {f"trunk.{key}": value for key, value in w.items()}},
    "as a backbone": lambda w: {"state_dict": {f"model.backbone.{key}": value for key, value in w.items()}},
    "as an encoder": lambda w: {"model": {f"encoder.{key}": value for key, value in w.items()}},
    "parallel": lambda w: {"model": {f"module.{key}": value for key, value in w.items()}},
    "a teacher's": lambda w: {"teacher": {f"backbone.{key}": value for key, value in w.items()}},
    "a teacher's and a student's": lambda w: {
        f"{side}.backbone.{key}": value * (side == "teacher")
        for side in ("student", "teacher")
        for key, value in w.items()
    },
    "with what trained it": lambda w: {**w, "mask_token": torch.zeros(1, WIDTH), "head.weight": torch.zeros(3, WIDTH)},
    "first version": lambda w: {f"0.{key}": value for key, value in w.items()},
}


class TestTrunk:
    @pytest.mark.parametrize("wrap", TRUNK.values(), ids=TRUNK)
    def test_layouts(self, tmp_path, wrap):
        given, ours, untouched = network(1), network(2), network(2)
        checkpoint = saved(tmp_path, wrap(given.trunk.state_dict()))
        said = start_from(ours, trunk=checkpoint)
        assert_same(ours.trunk, given.trunk)
        assert_same(ours.embedder, untouched.embedder)
        count = len(given.trunk.state_dict())
        assert said == f"trunk from {checkpoint.path}: {count} of {count} tensors loaded"

    def test_of_a_whole_checkpoint(self):
        given, ours, untouched = network(1), network(2), network(2)
        start_from(ours, trunk=in_memory(given.state_dict()))
        assert_same(ours.trunk, given.trunk)
        assert_same(ours.embedder, untouched.embedder)

    @pytest.mark.parametrize("backbone", ["resnet_50", "resnet_101"])
    def test_resnet_of_torchvision_or_timm(self, backbone):
        ours = shapes_of(backbone)
        weights = ours.trunk.state_dict() | {"fc.weight": torch.empty(1000, 2048), "fc.bias": torch.empty(1000)}
        count = len(ours.trunk.state_dict())
        assert f"{count} of {count} tensors loaded" in start_from(ours, trunk=in_memory(weights))

    @pytest.mark.parametrize("prefix", ["", "backbone.", "model."])
    def test_fan_of_a_classifier(self, prefix):
        ours = shapes_of("fan_tiny")
        count = len(ours.trunk.state_dict())
        weights = {f"{prefix}{key}": value for key, value in ours.trunk.state_dict().items()}
        weights[f"{prefix}head.weight"] = torch.empty(1000, 192)
        said = start_from(ours, trunk=in_memory(weights))
        assert said.endswith(f"{count} of {count} tensors loaded")

    def test_nearly_all_of_it_is_enough_and_what_is_missing_is_told(self):
        ours, given = network(2), network(1).trunk.state_dict()
        kept = ours.trunk.norm.weight.clone()
        del given["norm.weight"]
        said = start_from(ours, trunk=in_memory(given))
        assert said.endswith(f"{len(given)} of {len(given) + 1} tensors loaded; 1 missing (norm.weight)")
        assert torch.equal(ours.trunk.norm.weight, kept)

    def test_half_of_it_is_not(self):
        given = {key: value for key, value in network(1).trunk.state_dict().items() if "blocks.1." not in key}
        with pytest.raises(CheckpointError, match=r"only 20 of 34 tensors match.*not in the file: blocks\.1\."):
            start_from(network(2), trunk=in_memory(given))

    def test_patches_and_positions_of_another_size(self):
        given = network(1).trunk.state_dict()
        given["patch_embed.proj.weight"] = torch.ones(WIDTH, 3, 16, 16)
        ours = network(2, size=84)
        assert "2 resized (patch_embed.proj.weight, pos_embed)" in start_from(ours, trunk=in_memory(given))
        assert torch.equal(ours.trunk.pos_embed, scaled_positions(given["pos_embed"], (6, 6)))

    def test_positions_that_are_no_square(self):
        given = network(1).trunk.state_dict() | {"pos_embed": torch.zeros(1, 1 + 15, WIDTH)}
        with pytest.raises(CheckpointError, match=r"pos_embed is \[1, 16, 16\], not \[1, 17, 16\]"):
            start_from(network(2), trunk=in_memory(given))

    def test_of_another_family(self):
        with pytest.raises(CheckpointError, match=r"a file of fan_tiny.* or set model.backbone to fan_tiny"):
            start_from(network(2), trunk=in_memory(shapes_of("fan_tiny").trunk.state_dict()))

    def test_an_embedder_in_its_place(self):
        with pytest.raises(CheckpointError, match="no trunk in it · give a file of NVDINOv2/DINOv2"):
            start_from(network(2), trunk=in_memory(network(1).embedder.state_dict()))


class TestEmbedder:
    @pytest.mark.parametrize("prefix", ["", "embedder.", "model.embedder.", "1.", "module.1."])
    @pytest.mark.parametrize("backbone", ["fan_tiny", "resnet_50"])
    def test_layouts(self, prefix, backbone):
        ours = shapes_of(backbone)
        weights = {f"{prefix}{key}": value for key, value in ours.embedder.state_dict().items()}
        count = len(weights)
        said = start_from(ours, embedder=in_memory(weights))
        assert said == f"embedder from files/some.pth: {count} of {count} tensors loaded"

    @pytest.mark.parametrize("whole", [True, False])
    def test_values(self, whole):
        given, ours, untouched = network(1), network(2), network(2)
        start_from(ours, embedder=in_memory(given.state_dict() if whole else given.embedder.state_dict()))
        assert_same(ours.embedder, given.embedder)
        assert_same(ours.trunk, untouched.trunk)

    def test_the_adapters_of_a_dual_head_of_another_width(self):
        given, ours, untouched = network(1, feat_dim=5), network(2), network(2)
        said = start_from(ours, embedder=in_memory(given.embedder.state_dict()))
        assert "18 of 20 tensors loaded; 2 left as initialised, another size (embedding_fc.1" in said
        assert_same(ours.embedder.classifier_feat4, given.embedder.classifier_feat4)
        assert_same(ours.embedder.embedding_fc[1], untouched.embedder.embedding_fc[1])

    def test_a_layer_of_another_width(self):
        weights = shapes_of("resnet_50", feat_dim=5).embedder.state_dict()
        with pytest.raises(CheckpointError, match=r"an embedder of 5 numbers, where the network has 8.*feat_dim to 5"):
            start_from(shapes_of("resnet_50"), embedder=in_memory(weights))

    @pytest.mark.parametrize(("given", "ours"), [("resnet_50", "fan_tiny"), ("fan_tiny", "resnet_50")])
    def test_of_another_kind_of_backbone(self, given, ours):
        weights = shapes_of(given).embedder.state_dict()
        with pytest.raises(CheckpointError, match="its embedder is that of another kind of backbone"):
            start_from(shapes_of(ours), embedder=in_memory(weights))

    def test_a_dual_head_of_another_trunk(self):
        weights = shapes_of("fan_small").embedder.state_dict()
        with pytest.raises(
            CheckpointError, match=r"classifier_feat.0.bias is \[192\] in the file, \[96\] in the model"
        ):
            start_from(shapes_of("fan_tiny"), embedder=in_memory(weights))

    def test_a_trunk_in_its_place(self):
        with pytest.raises(CheckpointError, match=r"no embedder in it · give a file trained with the same"):
            start_from(network(2), embedder=in_memory(network(1).trunk.state_dict()))


class TestModel:
    def test_both_parts(self):
        given, ours = network(1), network(2)
        said = start_from(ours, model=in_memory(given.state_dict()))
        assert_same(ours, given)
        assert [part.partition(" from ")[0] for part in said.split(" · ")] == ["trunk", "embedder"]

    def test_of_another_width_it_gives_all_but_the_last_layer(self):
        given, ours, untouched = network(1, feat_dim=5), network(2), network(2)
        said = start_from(ours, model=in_memory(given.state_dict()))
        assert_same(ours.trunk, given.trunk)
        assert_same(ours.embedder.embedding_fc[1], untouched.embedder.embedding_fc[1])
        assert "2 left as initialised, another size" in said
        linear = start_from(shapes_of("resnet_50"), model=in_memory(shapes_of("resnet_50", feat_dim=5).state_dict()))
        assert "0 of 4 tensors loaded; 4 left as initialised, another size" in linear

    def test_the_published_resnet(self):
        """Of TAO's first version, 2048 numbers."""
        given = shapes_of("resnet_101", feat_dim=2048)
        weights = renamed(given.state_dict(), trunk="0.", embedder="1.")
        said = start_from(shapes_of("resnet_101", feat_dim=2048), model=in_memory(weights))
        count = len(given.trunk.state_dict())
        assert f"{count} of {count} tensors loaded" in said
        assert "4 of 4 tensors loaded" in said

    def test_a_trunk_alone(self):
        given, ours, untouched = network(1), network(2), network(2)
        assert start_from(ours, model=in_memory(given.trunk.state_dict())).endswith(" · it has no embedder")
        assert_same(ours.trunk, given.trunk)
        assert_same(ours.embedder, untouched.embedder)

    def test_of_several_files_the_later_counts(self):
        one, two, three, ours = network(1), network(2), network(3), network(4)
        files = {"trunk": in_memory(one.trunk.state_dict()), "embedder": in_memory(two.embedder.state_dict())}
        start_from(ours, **files)
        assert_same(ours.trunk, one.trunk)
        assert_same(ours.embedder, two.embedder)
        said = start_from(ours, **files, model=in_memory(three.state_dict()))
        assert_same(ours, three)
        assert [part.split()[0] for part in said.split(" · ")] == ["trunk", "embedder", "trunk", "embedder"]

    def test_nothing(self):
        ours, untouched = network(2), network(2)
        assert start_from(ours) == ""
        assert_same(ours, untouched)


class TestRecognised:
    @pytest.mark.parametrize("backbone", [name for name in TRUNKS if name != VIT])
    def test_every_trunk_by_its_tensors(self, backbone):
        assert trunk_of(shapes_of(backbone).trunk.state_dict()) == backbone

    def test_nvdinov2_as_it_is(self, monkeypatch):
        monkeypatch.undo()
        assert trunk_of(shapes_of(VIT).trunk.state_dict()) == VIT

    def test_resnets_that_are_not_there_and_other_things(self):
        deeper = {f"layer3.{block}.conv1.weight": torch.zeros(1) for block in range(36)}
        assert trunk_of({**deeper, "layer4.0.conv3.weight": torch.zeros(1)}) is None
        assert trunk_of({"layer4.0.conv2.weight": torch.zeros(1)}) is None
        assert trunk_of(network().trunk.state_dict()) is None  # of sizes that no backbone has
        assert trunk_of({}) is None

    @pytest.mark.parametrize("backbone", ["resnet_50", "fan_tiny"])
    def test_width_of_the_embedding(self, backbone):
        given = shapes_of(backbone, feat_dim=7)
        assert embedding_dim_of(in_memory(given.state_dict())) == 7
        assert embedding_dim_of(in_memory(renamed(given.state_dict(), trunk="0.", embedder="1."))) == 7
        assert embedding_dim_of(in_memory(given.embedder.state_dict())) == 7
        assert embedding_dim_of(in_memory(given.trunk.state_dict())) is None
