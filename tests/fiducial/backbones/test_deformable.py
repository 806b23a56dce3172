import math

import pytest
import torch

from fiducial.backbones.deformable import MSDeformAttn

SHAPES, STARTS = torch.tensor([[4, 4], [2, 2]]), torch.tensor([0, 16])


@pytest.fixture(autouse=True)
def _torch_kernel(monkeypatch):
    monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", "torch")


def layer(**options):
    torch.manual_seed(0)
    return MSDeformAttn(8, num_levels=2, num_heads=4, num_points=2, **options)


def draw(batch=2):
    gen = torch.Generator().manual_seed(0)
    return torch.randn(batch, 5, 8, generator=gen), torch.rand(batch, 5, 2, 2, generator=gen), torch.randn(
        batch, 20, 8, generator=gen
    )  # fmt: skip


class TestInitialisation:
    def test_heads_look_in_different_directions_on_a_growing_square(self):
        offsets = layer().sampling_offsets.bias.view(4, 2, 2, 2)
        expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
        for point in range(2):
            for level in range(2):
                torch.testing.assert_close(offsets[:, level, point], expected * (point + 1), atol=1e-6, rtol=0)

    def test_diagonal_heads_reach_the_corner_of_the_square(self):
        module = MSDeformAttn(8, num_levels=1, num_heads=8, num_points=1)
        torch.testing.assert_close(module.sampling_offsets.bias.view(8, 2)[1], torch.ones(2))

    def test_attention_starts_uniform_and_projections_within_xavier(self):
        module = layer()
        assert module.attention_weights.weight.abs().sum() == module.attention_weights.bias.abs().sum() == 0
        assert module.sampling_offsets.weight.abs().sum() == 0
        for projection in (module.value_proj, module.output_proj):
            assert 0 < projection.weight.abs().max() <= math.sqrt(6 / 16)
            assert projection.bias.abs().sum() == 0


class TestForward:
    def test_one_reference_serves_all_levels(self):
        query, reference, features = draw()
        one = reference[:, :, :1]
        torch.testing.assert_close(
            layer()(query, one, features, SHAPES, STARTS),
            layer()(query, one.expand(-1, -1, 2, -1), features, SHAPES, STARTS),
        )

    def test_boxes_scale_the_offsets(self):
        query, reference, features = draw()
        module = layer()
        # offset / size = offset / points * box / 2, so boxes of 2 * points / size give what points give
        box = (2 * 2 / SHAPES.flip(1)).expand(2, 5, 2, 2)
        torch.testing.assert_close(
            module(query, torch.cat([reference, box], -1), features, SHAPES, STARTS),
            module(query, reference, features, SHAPES, STARTS),
        )

    def test_padding_counts_as_zero(self):
        query, reference, features = draw()
        module = layer()
        out = module(query, reference, features, SHAPES, STARTS, torch.ones(2, 20, dtype=torch.bool))
        torch.testing.assert_close(out, module.output_proj.bias.expand_as(out))

    def test_ratio_narrows_the_values(self):
        module = layer(ratio=0.5)
        assert (module.value_proj.out_features, module.output_proj.in_features) == (4, 4)
        assert module(*draw(), SHAPES, STARTS).shape == (2, 5, 8)

    def test_precise_equals_the_chosen_kernel(self):
        torch.testing.assert_close(layer(precise=True)(*draw(), SHAPES, STARTS), layer()(*draw(), SHAPES, STARTS))

    def test_half_precision_keeps_locations_in_float32(self):
        module, (query, reference, features) = layer(), draw()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(query, reference, features, SHAPES, STARTS)
        torch.testing.assert_close(
            out.float(), module(query, reference, features, SHAPES, STARTS), atol=0.02, rtol=0.02
        )


class TestRefusals:
    def test_width_that_does_not_divide_into_heads(self):
        with pytest.raises(ValueError, match=r"must divide into heads, found 8 \* 0\.5 for 3 heads"):
            MSDeformAttn(8, num_heads=3, ratio=0.5)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("query", torch.zeros(2, 5, 6), r"query must be \(2, 5, 8\), found shape \(2, 5, 6\)"),
            ("query", torch.zeros(5, 8), r"query must have 3 dimensions, found shape \(5, 8\)"),
            ("features", torch.zeros(2, 20, 6), r"features must be \(2, 20, 8\), found shape \(2, 20, 6\)"),
            ("reference_points", torch.zeros(2, 5, 2, 3), r"\(batch, 5, 1 or 2, 2 or 4\), found shape \(2, 5, 2, 3\)"),
            ("reference_points", torch.zeros(2, 4, 2, 2), r"found shape \(2, 4, 2, 2\)"),
            ("reference_points", torch.zeros(2, 5, 3, 2), r"found shape \(2, 5, 3, 2\)"),
            ("spatial_shapes", torch.zeros(3, 2), r"spatial_shapes must be \(2, 2\), found shape \(3, 2\)"),
            ("level_start_index", torch.zeros(3), r"level_start_index must be \(2,\), found shape \(3,\)"),
            ("padding_mask", torch.zeros(2, 19).bool(), r"padding_mask must be \(2, 20\), found shape \(2, 19\)"),
        ],
    )
    def test_other_shapes(self, name, value, message):
        query, reference_points, features = draw()
        arguments = {"query": query, "reference_points": reference_points, "features": features}
        arguments |= {"spatial_shapes": SHAPES, "level_start_index": STARTS}
        layer()(**arguments)
        with pytest.raises(ValueError, match=message):
            layer()(**{**arguments, name: value})
