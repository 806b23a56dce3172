"""A task of the shared actions whose network fits a line: all of the runtime, in milliseconds per epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fiducial.errors import Problem
from fiducial.metric_table import Metric, MetricTable
from fiducial.spec import common, engine
from fiducial.spec.knob import Section, knob, section
from fiducial.task import DataReport, ResumeRules, SplitFacts, Task, TaskRuntime
from fiducial.training.policy import TrainerPolicy


class Train(common.TrainSection):
    lr: float = knob(0.1, "Learning rate.", ge=0, usual=(1e-6, 0.5), aliases=("learning_rate",))
    optim: str = knob("adamw", "Optimiser: adamw, adam or sgd.")
    pictures: int = knob(0, "Pictures every this many epochs.", ge=0)


class Dataset(Section):
    rows: int = knob(12, "Rows of the training data.", ge=1)
    batch_size: int = knob(4, "Rows per batch.", ge=1)
    workers: int = knob(0, "Loader processes.", ge=0)
    path: common.OptionalText = knob(None, "A folder.")
    shift: float = knob(0.0, "Added to every input.")


class Spec(common.ExperimentBase):
    dataset: Dataset = section(Dataset, "Data.")
    train: Train = section(Train, "Training.")
    evaluate: common.RunModelSection = section(common.RunModelSection, "Evaluation.")
    inference: common.RunModelSection = section(common.RunModelSection, "Inference.")
    export: common.ExportSection = section(common.ExportSection, "Export.")
    quantize: common.QuantizeSection = section(common.QuantizeSection, "Quantization.")
    gen_trt_engine: engine.GenTrtEngineSection = section(engine.GenTrtEngineSection, "Engine.")


METRICS = MetricTable(
    (
        Metric("{stage}_loss", "min", "loss", "mean loss of a batch", stages=("train",), logged=()),
        Metric("{stage}_loss", "min", "loss", "mean loss of a row", stages=("val",)),
        Metric("{stage}_mean", "max", "fraction", "mean output", stages=("test",)),
    ),
    default="val_loss",
    main="{stage}_mean",
)


class Line(Task[Spec]):
    network, name, title, prefix = "tiny", "line", "Tiny", "tiny_model"
    metrics = METRICS
    resume = ResumeRules(rates=("train.lr",), fixed=("train.optim",))

    def spec_model(self) -> type[Spec]:
        return Spec

    def policy(self, spec: Spec) -> TrainerPolicy:
        return TrainerPolicy(pictures_every=spec.train.pictures)

    def check_spec(self, spec: Spec, action: str) -> Iterator[Problem]:
        if not spec.train.lr and action == "train":
            yield Problem("train.lr", "found 0", "nothing is learnt", "warning")

    def check_data(self, spec: Spec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        rows = spec.dataset.rows
        return DataReport({"train": SplitFacts(rows, "rows", labels={"x": rows})})

    def runtime(self, spec: Any) -> TaskRuntime:
        from tiny_runtime import Runtime

        return Runtime(spec)


LINE = Line()
