"""Other spellings of MAL's specs: those of TAO's documents, and the spec inside ``auto_label generate``'s."""

from __future__ import annotations

from typing import Any

from fiducial.errors import SpecError
from fiducial.run.console import LOGGER
from fiducial.spec.bounded import brief
from fiducial.spec.common import MAX_GPUS

__all__ = ["unwrapped"]

_MOVED = {"crop_size": "dataset", "load_mask": "dataset"}
"""Keys that TAO's documents have below ``model``, and the section that they belong to."""
_SECTIONS = ("train", "evaluate", "inference")
_MOST_STAGES = 100
_OUTER = ("results_dir", "encryption_key", "wandb")


def unwrapped(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree under today's names; what is changed is told.

    Nothing of it is validated yet: what has no sense here is left as it is, for validation to name.
    """
    tree = _generated(tree) if tree.get("autolabel_type") == "mal" or isinstance(tree.get("mal"), dict) else dict(tree)
    model = tree.get("model")
    moved = [name for name in _MOVED if name in model] if isinstance(model, dict) else []
    for name in moved:
        section = _MOVED[name]
        _refuse_two(tree, f"model.{name}", f"{section}.{name}")
        if _give(tree, section, {name: tree["model"][name]}):
            tree["model"] = {key: value for key, value in tree["model"].items() if key != name}
            _tell(f"model.{name}", f"{section}.{name}")
    return _without_top_level(tree)


def _refuse_two(tree: dict[str, Any], old: str, new: str) -> None:
    """Raises: SpecError when a key stands at both its places and they differ."""
    said = []
    for place in (old, new):
        section, name = place.split(".")
        own = tree.get(section)
        if not isinstance(own, dict) or name not in own:
            return
        said.append(own[name])
    if said[0] != said[1]:
        raise SpecError(old, f"found {brief(said[0])}, and {brief(said[1])} at {new}", f"leave {old} out")


def _give(tree: dict[str, Any], section: str, values: dict[str, Any]) -> bool:
    """Put values into a section of ``tree``, below those that it has. Returns: whether it is a section."""
    own = tree.get(section) or {}
    if isinstance(own, dict):
        tree[section] = values | own
    return isinstance(own, dict)


def _gpus(told: Any) -> dict[str, Any]:
    """``num_gpus`` and ``gpu_ids`` for a list of GPUs, or their number."""
    if isinstance(told, list):
        return {"gpu_ids": told, "num_gpus": max(1, len(told))}
    counted = isinstance(told, int) and not isinstance(told, bool) and 1 <= told <= MAX_GPUS
    return {"num_gpus": told, "gpu_ids": list(range(told))} if counted else {"num_gpus": told}


def _without_top_level(tree: dict[str, Any]) -> dict[str, Any]:
    """Keys that older specs have at the top are those of every action's section."""
    moved: dict[str, Any] = {}
    if "gpus" in tree:
        moved |= _gpus(tree["gpus"])
        _tell("gpus", f"{' and '.join(moved)} of each action")
    if "num_nodes" in tree:
        moved["num_nodes"] = tree["num_nodes"]
        _tell("num_nodes", "num_nodes of each action")
    for section in _SECTIONS if moved else ():
        _give(tree, section, moved)
    if "checkpoint" in tree:
        for section, name in (
            ("train", "pretrained_model_path"),
            ("evaluate", "checkpoint"),
            ("inference", "checkpoint"),
        ):
            _give(tree, section, {name: tree["checkpoint"]})
        _tell("checkpoint", "evaluate.checkpoint, inference.checkpoint and train.pretrained_model_path")
    if "strategy" in tree:
        LOGGER.warning("strategy: ignored; several GPUs run DDP, there is no FSDP")
    return {key: value for key, value in tree.items() if key not in ("gpus", "num_nodes", "checkpoint", "strategy")}


def _generated(tree: dict[str, Any]) -> dict[str, Any]:
    """The spec of ``auto_label generate`` with ``autolabel_type: mal`` as a spec of inference."""
    inner = _section(tree, "mal")
    spec = {**inner, **{key: tree[key] for key in _OUTER if key in tree}}
    inference = _section(inner, "inference")
    if "checkpoint" in inner:
        inference.setdefault("checkpoint", inner["checkpoint"])
        del spec["checkpoint"]
    inference["batch_size"] = tree.get("batch_size", inference.get("batch_size", 4))
    if isinstance(tree.get("gpu_ids"), list):
        inference |= _gpus(tree["gpu_ids"])
    spec["inference"] = inference
    spec["dataset"] = {**_section(inner, "dataset"), "num_workers_per_gpu": tree.get("num_workers", 8)}
    stages = _section(spec, "model").get("frozen_stages")
    if isinstance(stages, list) and len(stages) == 1 and isinstance(stages[0], int) and 0 <= stages[0] < _MOST_STAGES:
        spec["model"] = {**spec["model"], "frozen_stages": list(range(stages[0] + 1))}  # there the last of a range
    LOGGER.info("read as a MAL spec for inference: it is one of auto_label generate")
    return spec


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy of a section. Raises: SpecError when something else stands there."""
    own = tree.get(name) or {}
    if not isinstance(own, dict):
        raise SpecError(name, f"found {brief(own)}", "this is a section with keys")
    return dict(own)


def _tell(old: str, new: str) -> None:
    LOGGER.info("%s: read as %s", old, new)
