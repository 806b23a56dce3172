import csv

import numpy as np
import pytest
import torch

from changenet.segment import metrics
from changenet.segment.counts import Counts, change_counts, class_counts
from changenet.segment.image_results import ImageResult, write_image_csv
from changenet.segment.objects import ObjectCounts

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 2], [2, 0, 1, 0]], np.uint8)


def confusion(prediction, truth, num_classes):
    """Of one image."""
    return metrics.confusion(*(torch.from_numpy(mask)[None] for mask in (prediction, truth)), num_classes)[0].numpy()


class TestCounts:
    def test_hand_computed(self):
        counts = Counts(tp=3, fp=1, fn=2)
        assert (counts.precision, counts.recall, counts.iou) == (3 / 4, 3 / 5, 3 / 6)
        assert counts.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))

    def test_undefined(self):
        assert Counts(0, 0, 0).f1 is Counts(0, 0, 5).precision is Counts(0, 5, 0).recall is None
        assert Counts(0, 1, 0).f1 == 0


class TestConfusion:
    def test_hand_computed(self):
        matrix = confusion(PREDICTION, TRUTH, 3)
        assert matrix.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 1]]  # the ignored pixel is in no cell
        assert class_counts(matrix) == [Counts(2, 1, 1), Counts(1, 1, 1), Counts(1, 1, 1)]
        assert change_counts(matrix) == Counts(2, 2, 2)

    def test_wrong_use(self):
        with pytest.raises(ValueError, match="masks of"):
            confusion(PREDICTION[:1], TRUTH, 3)

    def test_all_ignored(self):
        assert confusion(PREDICTION, np.full_like(TRUTH, 255), 3).sum() == 0


def test_csv(tmp_path):
    results = [
        ImageResult("sub/a.png", confusion(PREDICTION, TRUTH, 3), ObjectCounts(1, 2, 3, 2, 1)),
        ImageResult("b, c.png", np.array([[9, 0], [0, 0]]), ObjectCounts()),
    ]
    write_image_csv(tmp_path / "images.csv", results)
    with (tmp_path / "images.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["name"] == "sub/a.png"
    assert [first[k] for k in ("pixels", "changed_pixels", "wrong_pixels", "tp", "fp", "fn")] == list("743222")
    assert [float(first[k]) for k in ("precision", "recall", "f1", "iou")] == pytest.approx([0.5, 0.5, 0.5, 1 / 3])
    assert [first[f"objects_{k}"] for k in ("matched", "missed", "false", "touched", "stray")] == list("12321")
    assert (second["name"], second["f1"], second["pixels"]) == ("b, c.png", "", "9")
