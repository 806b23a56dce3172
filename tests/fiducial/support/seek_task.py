"""A network that is as unlike :mod:`tiny_task` as the contract allows: embeddings and boxes of annotated shapes.

Two optimizers stepped by hand, accumulated and clipped; named outputs; a gallery and queries in one action; an
annotation file; results and files of its own; metrics with blanks in their names; a verb with sub-verbs; a spec that
may come wrapped. No ``precision``, no ``task`` key, no loss in validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiducial.actions.action import Action, refused
from fiducial.errors import Problem
from fiducial.metric_table import Metric, MetricTable
from fiducial.spec import common
from fiducial.spec.knob import Section, knob, section
from fiducial.task import DataReport, ResumeRules, SplitFacts, Task, TaskRuntime
from fiducial.training.policy import TrainerPolicy


class Rates(Section):
    """One optimizer."""

    base_lr: float = knob(0.05, "Learning rate.", gt=0)


class Optim(Section):
    """Both optimizers."""

    trunk: Rates = section(Rates, "Of the trunk.")
    head: Rates = section(Rates, "Of the head.")


class Train(common.TrainSection):
    """How it trains."""

    batch_size: int = knob(6, "Shapes per batch.", ge=2)
    per_kind: int = knob(2, "Shapes of one kind in a batch.", ge=2)
    accum_grad_batches: int = knob(2, "Batches per step.", ge=1)
    clip_grad_norm: float = knob(0.5, "Largest norm of the gradient.", gt=0)
    optim: Optim = section(Optim, "Both optimizers.")


class Evaluate(common.RunModelSection):
    """``evaluate``."""

    topk: int = knob(1, "Neighbours.", ge=1)


class Gallery(Section):
    """``gallery``: the reference embeddings that a user keeps."""

    checkpoint: common.OptionalText = knob(None, "Model that embeds.")
    results_dir: common.OptionalText = knob(None, "Folder.")
    label: str = knob("new", "What to call what is added.")


class Data(Section):
    """Annotated shapes."""

    annotations: str = knob("shapes.json", "The annotation file.")
    val_batch_size: int = knob(4, "Shapes per batch without training.", ge=1)
    size: int = knob(6, "Numbers of a shape.", ge=1)


class Spec(common.ExperimentBase):
    """Everything."""

    data: Data = section(Data, "Data.")
    train: Train = section(Train, "Training.")
    evaluate: Evaluate = section(Evaluate, "Evaluation.")
    inference: common.RunModelSection = section(common.RunModelSection, "Inference.")
    export: common.ExportSection = section(common.ExportSection, "Export.")
    gallery: Gallery = section(Gallery, "The gallery.")


METRICS = MetricTable(
    (
        Metric("train_loss", "min", "loss", "mean loss of a batch", stages=("train",), logged=()),
        Metric("trunk_base_lr", "min", "text", "learning rate of the trunk", stages=("train",)),
        Metric("{stage} Precision at Rank 1", "max", "fraction", "queries whose nearest is of their kind"),
        Metric("{stage}_box_error", "min", "pixels", "mean distance of corners", logged=("{stage}/box error",)),
    ),
    default="val Precision at Rank 1",
)


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file."""
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


class Seek(Task[Spec]):
    """The task."""

    network, name, title, prefix = "seek_net", "seek", "Seek", "seek_model"
    metrics = METRICS
    resume = ResumeRules(rates=("train.optim.trunk.base_lr", "train.optim.head.base_lr"))

    def spec_model(self) -> type[Spec]:
        return Spec

    def own_actions(self) -> tuple[Action, ...]:
        def gallery(task: Task[Any], run: Any) -> Any:
            from seek_runtime import gallery as work

            return work(task, run)

        own = Action("gallery", "keep reference embeddings", run=gallery, model_key="checkpoint", verbs=("add", "list"))
        return (own, refused("prune", "Seek models are not pruned"))

    def splits(self, action: Action) -> tuple[str, ...]:
        return ("gallery", "queries") if action.name == "evaluate" else action.splits

    def unwrap(self, tree: dict[str, Any]) -> dict[str, Any]:
        return tree["seek"] if tree.get("tool") == "seek" else tree

    def policy(self, spec: Spec) -> TrainerPolicy:
        return TrainerPolicy(
            manual=True,
            accumulate=spec.train.accum_grad_batches,
            gradient_clip=spec.train.clip_grad_norm,
            sanity_batches=0,
        )

    def check_spec(self, spec: Spec, action: str) -> Iterator[Problem]:
        if spec.train.batch_size % spec.train.per_kind:
            found = f"{spec.train.batch_size} is no multiple of train.per_kind {spec.train.per_kind}"
            yield Problem("train.batch_size", found, "make it one")

    def check_data(self, spec: Spec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        report = DataReport()
        try:
            shapes = read_annotations(spec.data.annotations)["shapes"]
        except OSError:
            report.problems.append(Problem("data.annotations", f"no file {spec.data.annotations}", "name one"))
            return report
        kinds: dict[str, int] = {}
        for shape in shapes:
            kinds[shape["kind"]] = kinds.get(shape["kind"], 0) + 1
        for split in splits:
            report.facts[split] = SplitFacts(len(shapes), "shapes", labels=kinds)
        return report

    def runtime(self, spec: Spec) -> TaskRuntime:
        from seek_runtime import Runtime

        return Runtime(spec)


SEEK = Seek()


def write_annotations(path: Path, *, kinds: int = 3, each: int = 4) -> Mapping[str, Any]:
    """Shapes of some kinds, of which the last has no place for a box."""
    shapes = [
        {"id": 10 * kind + number, "kind": f"kind {kind}", "seed": 100 * kind + number, "box": [kind, 0, kind + 2, 3]}
        for kind in range(kinds)
        for number in range(each)
    ]
    shapes[-1]["box"] = None
    content = {"info": {"from": "a tool"}, "shapes": shapes}
    path.write_text(json.dumps(content))
    return content
