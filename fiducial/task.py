"""What a model package provides: the one contract between a network and everything shared.

A :class:`Task` is light: its methods import what they need when they are called, so that ``--help`` and
``check --spec-only`` answer at once. :meth:`Task.runtime` makes the half that needs torch, a :class:`TaskRuntime`.
Nothing outside these classes, and the base classes in ``fiducial.training``, is asked of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from fiducial.actions.action import Action
from fiducial.errors import DatasetError, Problem
from fiducial.metric_table import MetricTable, Stage
from fiducial.spec.shorthands import COMMON, Shorthands
from fiducial.training.policy import TrainerPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fiducial.checkpoints.reading import Checkpoint
    from fiducial.deploy.card import ModelCard
    from fiducial.ops import Formulation
    from fiducial.prediction import Batch, Evaluator, Graph, Predictor
    from fiducial.spec.common import ExperimentBase
    from fiducial.training.data import TrainingData
    from fiducial.training.module import TrainingModule

__all__ = ["CalibrationData", "DataReport", "Items", "ResumeRules", "SplitFacts", "Task", "TaskRuntime", "dispatch"]

MOST_SAMPLES = 512
"""Items that a quantization observes of a task without calibration data."""
SpecT = TypeVar("SpecT", bound="ExperimentBase")


@dataclass(frozen=True)
class ResumeRules:
    """Spec keys, or beginnings of them, that may change when a training is continued without a word.

    ``free`` say how long, where and on what a training runs, not what it makes. ``kept`` continue with the values of
    the checkpoint, whose optimizer holds them. ``rates`` are learning rates: a new one counts from the batch that
    training is continued at, so that a run that diverged can go on. ``fixed`` cannot change. ``also_free`` is added to
    ``free``.
    """

    also_free: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    free: tuple[str, ...] = (
        *("results_dir", "encryption_key", "wandb.", "automl", "inference.", "export.", "gen_trt_engine.", "quantize."),
        *("evaluate.checkpoint", "evaluate.results_dir", "evaluate.trt_engine"),
        *("train.num_epochs", "train.results_dir", "train.resume_training_checkpoint_path", "train.checkpoint"),
        *("train.validation_interval", "train.tensorboard", "train.keep_checkpoints", "train.enable_lr_monitor"),
        "train.compile",
    )
    free_endings: tuple[str, ...] = (".workers", ".num_workers_per_gpu", ".cache", "_mb")

    def is_free(self, key: str) -> bool:
        """Whether a change of the key needs no word."""
        return key.startswith((*self.free, *self.also_free)) or key.endswith(self.free_endings)


@dataclass(frozen=True)
class SplitFacts:
    """What a look at one part of a dataset found worth showing."""

    count: int
    unit: str
    """What is counted: ``images``, ``boxes``, ``rows``."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """How many items, or which share, each label has."""
    details: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a report."""
        labels = {"labels": dict(self.labels)} if self.labels else {}
        return {**self.details, self.unit: self.count, **labels}


@dataclass
class DataReport:
    """What a look at a dataset found, by split."""

    facts: dict[str, SplitFacts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class Items(Protocol):
    """Items of a dataset, not batched, by their place."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Batch: ...


@dataclass(frozen=True)
class CalibrationData:
    """Real items whose values a static quantization observes."""

    items: Items
    """As evaluation prepares them: nothing about them is random."""
    source: str
    """What they are, in words."""


class TaskRuntime(ABC):
    """The part of a task that needs torch. One instance serves one spec."""

    spec: Any
    action: str = "inference"
    """The action that it serves, whose section of the spec may say how a model is used; a library's is inference."""

    providers: tuple[str, ...] = ()
    """What onnxruntime is to run an exported model on; empty: what it finds best."""

    @property
    def section(self) -> Any:
        """The keys of the action; None where the spec has none."""
        return getattr(self.spec, self.action, None)

    @abstractmethod
    def network(self) -> nn.Module:
        """The untrained network."""

    @abstractmethod
    def module(self, *, pretrained: bool) -> TrainingModule:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""

    @abstractmethod
    def datamodule(self) -> TrainingData:
        """The LightningDataModule of ``train``."""

    @abstractmethod
    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> Sequence[Iterable[Any]]:
        """Everything that ``val``, ``test`` or ``infer`` goes through, in the order of the dataset.

        Several where the sides differ (a gallery and its queries). Ranks share whole batches of one list.
        """

    @abstractmethod
    def torch_predictor(self, checkpoint: Checkpoint) -> Predictor:
        """A predictor over a checkpoint's weights, which has adopted the checkpoint's card."""

    @abstractmethod
    def adopt(self, card: ModelCard) -> None:
        """Prepare inputs as the model with this card was trained, whatever the spec says, with a warning if it differs.

        Raises: CheckpointError naming the keys in which spec and card contradict each other.
        """

    @abstractmethod
    def graph(self) -> Graph:
        """Names and shapes of the exported model."""

    @abstractmethod
    def card(self) -> ModelCard:
        """What a model made with this spec must say of itself so that others prepare its inputs right."""

    @abstractmethod
    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> Evaluator[Any]:
        """What collects the outputs of a stage; ``folder`` is where it writes, None where it must not."""

    def samples(self, count: int) -> Sequence[Batch]:
        """At most so many real items, not batched, to compare an exported model on; empty where no data is there."""
        return ()

    def calibration(self, folders: Sequence[str] = (), key: str = "") -> CalibrationData:
        """What a static quantization observes: the data of the task's calibration key, else those of training.

        ``folders``: instead of what that key names, what another one, ``key``, does. A task that has no such data of
        its own gives its samples.

        Raises: UserError naming the key, for data that are not there, or are of another kind.
        """
        if folders:
            raise DatasetError(key, f"{', '.join(folders)}: the task reads no folders", "leave it empty")
        return CalibrationData(self.samples(MOST_SAMPLES), "the spec's dataset")

    def formulation(self, given: frozenset[str]) -> Formulation:
        """How deformable attention is exported; ``given`` are the spec keys that the user set."""
        return "gather"

    def checkpoint_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the network that :meth:`torch_predictor` runs, under names that a checkpoint has."""
        return dict(weights)

    def write_beside_export(self, onnx_path: Path) -> tuple[Path, ...]:
        """Files that other programs want beside the ONNX file, where the spec asks for them."""
        return ()


class Task(ABC, Generic[SpecT]):
    """One task of one network. Stateless and light."""

    network: ClassVar[str]
    """TAO's name of the network, also the name of its command."""
    name: ClassVar[str]
    """The value of the spec key ``task`` where a network has several; else its short name."""
    title: ClassVar[str]
    """How status messages call the network."""
    prefix: ClassVar[str]
    """First part of ``<prefix>_latest.pth``."""
    metrics: ClassVar[MetricTable]
    resume: ClassVar[ResumeRules] = ResumeRules()
    onnx_beside_checkpoint: ClassVar[bool] = True
    """Where an exported file goes that the spec does not name: beside the checkpoint, else into the results folder."""
    bf16: ClassVar[str] = "train.precision=bf16-mixed"
    """What makes training compute in bfloat16, where the network can."""
    memory_savers: ClassVar[tuple[str, ...]] = ()
    """What a user can do, beside a smaller batch, when memory runs out."""

    shorthands: ClassVar[Shorthands] = COMMON
    """Short names that overrides may have, and the keys that each sets."""
    template: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By action, values of keys that its template shows in place of the knobs'; below ``""`` those of every action."""

    @abstractmethod
    def spec_model(self) -> type[SpecT]:
        """The class of the task's specs. Tasks of one network share it, with a key ``task``."""

    @abstractmethod
    def check_spec(self, spec: SpecT, action: str) -> Iterator[Problem]:
        """The rules that span keys. No torch."""

    @abstractmethod
    def check_data(self, spec: SpecT, splits: Sequence[str], *, thorough: bool) -> DataReport:
        """What the files of some :meth:`splits` say; ``thorough`` looks at each of them. No torch."""

    @abstractmethod
    def runtime(self, spec: SpecT) -> TaskRuntime:
        """The half that needs torch, for one spec."""

    def policy(self, spec: SpecT) -> TrainerPolicy:
        """How the shared Trainer runs the task's module."""
        return TrainerPolicy()

    def check_weights(self, spec: SpecT, resume: Path | None = None) -> Iterable[Problem]:
        """Weights that a training would load, and that are not there or do not fit: told by their names and shapes.

        ``resume``: the checkpoint that it would continue from, instead of what the spec begins with. Torch is imported
        where there is something to compare.
        """
        return ()

    def unsearched(self, spec: SpecT, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        """Keys, or beginnings of keys, that a search leaves alone under this spec, and why: they would change nothing.

        ``searched`` are those that are to be searched beside. ``warm``: trainings begin with the weights of others.
        """
        return {}

    def own_actions(self) -> tuple[Action, ...]:
        """What can be done with the network beside the standard actions; of equal names, its own counts."""
        return ()

    def splits(self, action: Action) -> tuple[str, ...]:
        """The parts of the dataset that an action reads, by the task's names for them."""
        return action.splits

    def unwrap(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The spec inside a YAML tree that another program's spec wraps; the tree itself where nothing does."""
        return tree

    def monitor(self, train: Any) -> tuple[str, str]:
        """The metric that chooses the best checkpoint of a spec's ``train`` section, and its direction."""
        kept = train.checkpointer
        name = kept.monitor or self.metrics.default
        return name, kept.mode or self.metrics.direction(name)


def dispatch(tasks: Sequence[Task[Any]], name: str) -> Task[Any]:
    """The task with this name. Raises: KeyError."""
    return {task.name: task for task in tasks}[name]
