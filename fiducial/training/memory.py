# mypy: disable-error-code="no-untyped-call"
"""How much memory a training step takes, found before anything is trained and without a GPU.

Two steps run with tensors that have shapes and no values (``FakeTensorMode``), at any batch size in the same time; what
would be allocated is added up. Beside it a GPU needs memory for its context, for workspaces of its libraries, and for
what falls between blocks: :data:`RESERVED`.
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fiducial.prediction import Batch
from fiducial.task import TaskRuntime
from fiducial.training.policy import TrainerPolicy

__all__ = ["RESERVED", "StepMemory"]

RESERVED = 0.1
"""Share of a GPU's memory that is left for other things than tensors."""
_TRIES = 4

aten = torch.ops.aten


class StepMemory:
    """Of one spec: bytes at the peak of a training step, on one device, as a function of its batch size."""

    def __init__(self, runtime: TaskRuntime, policy: TrainerPolicy) -> None:
        self._runtime, self._policy = runtime, policy
        loader: Any = runtime.datamodule().train_dataloader()
        items = [loader.dataset[place] for place in next(iter(loader.batch_sampler))]
        self._batch: Batch = loader.collate_fn(items)
        self.batch_size = len(items)
        """That of the spec."""
        self._known: dict[int, int] = {}

    def peak(self, batch_size: int) -> int:
        """Weights, gradients, what the optimizer keeps, the batch, and all that is held for the backward pass."""
        if batch_size not in self._known:
            self._known[batch_size] = self._run(batch_size)
        return self._known[batch_size]

    def largest(self, memory: float) -> int:
        """The largest batch whose peak is at most ``memory`` bytes; 0 where there is none."""
        least = min(2, self.batch_size)  # a batch norm may need two
        low, high = self.batch_size, 2 * self.batch_size
        for _ in range(_TRIES):  # memory grows by nearly the same for each item
            slope = (self.peak(high) - self.peak(low)) / (high - low)
            wanted = max(least, math.floor(low + (memory - self.peak(low)) / max(slope, 1.0)))
            if wanted in (low, high):
                break
            low, high = sorted((min((low, high), key=lambda size: abs(size - wanted)), wanted))
        return max((size for size, peak in self._known.items() if peak <= memory), default=0)

    def _run(self, batch_size: int) -> int:
        meter = _Meter()
        with _quiet(), torch.device("meta"):
            module = self._runtime.module(pretrained=False)
        module.policy = self._policy
        for log in ("log", "log_dict"):  # they copy values
            setattr(module, log, lambda *_, **__: None)
        with _quiet(), FakeTensorMode(allow_non_fake_inputs=True), meter:
            module.to_empty(device="cpu")
            meter.hold(module)
            batch = {name: _resized(value, batch_size) for name, value in self._batch.items()}
            _trainer(self._policy).fit(module, train_dataloaders=_Steps(batch))
        return meter.peak


@dataclass
class _Steps:
    """The batch twice: in the second step the optimizer has its state."""

    batch: Batch

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * 2)


class _Stay(SingleDeviceStrategy):
    """Moves nothing: a module cannot exchange the fake tensors it has."""

    def model_to_device(self) -> None:
        pass

    def teardown(self) -> None:
        pass


class _Meter(TorchDispatchMode):
    """Adds up the storages that are alive. A question for a value that is not there is answered somehow: of a truth,
    with yes; of a number of places, with as many as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def hold(self, module: nn.Module) -> None:
        """Count what a module has."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_filled, (args, kwargs or {}))
        if func.namespace == "fiducial" and not func._schema.returns:  # works in place
            return None
        found = self._answer(func, args, kwargs)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return found

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():  # labels and the like, whose values decide about shapes
                return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException:
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        except DynamicOutputShapeException:
            if func.overloadpacket is aten.nonzero:
                return args[0].new_zeros((len(args[0]), args[0].ndim), dtype=torch.int64)
            if func.overloadpacket is aten.bincount:
                return args[0].new_zeros(args[2], dtype=torch.int64)
            places = [part for index in args[1] for part in _places(index)]
            return func(args[0], places, *args[2:], **kwargs)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _filled(leaf: Any) -> Any:
    """A tensor beside the module's own, which was made on ``meta``, as one of the CPU."""
    if isinstance(leaf, Tensor) and leaf.device.type == "meta":
        return torch.empty(leaf.shape, dtype=leaf.dtype)
    return leaf


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index, of a mask as many as it has dimensions."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_zeros(index.numel(), dtype=torch.int64) for _ in range(index.ndim)]


def _resized(value: Any, batch_size: int) -> Any:
    """An entry of a batch for another number of items, without values where it has several numbers for an item."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1:
        with unset_fake_temporarily():
            return torch.stack(list(islice(cycle(value), batch_size)))
    return torch.empty((batch_size, *value.shape[1:]), dtype=value.dtype)


def _trainer(policy: TrainerPolicy) -> pl.Trainer:
    precision: Any = policy.precision.replace("16-mixed", "bf16-mixed").replace("bfbf", "bf")  # of the same size
    return pl.Trainer(
        accelerator="cpu",  # by name: of an object Lightning does not see that autocast is to be the CPU's
        strategy=_Stay(torch.device("cpu")),
        precision=precision,
        gradient_clip_val=None if policy.manual else policy.gradient_clip,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """What is said about a training does not concern this one."""
    names = ("fiducial", "pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
