"""Which process this is, read from the environment so that it can be asked before torch is imported."""

from __future__ import annotations

import os
import sys
from typing import Any


def under_torchrun() -> bool:
    """Whether ``torchrun`` started this process (then ``WORLD_SIZE`` counts processes, not nodes)."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"LOCAL_RANK", "GROUP_RANK"} <= os.environ.keys()


def told_of_others() -> str:
    """What says that this process is one of several of a run, in words; empty where nothing does."""
    env = os.environ
    if under_torchrun():
        return "under torchrun"
    if "SLURM_PROCID" in env and env.get("SLURM_NTASKS", "1") != "1":
        return f"under srun with {env['SLURM_NTASKS']} tasks"
    return "" if env.get("WORLD_SIZE", "1") == "1" else f"with WORLD_SIZE={env['WORLD_SIZE']}"


def global_rank() -> int:
    """Rank among all processes of the run, 0 when alone; where only node and local rank are known, 0 for the first."""
    if under_torchrun():
        return int(os.environ.get("RANK", "0"))
    if "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"])
    local, node = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("NODE_RANK", os.environ.get("RANK", "0")))
    return local if node == 0 else max(local, 1)


def gather(value: Any) -> list[Any]:
    """``value`` of every rank, in rank order; a collective call when torch.distributed is running, else ``[value]``."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def leave_group() -> None:
    """Close the group of torch.distributed where this process is in one: at its end, when the others need nothing more.

    The group's threads must not outlive the interpreter: one that lets go of a Python object then aborts the process.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
