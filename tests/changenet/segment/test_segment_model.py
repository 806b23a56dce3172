"""The segment network against stored outputs, and its own promises."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_pyramid import ToyPyramid

from changenet.difference import fuse
from changenet.segment.model import ChangeDecoder, ChangeSegmenter, average_predictions, build_segmenter
from changenet.segment.runtime import SegmentRuntime
from fiducial.backbones.deformable import MSDeformAttn

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from parity_cases import load_runners, run_case  # noqa: E402

CASES = (
    "segment_data",
    "segment_losses",
    "segment_metrics_2class",
    "segment_metrics_4class",
    pytest.param("train_segment_fan_tiny", marks=pytest.mark.slow),
    pytest.param("segment_fan_tiny_256", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_stored_numbers(name):
    load_runners()
    outcome = run_case(ROOT / "tests" / "stored" / f"{name}.json")
    assert outcome.status == "pass", outcome.note


@pytest.mark.parametrize("precise", [True, False])
def test_precise_msda(make_spec, precise):
    vit = {"type": "vit_large_nvdinov2"}
    with torch.device("meta"):  # nothing is computed
        network = SegmentRuntime(make_spec(model__backbone=vit, model__precise_msda=precise)).network()
    assert {layer.precise for layer in network.modules() if isinstance(layer, MSDeformAttn)} == {precise}


def toy(**options):
    torch.manual_seed(0)
    model = ChangeSegmenter(ToyPyramid(), ChangeDecoder((4, 4, 4, 4), 6, 3), **options).double()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim:
            nn.init.normal_(tensor, std=0.3)
    return model.eval()


def pair(batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64) for _ in range(2)]


class TestDecoder:
    def test_last_layers_are_those_written_down_and_train_as_they_do(self):
        torch.manual_seed(0)
        decoder = ChangeDecoder((4, 4, 4, 4), 24, 2).double()
        for parameter in decoder.parameters():
            nn.init.normal_(parameter, std=0.3)
        maps = tuple(torch.randn(2, 24, 8 // s, 16 // s, dtype=torch.float64) for s in (1, 2, 4, 8))
        x = decoder.dense_2x(decoder.convd2x(fuse(decoder.linear_fuse, maps, maps[0].shape[-2:])))
        written_down = decoder.change_probability(decoder.dense_1x(decoder.convd1x(x)))
        results = []
        for logits in (decoder.final(maps), written_down):
            named = [p for name, p in decoder.named_parameters() if name.startswith(("dense", "convd", "change"))]
            results.append((logits, *torch.autograd.grad(logits.square().sum(), named, retain_graph=True)))
        for mine, theirs in zip(*results, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)

    def test_residual_blocks_add_a_tenth(self):
        block = toy().decoder.dense_1x[0]
        x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
        assert torch.allclose(block(x), x + 0.1 * block.conv2(F.relu(block.conv1(x))))


class TestSegmenter:
    def test_sizes_of_the_predictions(self):
        sizes = [tuple(x.shape) for x in toy()(*pair())]
        assert sizes == [(2, 3, 2, 3), (2, 3, 4, 6), (2, 3, 8, 12), (2, 3, 16, 24), (2, 3, 64, 96)]

    def test_final_is_the_last_prediction(self):
        model, (before, after) = toy(), pair()
        assert torch.equal(model.final(before, after), model(before, after)[-1])

    @torch.no_grad()
    def test_a_few_pairs_at_a_time(self, monkeypatch):
        model, (before, after) = toy(), pair(batch=3)
        whole = model(before, after)[-1]
        for pixels in (1, 2 * 64 * 96, 10**9):
            monkeypatch.setattr("changenet.segment.model.PIXELS_AT_ONCE", {"cpu": pixels})
            assert torch.allclose(model.final(before, after), whole, rtol=1e-12, atol=1e-12)

    def test_auxiliary_heads_run_only_when_wanted(self):
        model, (before, after) = toy(), pair()
        ran = []
        model.decoder.make_pred_c1.register_forward_hook(lambda *_: ran.append(1))
        assert len(model.predictions(before, after, auxiliary=False)) == 1
        model.final(before, after)
        assert not ran

    def test_averaged_result(self):
        plain, averaging, (before, after) = toy(), toy(average_scales=True), pair()
        predictions = plain(before, after)
        *same, mean = averaging(before, after)
        assert all(torch.equal(a, b) for a, b in zip(same, predictions, strict=False))
        by_hand = sum(F.interpolate(x, size=(64, 96), mode="nearest") for x in predictions) / 5
        assert torch.allclose(mean, by_hand, rtol=1e-12)
        assert torch.equal(averaging.final(before, after), mean)
        assert torch.equal(average_predictions(predictions), mean)

    def test_one_pass_in_eval_two_in_training(self):
        model, (before, after) = toy(), pair()
        model(before, after)
        assert model.backbone.num_passes == 1
        model.train()(before, after)
        assert model.backbone.num_passes == 3

    def test_pairs_do_not_meet_in_eval(self):
        model, (before, after) = toy(), pair()
        together = model.final(before, after)
        alone = torch.cat([model.final(before[i : i + 1], after[i : i + 1]) for i in range(2)])
        assert torch.allclose(together, alone, rtol=1e-10, atol=1e-12)

    def test_order_of_the_images_counts(self):
        model, (before, after) = toy(), pair()
        assert not torch.allclose(model.final(before, after), model.final(after, before))

    def test_gradient_reaches_what_the_loss_needs(self):
        model, (before, after) = toy().train(), pair()
        model.predictions(before, after, auxiliary=False)[-1].sum().backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == {name for name, _ in model.named_parameters() if ".make_pred_c" in name}


class TestRefuses:
    @pytest.mark.parametrize("call", ["forward", "predictions", "final"])
    def test_two_sizes(self, call):
        before, after = pair()
        with torch.no_grad():
            for other in (after[:1], after[..., :64]):
                with pytest.raises(ValueError, match=r"before and after .* found \(2, 3, 64, 96\) and \("):
                    getattr(toy(), call)(before, other)

    def test_sides_that_the_backbone_does_not_divide(self):
        network = build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(32, 32), embed_dim=8).eval()
        with pytest.raises(ValueError, match="multiples of 16 pixels, found 32×40"):
            network(*torch.zeros(2, 1, 3, 32, 40))


class TestBuild:
    def test_keys_and_parameters_of_fan_tiny(self):
        model = build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(256, 256))
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(19.30e6, rel=1e-3)
        decoder = sum(p.numel() for p in model.decoder.parameters())
        assert decoder == pytest.approx(12.02e6, rel=1e-3)

    def test_other_sizes_than_the_one_it_was_built_for(self):
        model = build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(32, 32), embed_dim=4).eval()
        with torch.no_grad():
            assert model.final(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48)).shape == (1, 2, 32, 48)
