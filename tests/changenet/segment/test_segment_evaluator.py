"""Logits to masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from changenet.segment.evaluator import ImageRecord, SegmentEvaluator
from changenet.segment.tiles import blend, windows
from fiducial.errors import MetricError


class Kept:
    """Takes images; remembers them."""

    def __init__(self):
        self.images = []

    def __call__(self, image):
        self.images.append(image)
        return ImageRecord(image.index, int(image.mask.sum()), image.mask.size, None)


def batch_of(indices, sizes, **more):
    return {"index": torch.tensor(indices), "size": torch.tensor(sizes), **more}


class TestEvaluator:
    def test_masks_and_truth_of_every_image(self):
        kept = Kept()
        evaluator = SegmentEvaluator(3, kept)
        logits = torch.randn(2, 3, 8, 8)
        evaluator.update(logits, batch_of([4, 1], [[8, 8]] * 2, L=torch.ones(2, 8, 8, dtype=torch.uint8)))
        assert [record.index for record in evaluator.finish()] == [1, 4]
        assert (kept.images[0].mask == logits[0].argmax(0).numpy()).all()
        assert kept.images[0].mask.dtype == np.uint8
        assert kept.images[0].prob is None
        assert (kept.images[1].label == 1).all()

    def test_probabilities_on_request(self):
        kept = Kept()
        logits = torch.randn(1, 2, 4, 4)
        SegmentEvaluator(2, kept, keep_prob=True).update(logits, batch_of([0], [[4, 4]]))
        assert torch.allclose(torch.from_numpy(kept.images[0].prob), logits[0].softmax(0))

    def test_original_size(self):
        kept = Kept()
        logits, label = torch.randn(1, 2, 8, 8), torch.zeros(20, 12, dtype=torch.uint8)
        SegmentEvaluator(2, kept).update(logits, batch_of([0], [[20, 12]], L=[label]))
        want = F.interpolate(logits, size=(20, 12), mode="bilinear").argmax(1)[0]
        assert (kept.images[0].mask == want.numpy()).all()
        assert kept.images[0].label.shape == (20, 12)

    def test_windows_are_blended_across_batches(self):
        kept, size = Kept(), (20, 13)
        cover = windows(*size, 8, 3)
        logits = torch.randn(len(cover), 2, 8, 8)
        truth = torch.randint(0, 2, (24, 24), dtype=torch.uint8)
        evaluator = SegmentEvaluator(2, kept, keep_prob=True)
        for start in range(0, len(cover), 3):
            part = cover[start : start + 3]
            evaluator.update(
                logits[start : start + 3],
                batch_of(
                    [7] * len(part),
                    [size] * len(part),
                    corner=torch.tensor([[w.top, w.left] for w in part]),
                    L=torch.stack([truth[w.slices] for w in part]),
                ),
            )
        assert len(evaluator.finish()) == 1
        want = blend(zip(cover, logits.softmax(1).numpy(), strict=True), 2, *size)
        assert np.allclose(kept.images[0].prob, want)
        assert (kept.images[0].mask == want.argmax(0)).all()
        assert (kept.images[0].label == truth[:20, :13].numpy()).all()

    def test_windows_that_did_not_come(self):
        evaluator = SegmentEvaluator(2, Kept())
        evaluator.update(torch.zeros(1, 2, 8, 8), batch_of([0], [[20, 8]], corner=torch.tensor([[0, 0]])))
        with pytest.raises(MetricError, match="windows of image 0"):
            evaluator.finish()

    def test_nothing(self):
        with pytest.raises(MetricError, match="no images"):
            SegmentEvaluator(2, Kept()).finish()
