"""What the command line can do: one row for each action, also for those that this version refuses. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action, refused
from fiducial.task import Task

if TYPE_CHECKING:
    from fiducial.actions.result import Result
    from fiducial.run.run import Run

__all__ = ["STANDARD", "actions_of", "folder_of"]


def _train(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.train import train

    return train(task, run)


def _evaluate(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.evaluate import evaluate

    return evaluate(task, run)


def _inference(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.evaluate import inference

    return inference(task, run)


def _export(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.export import export

    return export(task, run)


def _quantize(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.quantize import quantize

    return quantize(task, run)


def _gen_trt_engine(task: Task[Any], run: Run) -> Result:
    from fiducial.actions.gen_trt_engine import gen_trt_engine

    return gen_trt_engine(task, run)


def _automl(task: Task[Any], run: Run) -> Result:
    from fiducial.automl.action import automl

    return automl(task, run)


STANDARD: tuple[Action, ...] = (
    Action("train", "train a model", run=_train, splits=("train", "val")),
    Action(
        "evaluate",
        "measure a checkpoint or an exported model on the test set",
        run=_evaluate,
        model_key="checkpoint",
        splits=("test",),
        engine_folder="trt_evaluate",
    ),
    Action(
        "inference",
        "run a model on data without labels",
        run=_inference,
        model_key="checkpoint",
        splits=("infer",),
        engine_folder="trt_inference",
    ),
    Action("export", "write a checkpoint as ONNX", run=_export, model_key="checkpoint"),
    Action("quantize", "make a model smaller and faster with 8-bit numbers", run=_quantize, model_key="model_path"),
    Action(
        "gen_trt_engine",
        "build a TensorRT engine from an exported model",
        run=_gen_trt_engine,
        model_key="onnx_file",
        model_suffixes=(".onnx",),
    ),
    Action(
        "automl",
        "search for better spec values by many trainings; status: how a search stands",
        run=_automl,
        splits=("train", "val"),
        verbs=("run", "status"),
        default_verb="run",
        side_by_side=True,
    ),
    Action("check", "look for problems in a spec and its dataset, without a model"),
    Action("default_specs", "print every key with its default and what it means, as YAML"),
    Action("schema", "write JSON schemas, spec templates and the reference of all keys (results_dir=DIR)"),
    refused("prune", "models of {title} are not pruned"),
    refused("retrain", "models of {title} are not pruned and retrained"),
)
"""What every network has."""


def actions_of(tasks: Sequence[Task[Any]]) -> dict[str, Action]:
    """Every action of a network's tasks by name, the standard ones first."""
    own = [action for task in tasks for action in task.own_actions()]
    return {action.name: action for action in (*STANDARD, *own)}


def folder_of(action: Action, section: Mapping[str, Any]) -> str:
    """The action's folder below ``results_dir``; ``section`` holds the values of its keys."""
    from fiducial.deploy.kinds import runs_an_engine  # with the rest of it not needed for --help

    return action.engine_folder if action.engine_folder and runs_an_engine(section) else action.name
