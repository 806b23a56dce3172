"""Quantizing a network in torch: which layers, with which library, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.checkpoints.atomic import save_atomically
from fiducial.deploy.card import ModelCard, TensorCard
from fiducial.deploy.quantize import modelopt_torch, torchao
from fiducial.deploy.quantize.artefacts import QUANTIZER
from fiducial.deploy.quantize.patterns import INT8, Layer, Plan, plan_layers
from fiducial.deploy.quantize.rules import quantizes_nothing
from fiducial.errors import SpecError
from fiducial.prediction import Graph
from fiducial.run.console import LOGGER

__all__ = ["plan_network", "quantize_network", "quantized_card", "save_quantized"]

_KINDS = {"torchao": torchao.KINDS, "modelopt.pytorch": modelopt_torch.KINDS}
_EVERY = modelopt_torch.KINDS


def plan_network(network: nn.Module, spec: Any) -> Plan:
    """The layers that a spec's ``quantize`` section wants quantized, and how.

    Raises: SpecError for a pattern that matches none, or where nothing would be quantized.
    """
    section = spec.quantize
    found = {name: module for name, module in network.named_modules() if isinstance(module, _EVERY)}
    layers = [Layer(name, type(module).__name__) for name, module in found.items()]
    able = {name for name, module in found.items() if isinstance(module, _KINDS[section.backend])}
    default = None if quantizes_nothing(spec) else INT8
    plan, problems = plan_layers(layers, section.layers, section.skip_names, default=default)
    if problems:
        raise SpecError.of(problems)
    left = sorted(plan.keys() - able) if section.layers else []
    if left:
        LOGGER.warning(
            "%s does not quantize %d of the layers that quantize.layers names (%s): they stay as they are",
            *(section.backend, len(left), ", ".join(left[:3])),
        )
    plan = {name: chosen for name, chosen in plan.items() if name in able}
    if section.backend == "torchao":  # which rounds weights, and inputs with them
        plan = {name: chosen for name, chosen in plan.items() if chosen.weights}
    if not plan and not quantizes_nothing(spec):
        found_there = f"{len(able)} layers could be quantized, and none is"
        raise SpecError("quantize.layers", found_there, "name layers with a dtype, or skip fewer of them")
    LOGGER.info("quantizing %d of %d layers with %s", len(plan), len(able), section.backend)
    return plan


def quantize_network(
    network: nn.Module, plan: Plan, section: Any, batches: Callable[[], Iterable[tuple[Tensor, ...]]]
) -> str:
    """Quantize the planned layers, in place; returns the library and its version.

    Raises: SpecError where the library does not take what the spec says; MissingDependencyError.
    """
    if section.backend == "torchao":
        torchao.quantize(network, plan, dynamic=section.mode == "dynamic_ptq", options=section.backend_kwargs or {})
        return torchao.version()
    if plan:
        modelopt_torch.quantize(network, plan, batches, entropy=section.algorithm == "entropy")
    return modelopt_torch.version()


def save_quantized(network: nn.Module, path: Path, section: Any, card: ModelCard) -> None:
    """Write a quantized network as TAO does, and its card beside it."""
    content = network.state_dict() if section.backend == "torchao" else modelopt_torch.state(network)
    save_atomically(path, lambda file: torch.save(content, file))
    card.write_beside(path)


def quantized_card(card: ModelCard, graph: Graph, outputs: Mapping[str, Tensor], quantizer: str) -> ModelCard:
    """What a quantized model says of itself: it cannot be changed any more, as an exported one."""
    return replace(
        card,
        inputs={name: TensorCard(item.shape, item.dtype) for name, item in graph.inputs.items()},
        outputs={name: TensorCard(tuple(tensor.shape[1:])) for name, tensor in outputs.items()},
        details={**card.details, QUANTIZER: quantizer},
    )
