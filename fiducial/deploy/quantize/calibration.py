"""Batches of real inputs whose values a static quantization observes: the same ones in every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, repeat

import torch
from torch import Tensor

from fiducial.data.checks import spread
from fiducial.deploy.pixels import PixelInputs
from fiducial.errors import DatasetError, Problem, UserError
from fiducial.prediction import Graph
from fiducial.task import CalibrationData

__all__ = ["CalibrationBatches"]


class CalibrationBatches:
    """Batches by the names of a graph's inputs, all of one size, of items evenly spread over the data.

    Items are read each time that they are gone through: they take no memory. Where they do not fill the last batch, its
    last item is repeated.

    Args:
        data: From :meth:`fiducial.task.TaskRuntime.calibration`.
        graph: The inputs that are fed: all of them.
        items: How many are used at most.
        batch_size: Items of a batch.
        pixels: What makes the inputs of a graph that takes pixels; None where it takes them as they are prepared.

    Raises: DatasetError when there are none.
    """

    def __init__(
        self,
        data: CalibrationData,
        graph: Graph,
        *,
        items: int,
        batch_size: int = 1,
        pixels: PixelInputs | None = None,
    ) -> None:
        if not len(data.items):
            raise DatasetError(data.source, "no items to calibrate with", "name data that have some")
        self.data, self.graph, self.batch_size, self.pixels = data, graph, batch_size, pixels
        self.places = spread(range(len(data.items)), items)

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.places), self.batch_size):
            places = self.places[start : start + self.batch_size]
            items = [self._inputs(place) for place in places]
            items += repeat(items[-1], self.batch_size - len(items))
            batch = {name: torch.stack([item[name] for item in items]) for name in self.graph.inputs}
            yield batch if self.pixels is None else self.pixels(batch)

    def _inputs(self, place: int) -> dict[str, Tensor]:
        item = self.data.items[place]
        return {name: item[entry.batch_key] for name, entry in self.graph.inputs.items()}

    def check(self) -> None:
        """Read every item once. Raises: DatasetError naming all that cannot be read, or are of another shape."""
        problems: list[Problem] = []
        for place in self.places:
            try:
                self._check_shapes(self._inputs(place))
            except UserError as error:
                problems.extend(error.problems)
        if problems:
            raise DatasetError.of(dict.fromkeys(problems))

    def _check_shapes(self, inputs: Mapping[str, Tensor]) -> None:
        for name, entry in self.graph.inputs.items():
            if tuple(inputs[name].shape) != entry.shape:
                found = f"{name} is {list(inputs[name].shape)} instead of {list(entry.shape)}"
                raise DatasetError(self.data.source, found, "use data of the task's own kind")

    def first(self, count: int) -> list[dict[str, Tensor]]:
        """The first batches, held."""
        return list(islice(self, count))
