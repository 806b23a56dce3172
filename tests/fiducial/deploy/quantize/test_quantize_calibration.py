"""What a static quantization observes."""

import pytest
import tiny_runtime
import torch
from tiny_task import Spec

from fiducial.data.normalization import Normalization
from fiducial.deploy.pixels import PixelInputs
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.errors import DatasetError
from fiducial.prediction import Graph, GraphInput
from fiducial.task import CalibrationData

GRAPH = Graph({"a": GraphInput("first", (2,)), "b": GraphInput("second", ())}, ("y",), "batch")


def data(count):
    items = [{"first": torch.full((2,), i), "second": torch.tensor(-i), "row": i} for i in range(count)]
    return CalibrationData(items, "x")


def test_both_inputs_evenly_spread_and_the_same_every_time():
    batches = CalibrationBatches(data(10), GRAPH, items=4, batch_size=2)
    assert len(batches) == 2
    for _ in range(2):
        found = list(batches)
        assert [sorted(batch) for batch in found] == [["a", "b"]] * 2
        assert [batch["b"].tolist() for batch in found] == [[0, -2], [-5, -7]]
        assert [batch["a"].tolist() for batch in found] == [[[0, 0], [2, 2]], [[5, 5], [7, 7]]]


def test_every_batch_is_full():
    batches = CalibrationBatches(data(3), GRAPH, items=8, batch_size=2)
    assert [batch["b"].tolist() for batch in batches] == [[0, -1], [-2, -2]]
    assert [batch["b"].tolist() for batch in batches.first(1)] == [[0, -1]]


def test_graphs_that_take_pixels_get_them():
    graph = Graph({"a": GraphInput("first", (3, 4, 5), image=True)}, ("y",), "batch")
    items = [{"first": torch.full((3, 4, 5), i / 255)} for i in range(3)]
    pixels = PixelInputs(["a"], Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    (batch,) = CalibrationBatches(CalibrationData(items, "x"), graph, items=3, batch_size=3, pixels=pixels)
    assert (batch["a"].dtype, batch["a"].shape) == (torch.uint8, (3, 4, 5, 3))
    assert batch["a"][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_no_items():
    with pytest.raises(DatasetError, match="no items to calibrate with"):
        CalibrationBatches(data(0), GRAPH, items=4)


def test_items_of_another_shape_are_named_together():
    graph = Graph({"a": GraphInput("first", (3,)), "b": GraphInput("second", (1,))}, ("y",), "batch")
    with pytest.raises(DatasetError, match=r"a is \[2\] instead of \[3\]"):
        CalibrationBatches(data(3), graph, items=4).check()


def test_items_that_cannot_be_read_are_named_together():
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, place):
            raise DatasetError(f"{place}.png", "cut off", "copy it again")

    with pytest.raises(DatasetError) as caught:
        CalibrationBatches(CalibrationData(Broken(), "x"), GRAPH, items=9).check()
    assert [problem.where for problem in caught.value.problems] == ["0.png", "1.png", "2.png"]


def test_a_task_without_calibration_data_gives_its_samples():
    runtime = tiny_runtime.Runtime(Spec())
    assert len(runtime.calibration().items) == 12
    with pytest.raises(DatasetError, match="the task reads no folders"):
        runtime.calibration(["x"], "some.key")
