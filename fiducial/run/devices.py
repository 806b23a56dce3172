"""Which processors an action runs on: spec keys, torchrun, and TAO's environment variables, resolved in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fiducial.errors import Problem, SpecError
from fiducial.run.console import LOGGER
from fiducial.run.ranks import under_torchrun


@dataclass(frozen=True)
class Devices:
    """What Lightning's Trainer is given."""

    accelerator: str
    devices: int | list[int]
    num_nodes: int = 1

    @property
    def num_processes(self) -> int:
        """Processes of the whole run."""
        return (self.devices if isinstance(self.devices, int) else len(self.devices)) * self.num_nodes


def resolve_devices(section: Any, name: str, environment: Mapping[str, str] | None = None) -> Devices:
    """The devices of an action, from its spec section (``num_gpus``, ``gpu_ids``, ``num_nodes``).

    Under ``torchrun`` the devices are its local processes, whatever the spec says. Otherwise a set ``WORLD_SIZE`` counts
    nodes, as TAO's multi-node launch has it. Without a CUDA device the run is on the CPU, with a warning.

    Raises: SpecError when TAO's multi-node variables are incomplete or contradict each other.
    """
    env = os.environ if environment is None else environment
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if under_torchrun():
        local, world = int(env.get("LOCAL_WORLD_SIZE", "1")), int(env.get("WORLD_SIZE", "1"))
        if gpus and local > gpus:
            raise SpecError("torchrun --nproc-per-node", f"{local} processes for {gpus} GPU(s)", f"use at most {gpus}")
        return Devices("gpu" if gpus else "cpu", local, world // local)
    wanted = _reconciled(section, name)
    nodes, node_gpus = _nodes(env, section.num_nodes, gpus)
    if node_gpus is not None:
        wanted = list(range(node_gpus))
    if not gpus:
        if len(wanted) > 1:
            LOGGER.warning("no CUDA device: one process on the CPU instead of %d GPUs", len(wanted))
        else:
            LOGGER.warning("no CUDA device: running on the CPU")
        return Devices("cpu", 1, nodes)
    if max(wanted) >= gpus:
        found = f"asks for GPU {max(wanted)}, but there are {gpus} (numbered from 0)"
        raise SpecError(f"{name}.gpu_ids", found, f"use ids below {gpus}, or lower {name}.num_gpus")
    return Devices("gpu", wanted, nodes)


def single(devices: Devices) -> Devices:
    """The same processor, one process of it."""
    first = devices.devices if isinstance(devices.devices, int) else devices.devices[:1]
    return replace(devices, devices=1 if isinstance(first, int) else first, num_nodes=1)


def _reconciled(section: Any, name: str) -> list[int]:
    visible = os.environ.get("TAO_VISIBLE_DEVICES")
    if visible:
        return [int(part) for part in visible.split(",") if part.strip()]
    num, ids = int(section.num_gpus), list(section.gpu_ids)
    if num != len(ids):
        num = max(num, len(ids))
        ids = ids if len(ids) == num else list(range(num))
        LOGGER.warning("%s.num_gpus and %s.gpu_ids differ: using GPUs %s", name, name, ids)
    return ids


def _nodes(env: Mapping[str, str], configured: int, gpus: int) -> tuple[int, int | None]:
    """Nodes and GPUs per node by TAO's variables; they only count when ``WORLD_SIZE`` is set."""
    if "WORLD_SIZE" not in env:
        return configured, None
    if "LOCAL_RANK" in env:  # a process that Lightning started: its own count of processes
        return configured, None
    problems: list[Problem] = []

    def number(name: str, default: int | None, low: int, high: int) -> int:
        text = env.get(name, "" if default is None else str(default))
        value = int(text) if text.isdecimal() else low - 1
        if not low <= value <= high:
            found = f"found {text!r}" if text else "not set"
            problems.append(Problem(name, found, f"set a number from {low} to {high}, or unset WORLD_SIZE"))
        return value

    world = number("WORLD_SIZE", None, 1, 2**16)
    if world > 1:
        rank_name = "NODE_RANK" if "NODE_RANK" in env else "RANK"
        rank = number(rank_name, None, 0, world - 1)
        number("MASTER_PORT", None, 1024, 65535)
        if not env.get("MASTER_ADDR"):
            problems.append(Problem("MASTER_ADDR", "not set", "set the address of node 0"))
        os.environ.setdefault("NODE_RANK", str(rank))
    per_node = number("NUM_GPU_PER_NODE", max(gpus, 1), 1, max(gpus, 1))
    if problems:
        raise SpecError.of(problems)
    os.environ.pop("WORLD_SIZE", None)  # Lightning counts processes under this name, TAO nodes
    return world, per_node if "NUM_GPU_PER_NODE" in env else None
