"""The adapter by itself, around tiny ViTs of both families."""

import copy
import math

import pytest
import torch

from fiducial.backbones import vit_adapter
from fiducial.backbones.dinov2 import DinoV2Embedding, DinoV2Pyramid, DinoV2Shape
from fiducial.backbones.radio import RadioEmbedding, RadioPyramid, RadioShape, RadioViT

SMALL = {"heads": 4, "planes": 8}


def radio_vit(**options):
    return RadioViT(RadioShape(32, 4, 4, 4, 4, 3, layer_scale=0.5), grid=12, **options)


def radio(**options):
    return RadioPyramid(radio_vit(**options), **SMALL)


def dino(**options):
    return DinoV2Pyramid(DinoV2Shape(32, 4, 4, 48), grid=4, **options, **SMALL)


def embeddings(**options):
    return {
        "radio": lambda: RadioEmbedding(radio_vit(**options)),
        "dino": lambda: DinoV2Embedding(DinoV2Shape(32, 4, 4, 48), grid=4, **options),
    }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TestGeometry:
    def test_reference_points_and_levels(self):
        geometry = vit_adapter._geometry(2, 4, torch.device("cpu"), torch.float32)
        to_prior, to_patches = geometry.patches_to_prior, geometry.prior_to_patches
        assert to_prior.points[0, :, 0].tolist() == [[x / 8, y / 4] for y in (1, 3) for x in (1, 3, 5, 7)]
        assert to_prior.shapes.tolist() == [[4, 8], [2, 4], [1, 2]]
        assert to_prior.starts.tolist() == [0, 32, 40]
        assert to_patches.points.shape == (1, 32 + 8 + 2, 1, 2)
        assert to_patches.points[0, -2:, 0].tolist() == [[0.25, 0.5], [0.75, 0.5]]
        assert to_patches.shapes.tolist() == [[2, 4]]
        assert to_patches.starts.tolist() == [0]

    def test_split_undoes_the_concatenation(self):
        maps = [torch.randn(2, 3, rows, cols) for rows, cols in ((4, 8), (2, 4), (1, 2))]
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        for found, expected in zip(vit_adapter._split(cells, 2, 4), maps, strict=True):
            assert torch.equal(found, expected)


class TestInitialisation:
    def test_as_documented(self):
        model = dino()
        conv, linear = model.spm.conv4[0].weight, model.interactions[0].extractor.ffn.fc1.weight
        assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.shape[0])), rel=0.1)
        assert linear.std().item() == pytest.approx(0.02, rel=0.15)
        assert model.interactions[0].injector.ls.gamma.tolist() == pytest.approx([1e-5] * 32)
        offsets = model.interactions[0].injector.attn.sampling_offsets
        assert not offsets.weight.any()
        assert offsets.bias.reshape(4, 3, 4, 2)[0, 0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]
        assert not model.cls_token.any()

    def test_extra_extractors_in_the_last_interaction_only(self):
        assert [len(i.extra_extractors) for i in radio().interactions] == [0, 0, 0, 2]


@pytest.mark.parametrize("make", [radio, dino])
class TestBoth:
    def test_pairs_in_one_batch_are_exact_in_eval(self, make):
        model, images = make().eval(), torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            together = model(images)
            apart = [torch.cat(maps) for maps in zip(model(images[:2]), model(images[2:]), strict=True)]
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_activation_checkpointing_gives_equal_gradients(self, make):
        plain, saving = make(), make(activation_checkpointing=True)
        saving.load_state_dict(plain.state_dict())
        image, gradients = torch.randn(2, 3, 64, 64), []
        for model in (plain, saving):
            model.train()
            torch.manual_seed(1)  # drop path and random positions
            sum(m.square().mean() for m in model(image)).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)

    def test_half_precision_is_close(self, make):
        model, image = make().eval(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            exact, rough = model(image), model.bfloat16()(image.bfloat16())
        for one, other in zip(exact, rough, strict=True):
            assert other.dtype == torch.bfloat16
            torch.testing.assert_close(other.float(), one, atol=0.15, rtol=0.1)

    def test_copies_compute_the_same(self, make):
        model, image = make().eval(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            first = model(image)
            assert all(torch.equal(a, b) for a, b in zip(first, copy.deepcopy(model)(image), strict=True))

    def test_geometry_is_computed_once(self, make, monkeypatch):
        model, calls = make().eval(), []
        monkeypatch.setattr(vit_adapter, "_centres", lambda *a, f=vit_adapter._centres: calls.append(a) or f(*a))
        for _ in range(2):
            model(torch.randn(1, 3, 64, 64))
        assert len(calls) == 4  # one grid of patches, three of the prior


class TestGraphs:
    @pytest.mark.parametrize("name", [pytest.param("radio", marks=pytest.mark.slow), "dino"])
    def test_embedding_compiles_in_one_graph(self, name):
        model = embeddings()[name]().eval()
        size = (64, 96) if name == "radio" else (28, 70)
        self.check_compiled(model, torch.randn(2, 3, *size), lambda out: [out])

    @pytest.mark.slow
    @pytest.mark.parametrize("make", [radio, dino])
    def test_pyramid_compiles_in_one_graph(self, make):
        self.check_compiled(make().eval(), torch.randn(1, 3, 64, 96), list)

    @staticmethod
    def check_compiled(model, image, maps):
        torch._dynamo.reset()
        with torch.no_grad():
            expected = maps(model(image))
            found = maps(torch.compile(model, fullgraph=True, backend="aot_eager")(image))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["radio", "dino"])
    def test_embedding_exports_with_any_batch(self, name):
        model = embeddings()[name]().eval()
        size = (64, 96) if name == "radio" else (28, 70)
        self.check_exported(model, size, lambda out: [out])

    @pytest.mark.slow
    @pytest.mark.parametrize("make", [radio, dino])
    def test_pyramid_exports_with_any_batch(self, make):
        self.check_exported(make().eval(), (64, 96), list)

    @torch.no_grad()
    def test_tables_of_a_size_seen_before_are_constants_of_the_export(self):
        model, image = (
            RadioEmbedding(RadioViT(RadioShape(32, 1, 4, 4, 4, 3), grid=12)).eval().requires_grad_(False),
            torch.randn(1, 3, 32, 64),
        )

        def resizes(program):
            return sum("upsample" in str(node.target) for node in program.graph.nodes)

        assert resizes(torch.export.export(model, (image,))) == 1
        expected = model(image)
        program = torch.export.export(model, (image,))
        assert resizes(program) == 0
        torch.testing.assert_close(program.module()(image), expected)
        model.vit.patch_generator.pos_embed.mul_(2)
        program = torch.export.export(model, (image,))  # not seen since the weights changed
        assert resizes(program) == 1
        torch.testing.assert_close(program.module()(image), model(image))

    @staticmethod
    def check_exported(model, size, maps):
        batch = torch.export.Dim("batch", min=1, max=64)
        with torch.no_grad():
            program = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch},))
            for count in (1, 3):
                image = torch.randn(count, 3, *size)
                for one, other in zip(maps(model(image)), maps(program.module()(image)), strict=True):
                    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
