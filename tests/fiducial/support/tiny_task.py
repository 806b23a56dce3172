"""A task of the shared actions whose network fits a line: all of the runtime, in milliseconds per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fiducial.errors import Problem
from fiducial.spec import common
from fiducial.spec.knob import Section, knob, section
from fiducial.task import DataReport, Task


class Train(common.TrainSection):
    precision: str = knob("32-true", "Number format.")
    sync_batchnorm: bool = knob(False, "Batch statistics over all processes.")
    lr: float = knob(0.1, "Learning rate.", ge=0, usual=(1e-6, 0.5), aliases=("learning_rate",))


class Tensorboard(Section):
    enabled: bool = knob(False, "Pictures and histograms.")
    infrequent_logging_frequency: int = knob(2, "Every this many epochs.", ge=0)


class TrainWithPictures(Train):
    tensorboard: Tensorboard = section(Tensorboard, "Pictures.")


class Dataset(Section):
    rows: int = knob(12, "Rows of the training data.", ge=1)
    batch_size: int = knob(4, "Rows per batch.", ge=1)
    workers: int = knob(0, "Loader processes.", ge=0)
    path: common.OptionalText = knob(None, "A folder.")


class Spec(common.ExperimentBase):
    task: str = knob("line", "The task.")
    dataset: Dataset = section(Dataset, "Data.")
    train: TrainWithPictures = section(TrainWithPictures, "Training.")
    evaluate: common.RunModelSection = section(common.RunModelSection, "Evaluation.")
    inference: common.RunModelSection = section(common.RunModelSection, "Inference.")
    export: common.ExportSection = section(common.ExportSection, "Export.")


def check_spec(spec: Any, action: str) -> Iterator[Problem]:
    if spec.train.checkpoint_interval > spec.train.num_epochs and spec.train.checkpoint_interval_unit == "epoch":
        yield Problem("train.checkpoint_interval", "above num_epochs", "lower it")


def check_data(spec: Any, action: str, thorough: bool) -> DataReport:
    return DataReport({"train": {"rows": spec.dataset.rows, "labels": {"x": spec.dataset.rows}}})


def direction(metric: str) -> str:
    return "min" if metric.endswith("loss") else "max"


LINE = Task(
    network="tiny",
    name="line",
    title="Tiny",
    prefix="tiny_model",
    spec="tiny_task:Spec",
    check_spec="tiny_task:check_spec",
    check_data="tiny_task:check_data",
    runtime="tiny_runtime:Runtime",
    monitors="tiny_task:direction",
)
