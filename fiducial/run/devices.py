"""Which devices an action runs on: spec keys, torchrun, and TAO's environment variables, resolved in memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fiducial.errors import Problem, SpecError
from fiducial.run.console import LOGGER
from fiducial.run.ranks import under_torchrun

_DIGITS = 9
"""Of a number in an environment variable: more are no number of anything."""
_TOLD = "FIDUCIAL_NODES"
"""Nodes and processes per node, for the processes that Lightning starts."""


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


def resolve_devices(section: Any, name: str) -> Devices:
    """The devices of an action, from its spec section (``num_gpus``, ``gpu_ids``, ``num_nodes``).

    Under ``torchrun`` the devices are its local processes, whatever the spec says. Otherwise a set ``WORLD_SIZE``
    counts nodes, as TAO's multi-node launch has it. Without a CUDA device the run is on the CPU, with a warning.

    Raises: SpecError when TAO's multi-node variables are incomplete or contradict each other.
    """
    env = os.environ
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if under_torchrun():
        local, world = int(env.get("LOCAL_WORLD_SIZE", "1")), int(env.get("WORLD_SIZE", "1"))
        if gpus and local > gpus:
            raise SpecError("torchrun --nproc-per-node", f"{local} processes for {gpus} GPU(s)", f"use at most {gpus}")
        if not gpus:
            LOGGER.warning("no CUDA device: %d process(es) on the CPU", world)
        return Devices("gpu" if gpus else "cpu", local, world // local)
    wanted: Sequence[int]
    by_launcher = _nodes(gpus)
    if by_launcher:
        nodes, wanted = by_launcher[0], range(by_launcher[1])
    else:
        nodes, wanted = section.num_nodes, _reconciled(section, name)
    if not gpus:
        asked = f"one process on the CPU instead of {len(wanted)} GPUs" if len(wanted) > 1 else "running on the CPU"
        LOGGER.warning("no CUDA device: %s", asked)
        return Devices("cpu", 1, nodes)
    if max(wanted) >= gpus:
        found = f"asks for GPU {max(wanted)}, but there are {gpus} (numbered from 0)"
        raise SpecError(f"{name}.gpu_ids", found, f"use ids below {gpus}, or lower {name}.num_gpus")
    return Devices("gpu", list(wanted), nodes)


def single(devices: Devices) -> Devices:
    """The first of the devices alone."""
    first = 1 if isinstance(devices.devices, int) else devices.devices[:1]
    return replace(devices, devices=first, num_nodes=1)


def _reconciled(section: Any, name: str) -> Sequence[int]:
    """The GPUs' numbers; a range where they are only counted, so that no count takes memory."""
    visible = [part.strip() for part in os.environ.get("TAO_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) <= _DIGITS for part in visible):
        found = f"found {os.environ['TAO_VISIBLE_DEVICES']!r}"
        raise SpecError("TAO_VISIBLE_DEVICES", found, "give GPU numbers like 0,1, or unset it")
    if visible:
        return [int(part) for part in visible]
    num, ids = int(section.num_gpus), list(section.gpu_ids)
    if num == len(ids):
        return ids
    wanted = ids if len(ids) > num else range(num)
    shown = ids if len(ids) > num else f"0 to {num - 1}"
    LOGGER.warning("%s.num_gpus and %s.gpu_ids differ: using GPUs %s", name, name, shown)
    return wanted


def _nodes(gpus: int) -> tuple[int, int] | None:
    """Nodes and processes per node by TAO's launch variables; None when ``WORLD_SIZE`` is not set.

    Changes the environment to what Lightning, and the processes it starts, understand.
    """
    env = os.environ
    if told := env.get(_TOLD):
        nodes, per_node = map(int, told.split("x"))
        return nodes, per_node
    if "WORLD_SIZE" not in env or "LOCAL_RANK" in env:  # or a process that Lightning started: it counts processes
        return None
    problems: list[Problem] = []

    def number(name: str, default: int | None, low: int, high: int) -> int:
        text = env.get(name, "" if default is None else str(default))
        value = int(text) if text.isdecimal() and len(text) <= _DIGITS else low - 1
        if not low <= value <= high:
            found = f"found {text!r}" if text else "not set"
            problems.append(Problem(name, found, f"set a number from {low} to {high}, or unset WORLD_SIZE"))
        return value

    world = number("WORLD_SIZE", None, 1, 2**16)
    per_node = number("NUM_GPU_PER_NODE", max(gpus, 1), 1, max(gpus, 1))
    if world > 1:
        rank = number("NODE_RANK" if "NODE_RANK" in env else "RANK", None, 0, world - 1)
        port = number("MASTER_PORT", None, 1024, 65535)
        problems.extend(_address_problems(env.get("MASTER_ADDR", ""), port if rank == 0 else None))
        env["NODE_RANK"] = str(rank)
    if problems:
        raise SpecError.of(problems)
    del env["WORLD_SIZE"]  # Lightning counts processes under this name
    env[_TOLD] = f"{world}x{per_node}"
    LOGGER.info("WORLD_SIZE is set: %d node(s), %d process(es) each", world, per_node)
    return world, per_node


def _address_problems(address: str, port: int | None) -> Iterator[Problem]:
    """What is wrong with the address of node 0; on node 0 itself also with the port."""
    try:
        socket.gethostbyname(address or "-")
    except OSError as error:
        found = f"{address!r} is not known ({error})" if address else "not set"
        yield Problem("MASTER_ADDR", found, "set the address of node 0")
    if port is not None and 1024 <= port <= 65535:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                yield Problem("MASTER_PORT", f"{port} cannot be used ({error})", "choose a free port")
