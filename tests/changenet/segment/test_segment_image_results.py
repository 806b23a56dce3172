import csv

import numpy as np
import pytest

from changenet.segment.counts import Counts
from changenet.segment.image_results import ImageResult, write_image_csv
from changenet.segment.objects import ObjectCounts

RESULTS = (
    ImageResult("sub/a.png", np.array([[2, 1, 0], [0, 1, 1], [1, 0, 1]]), ObjectCounts(1, 2, 3, 2, 1)),
    ImageResult("b, c.png", np.array([[9, 0], [0, 0]]), ObjectCounts()),
)


def test_of_a_matrix():
    assert RESULTS[0].change == Counts(2, 2, 2)
    assert [result.num_wrong for result in RESULTS] == [3, 0]


def test_csv(tmp_path):
    write_image_csv(tmp_path / "images.csv", RESULTS)
    with (tmp_path / "images.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["name"] == "sub/a.png"
    assert [first[k] for k in ("pixels", "changed_pixels", "wrong_pixels", "tp", "fp", "fn")] == list("743222")
    assert [float(first[k]) for k in ("precision", "recall", "f1", "iou")] == pytest.approx([0.5, 0.5, 0.5, 1 / 3])
    assert [first[f"objects_{k}"] for k in ("matched", "missed", "false", "touched", "stray")] == list("12321")
    assert (second["name"], second["f1"], second["pixels"]) == ("b, c.png", "", "9")
