"""Which layers of a network are quantized, and how: the patterns of ``quantize.layers`` and ``quantize.skip_names``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fiducial.errors import Problem
from fiducial.run.console import LOGGER

__all__ = ["INT8", "Layer", "LayerFormat", "Plan", "matches", "plan_layers", "tell_unused"]


@dataclass(frozen=True)
class Layer:
    """A layer that could be quantized: its qualified name, and the name of its class."""

    name: str
    kind: str


@dataclass(frozen=True)
class LayerFormat:
    """The numbers that a layer is computed with; None leaves a side as it is. An axis gets one scale per index."""

    weights: str | None = None
    activations: str | None = None
    weight_axis: int | None = None
    activation_axis: int | None = None

    @property
    def is_native(self) -> bool:
        """Whether it changes nothing."""
        return self.weights is None and self.activations is None


INT8 = LayerFormat("int8", "int8", weight_axis=0)
"""What every layer gets where the spec names none."""
Plan = dict[str, LayerFormat]
"""The format of each layer to be quantized, by name."""


def plan_layers(
    layers: Sequence[Layer], entries: Sequence[Any], skip_names: Sequence[str], *, default: LayerFormat | None
) -> tuple[Plan, list[Problem]]:
    """The format of each layer, and the entries of ``quantize.layers`` that match none.

    A pattern is tried on a layer's qualified name, then on its class. The last entry that matches counts; what
    ``skip_names`` matches is left out afterwards. ``default``: the format of all layers where there is no entry.
    """
    tell_unused(pattern for pattern in skip_names if not any(matches(layer, pattern) for layer in layers))
    problems = list(_unmatched(layers, entries))
    plan: Plan = {}
    for layer in layers:
        fitting = [entry for entry in entries if matches(layer, entry.module_name)]
        chosen = _format(fitting[-1]) if fitting else default if not entries else None
        if chosen and not chosen.is_native and not any(matches(layer, pattern) for pattern in skip_names):
            plan[layer.name] = chosen
    return plan, problems


def tell_unused(skip_names: Iterable[str]) -> None:
    """Warn of patterns of ``quantize.skip_names`` that leave nothing out, as some in TAO's specs do."""
    if unused := list(skip_names):
        LOGGER.warning("quantize.skip_names: no layer that could be quantized is named %s", ", ".join(unused))


def matches(layer: Layer, pattern: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` is of this layer; upper and lower case differ."""
    return fnmatchcase(layer.name, pattern) or fnmatchcase(layer.kind, pattern)


def _format(entry: Any) -> LayerFormat:
    weights, activations = entry.weights, entry.activations
    return LayerFormat(
        _dtype(weights),
        _dtype(activations),
        weights.quant_axis if weights else None,
        activations.quant_axis if activations else None,
    )


def _dtype(quantizer: Any) -> str | None:
    return None if quantizer is None or quantizer.dtype == "native" else str(quantizer.dtype)


def _unmatched(layers: Sequence[Layer], entries: Sequence[Any]) -> Iterator[Problem]:
    for number, entry in enumerate(entries):
        if not any(matches(layer, entry.module_name) for layer in layers):
            found = f"{entry.module_name!r} matches no layer that can be quantized"
            yield Problem(f"quantize.layers[{number}].module_name", found, f"there are {_some(layers)}")


def _some(layers: Iterable[Layer]) -> str:
    held = list(layers)
    kinds = ", ".join(sorted({layer.kind for layer in held}))
    return f"{kinds}, with names such as {', '.join(layer.name for layer in held[:3])}" if held else "none at all"
