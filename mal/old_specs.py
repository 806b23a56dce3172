"""Other spellings of MAL's specs: those of TAO's documents, and the spec inside ``auto_label generate``'s."""

from __future__ import annotations

from typing import Any

from fiducial.run.console import LOGGER

__all__ = ["unwrapped"]

_MOVED = {"crop_size": "dataset", "load_mask": "dataset"}
"""Keys that TAO's documents have below ``model``, and the section that they belong to."""
_SECTIONS = ("train", "evaluate", "inference")
_OUTER = ("results_dir", "encryption_key", "wandb")


def unwrapped(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree under today's names; what is changed is told."""
    tree = _generated(tree) if tree.get("autolabel_type") == "mal" or isinstance(tree.get("mal"), dict) else dict(tree)
    model = tree.get("model")
    if isinstance(model, dict):
        for name, section in _MOVED.items():
            if name in model:
                model = {key: value for key, value in model.items() if key != name}
                tree[section] = {name: tree["model"][name], **(tree.get(section) or {})}
                _tell(f"model.{name}", f"{section}.{name}")
        tree["model"] = model
    return _without_top_level(tree)


def _without_top_level(tree: dict[str, Any]) -> dict[str, Any]:
    """Keys that older specs have at the top are those of every action's section."""
    moved: dict[str, Any] = {}
    if isinstance(tree.get("gpus"), list):
        moved |= {"gpu_ids": tree["gpus"], "num_gpus": max(1, len(tree["gpus"]))}
        _tell("gpus", "gpu_ids and num_gpus of each action")
    elif "gpus" in tree:
        moved |= {"num_gpus": tree["gpus"], "gpu_ids": list(range(int(tree["gpus"])))}
        _tell("gpus", "num_gpus of each action")
    if "num_nodes" in tree:
        moved["num_nodes"] = tree["num_nodes"]
        _tell("num_nodes", "num_nodes of each action")
    for section in _SECTIONS if moved else ():
        tree[section] = {**moved, **(tree.get(section) or {})}
    if "checkpoint" in tree:
        for section, name in (
            ("train", "pretrained_model_path"),
            ("evaluate", "checkpoint"),
            ("inference", "checkpoint"),
        ):
            tree[section] = {name: tree["checkpoint"], **(tree.get(section) or {})}
        _tell("checkpoint", "evaluate.checkpoint, inference.checkpoint and train.pretrained_model_path")
    if "strategy" in tree:
        LOGGER.warning("strategy: ignored; several GPUs run DDP, there is no FSDP")
    return {key: value for key, value in tree.items() if key not in ("gpus", "num_nodes", "checkpoint", "strategy")}


def _generated(tree: dict[str, Any]) -> dict[str, Any]:
    """The spec of ``auto_label generate`` with ``autolabel_type: mal`` as a spec of inference."""
    inner = dict(tree.get("mal") or {})
    spec = {**inner, **{key: tree[key] for key in _OUTER if key in tree}}
    inference = dict(inner.get("inference") or {})
    if "checkpoint" in inner:
        inference.setdefault("checkpoint", inner["checkpoint"])
        del spec["checkpoint"]
    inference["batch_size"] = tree.get("batch_size", inference.get("batch_size", 4))
    if "gpu_ids" in tree:
        inference |= {"gpu_ids": tree["gpu_ids"], "num_gpus": max(1, len(tree["gpu_ids"]))}
    spec["inference"] = inference
    workers = tree.get("num_workers", 8)
    spec["dataset"] = {**(inner.get("dataset") or {}), "num_workers_per_gpu": workers}
    model = dict(spec.get("model") or {})
    stages = model.get("frozen_stages")
    if isinstance(stages, list) and len(stages) == 1 and stages[0] >= 0:
        model["frozen_stages"] = list(range(stages[0] + 1))  # there one number is the last of a range
        spec["model"] = model
    LOGGER.info("read as a MAL spec for inference: it is one of auto_label generate")
    return spec


def _tell(old: str, new: str) -> None:
    LOGGER.info("%s: read as %s", old, new)
