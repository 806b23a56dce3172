"""A training, validation and inference step of one network on a GPU that is not there: who waits for it, and where.

    python tests/support/fake_gpu.py NETWORK FOLDER   (FOLDER holds the data that ``small_runs.draw`` made)

Prints, as JSON, how often each place of the project waits in each stage. Tensors of the CPU are real, those of the GPU
have shapes alone (``FakeTensorMode``): each question for a value of theirs is written down and answered anyhow, so that
the step goes on. A program of its own, as the GPU is known to the whole process: autograd refuses fake tensors of
``cuda`` in a torch that was built for CUDA and finds none, so the device is one that torch knows by name alone.
"""

import functools
import json
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import SingleDeviceStrategy
from small_runs import ROOT, composed
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiducial.checkpoints.reading import read
from fiducial.run.evaluation import EvaluationModule
from fiducial.run.seeds import Position, StepSeed

aten = torch.ops.aten
GPU = "gpu:0"


class _Module(backend_registration._DummyBackendModule):
    """``torch.gpu``: not available, or torch would compute constants there."""

    def is_available(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class FakeGpu(Accelerator):
    """Where Lightning is to run."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(GPU)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "fake"

    def get_device_stats(self, device):
        return {}


class OneFakeGpu(SingleDeviceStrategy):
    """Moves nothing back to the CPU at the end."""

    def teardown(self):
        pass


class Waits(TorchDispatchMode):
    """Counts by place, while ``stage`` is set, what makes the host wait for the GPU."""

    def __init__(self):
        super().__init__()
        self.stage = ""
        self.found = defaultdict(Counter)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(_on_gpu(leaf) for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in (aten._to_copy, aten.copy_):
            return self._copied(func, args, kwargs)
        if packet is aten._local_scalar_dense:
            self._note("a value")
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        if packet in (aten.equal, aten.is_nonzero):
            self._note("a value")
            return True
        if packet is aten.nonzero:
            self._note("a shape")
            return args[0].new_zeros((len(args[0]), args[0].ndim), dtype=torch.int64)
        if packet in (aten.bincount, aten.masked_select, aten._unique2, aten.unique_dim, aten.repeat_interleave):
            raise AssertionError(f"{func}: not provided for; it waits for the GPU")
        if packet in (aten.index, aten.index_put, aten.index_put_):
            args = (args[0], [self._places(index, args) for index in args[1]], *args[2:])
        return func(*args, **kwargs)

    def _places(self, index, args):
        """An index without a mask: a mask is looked at, unless a single value is put there."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return index
        if len(args) > 2 and args[2].numel() == 1:
            return torch.zeros(1, dtype=torch.int64, device=index.device)
        self._note("a shape")
        if index.ndim == 1:  # pytorch-metric-learning's mean over the losses above 0
            return index.new_zeros(len(index), dtype=torch.int64)
        raise AssertionError("a mask of several dimensions: not provided for; it waits for the GPU")

    def _copied(self, func, args, kwargs):
        target = args[0].device if func.overloadpacket is aten.copy_ else torch.device(kwargs.get("device", GPU))
        source = args[1 if func.overloadpacket is aten.copy_ else 0]
        leaves = not _on_gpu(target) and _on_gpu(source)
        arrives = _on_gpu(target) and not _on_gpu(source) and source.numel() and source.ndim
        if (leaves or arrives) and not kwargs.get("non_blocking", len(args) > 2 and args[2]):
            self._note("to the host" if leaves else "to the GPU")
        if leaves and func.overloadpacket is aten._to_copy:
            with unset_fake_temporarily():
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)

    def _note(self, what):
        if not self.stage:
            return
        frame = sys._getframe(1)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(ROOT) and not {"tests", "site-packages"} & set(file.parts[len(ROOT.parts) :]):
                place = (
                    f"{file.relative_to(ROOT).as_posix()} {frame.f_code.co_qualname.partition('.<locals>')[0]}: {what}"
                )
                break
            frame = frame.f_back
        else:
            place = f"torch: {what}"
        self.found[self.stage][place] += 1


def _on_gpu(x):
    if isinstance(x, FakeTensor):
        x = x.fake_device
    return isinstance(x, torch.device) and x.type == "gpu"


class Stages(Callback):
    """What belongs to steps: all from the first batch, before it is copied, to the end of the epoch."""

    def __init__(self, waits):
        self.waits = waits

    def on_train_epoch_start(self, *_):
        self.waits.stage = "train"

    def on_validation_start(self, *_):
        self.waits.stage = ""

    def on_validation_epoch_start(self, *_):
        self.waits.stage = "val"

    def on_test_epoch_start(self, *_):
        self.waits.stage = "infer"

    def on_train_batch_end(self, *_):
        self.waits.found["train"]["batches"] += 1

    def on_validation_batch_end(self, *_):
        self.waits.found["val"]["batches"] += 1

    def on_test_batch_end(self, *_):
        self.waits.found["infer"]["batches"] += 1

    def on_validation_epoch_end(self, *_):
        self.waits.stage = ""

    on_train_epoch_end = on_test_epoch_end = on_validation_epoch_end


def trainer(waits):
    return pl.Trainer(
        strategy=OneFakeGpu(device=torch.device(GPU), accelerator=FakeGpu()),
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        limit_test_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        callbacks=[Stages(waits), Position(), StepSeed(0)],
    )


@contextmanager
def fake_gpu():
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits


def main(name, folder):
    task, given = composed(name, folder)
    runtime = task.runtime(given.spec)
    module, data = runtime.module(pretrained=False), runtime.datamodule()
    module.policy = task.policy(given.spec)
    module.kpis = lambda stage: {}  # at the end of an epoch values are read
    path = Path(folder) / f"{name}.pth"
    torch.save({"state_dict": module.state_dict(), "epoch": 0, "global_step": 0}, path)
    task, given = composed(name, folder, action="inference")
    runtime = task.runtime(given.spec)
    runtime.action = "inference"
    predictor = runtime.torch_predictor(read(path))
    results = Path(folder) / "results"
    results.mkdir(exist_ok=True)
    evaluator = runtime.evaluator("infer", folder=results)
    loaders = runtime.loaders("infer")
    # in inference mode operators come whole, and composite ones wait inside
    predict = functools.partial(type(predictor).predict.__wrapped__, predictor)
    predictor.predict = torch.no_grad()(predict)
    with fake_gpu() as waits:
        trainer(waits).fit(module, datamodule=data)
        trainer(waits).test(EvaluationModule(predictor, evaluator), dataloaders=list(loaders), verbose=False)
    return waits.found


if __name__ == "__main__":
    *names, folder = sys.argv[1:]
    backend_registration._setup_privateuseone_for_python_backend("gpu", _Module())
    print(json.dumps({name: main(name, folder) for name in names}))
