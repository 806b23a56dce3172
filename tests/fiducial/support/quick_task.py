"""A task whose trainings take a moment and no torch: for searches, whose trainings are processes.

The loss of an epoch is ``(log10(lr) + 2)**2 + 0.01 * width + 1 / epoch``: lr 0.01 and width 1 are best. ``fault`` and
its epoch make a training fail in a way of its own.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fiducial.actions.action import Action
from fiducial.actions.result import Result
from fiducial.errors import DatasetError, Problem
from fiducial.metric_table import Metric, MetricTable
from fiducial.run.run import Run
from fiducial.spec import common
from fiducial.spec.knob import Section, item, knob, section
from fiducial.task import DataReport, ResumeRules, Task, TaskRuntime

Fault = Literal["", "crash", "memory", "nan", "diverged", "hang"]


class Train(common.TrainSection):
    lr: float = knob(0.1, "Learning rate.", gt=0, schema_range=(0, math.inf), automl=True)
    width: int = knob(8, "Width.", ge=1, le=64, automl=True)
    kind: Literal["a", "b", "c"] = knob("b", "Kind.", automl=None)
    flip: bool = knob(False, "Flip.", automl=True)
    unused: float = knob(0.5, "Of kind a alone.", ge=0, le=1, automl=True)
    momentum: float = knob(0.9, "Momentum.", ge=0, le=1, search=(0.8, 0.99))
    closed: int = knob(3, "Not to be searched.", ge=0, le=9, automl=False)
    weights: list[float] = knob(
        [1.0, 5.0], "Weights.", items={1: item("Of defects.", ge=0, usual=(1, 100), automl=None)}
    )
    fault: Fault = knob("", "How it fails.", automl=None)
    fault_epoch: int = knob(1, "In which epoch, from 1.", ge=1)
    seconds: float = knob(0.0, "Of an epoch.", ge=0)


class Dataset(Section):
    path: str = knob("data", "Where data is.")
    test: str = knob("test", "Where the test set is.")


class Spec(common.ExperimentBase):
    dataset: Dataset = section(Dataset, "Data.")
    train: Train = section(Train, "Training.")
    evaluate: common.RunModelSection = section(common.RunModelSection, "Evaluation.")


METRICS = MetricTable(
    (
        Metric("{stage}_loss", "min", "loss", "a loss"),
        Metric("{stage}_acc", "max", "percent", "an accuracy", val_alias="acc"),
        Metric("{stage}_iou_{class}", "max", "fraction", "of a class"),
        Metric("{stage}_note", "max", "text", "a text"),
    ),
    default="val_loss",
)


def loss_of(train: Any, epoch: int) -> float:
    return (math.log10(train.lr) + 2) ** 2 + 0.01 * train.width + 1 / epoch


def kpis_of(stage: str, loss: float) -> dict[str, float]:
    return {f"{stage}_loss": loss, f"{stage}_acc": 100 / (1 + loss), f"{stage}_iou_1": 1 / (1 + loss)}


def train(task: Any, run: Run) -> Result:
    spec = run.spec.train
    state = run.folder / "state.json"
    done = json.loads(state.read_text()) if state.is_file() else {"epoch": 0, "best": None}
    for epoch in range(done["epoch"] + 1, spec.num_epochs + 1):
        time.sleep(spec.seconds)
        if spec.fault and epoch == spec.fault_epoch:
            fail(spec.fault)
        loss = math.nan if spec.fault == "nan" else loss_of(spec, epoch)
        best = loss == loss and (done["best"] is None or loss < done["best"])
        done = {"epoch": epoch, "best": loss if best else done["best"]}
        write(run.folder, epoch, best, spec.checkpointer.replace_periodic)
        state.write_text(json.dumps(done))
        if epoch % spec.validation_interval == 0:
            kpis = {**kpis_of("val", loss), "val_note": "text"}
            run.status.write("Eval metrics generated.", kpi=kpis, epoch=epoch - 1)
    return Result("train", run.folder)


def fail(fault: str) -> None:
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if fault == "diverged":
        raise ValueError("diverged: model.weight is no longer finite in epoch 0, step 3")
    if fault == "hang":
        time.sleep(60)


def write(folder: Path, epoch: int, best: bool, replaces: bool) -> None:
    if replaces and not best:
        return
    name = f"model_best_{epoch - 1:03d}.pth" if replaces else f"model_epoch_{epoch - 1:03d}_step_{epoch:05d}.pth"
    for old in folder.glob("model_best_*.pth"):
        old.unlink()
    (folder / name).write_bytes(b"weights, in a way " + bytes(5000))


def evaluate(task: Any, run: Run) -> Result:
    train = Path(run.spec.evaluate.checkpoint).parent
    best = json.loads((train / "state.json").read_text())["best"]
    kpis = kpis_of("test", best)
    run.status.write("Test metrics generated.", kpi=kpis)
    return Result("evaluate", run.folder, kpis)


class Quick(Task[Spec]):
    network, name, title, prefix = "quick", "quick", "Quick", "quick_model"
    metrics = METRICS
    resume = ResumeRules(kept=("train.momentum",), rates=("train.lr",), fixed=("train.width",))

    def spec_model(self) -> type[Spec]:
        return Spec

    def check_spec(self, spec: Spec, action: str) -> Iterator[Problem]:
        if action == "train" and spec.train.width == 63:
            yield Problem("train.width", "63", "choose another")
        if spec.train.checkpointer.monitor == "val_iou_7":
            yield Problem("train.checkpointer.monitor", "unknown metric 'val_iou_7'", "there is class 1 alone")

    def check_data(self, spec: Spec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        report = DataReport()
        if "test" in splits and not spec.dataset.test:
            report.problems.append(Problem("dataset.test", "not set", "set it"))
        if "train" in splits and not spec.dataset.path:
            report.problems.append(Problem("dataset.path", "not set", "set it"))
        return report

    def unsearched(self, spec: Spec, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        return {} if spec.train.kind == "a" else {"train.unused": f"kind is {spec.train.kind}"}

    def own_actions(self) -> tuple[Action, ...]:
        return (
            Action("train", "train", run=train, splits=("train", "val")),
            Action("evaluate", "evaluate", run=evaluate, splits=("test",), model_key=""),
        )

    def runtime(self, spec: Any) -> TaskRuntime:
        raise DatasetError("runtime", "there is none", "do not ask")


QUICK = Quick()
