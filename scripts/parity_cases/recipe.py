"""Weights and inputs of a parity case, made from names and seeds: nothing but the manifest is needed.

All numbers come from ``numpy.random.RandomState``, whose stream numpy keeps for ever. A state-dict entry is drawn from
the seed ``(crc32(key) + seed) mod 2**32``, in float64, and rounded once to its dtype.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["INPUTS", "entry", "image", "integers", "make_input", "normal", "state_dict", "uint8_image", "uniform"]

SCALE_NAMES = {"gamma", "gamma1", "gamma2", "grandma", "temperature"}
"""Layer scales and temperatures: drawn around 0.5, so that what they scale shows in the output."""


def entry(key: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    """The values of a random state-dict entry. The first rule that fits the key and the shape counts."""
    noise = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    many_dims = len(shape) >= 2
    if last == "running_var":
        return 1 + 0.1 * np.abs(noise)
    if last == "running_mean":
        return 0.05 * noise
    if last in SCALE_NAMES:
        return 0.5 + 0.05 * noise
    if key.endswith("sampling_offsets.bias"):
        return 2 * noise
    if last == "weight":
        return noise / math.sqrt(math.prod(shape[1:])) if many_dims else 1 + 0.05 * noise
    return (0.2 if many_dims else 0.05) * noise


def state_dict(manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The checkpoint of a case, in the manifest's order.

    Raises: ValueError for an entry that is neither drawn nor given.
    """
    fixed = manifest.get("fixed", {})
    weights: dict[str, Tensor] = {}
    for key, shape, dtype_name in manifest["state_dict"]:
        dtype = getattr(torch, dtype_name)
        if key in fixed:
            weights[key] = torch.tensor(fixed[key], dtype=dtype).reshape(shape)
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.zeros(shape, dtype=dtype)
        elif dtype.is_floating_point and shape:
            weights[key] = torch.from_numpy(entry(key, tuple(shape), manifest["seed"])).to(dtype)
        else:
            raise ValueError(f"no value for {key} ({dtype_name}, shape {shape}): it should be among 'fixed'")
    for key, source in manifest.get("aliases", {}).items():
        weights[key] = weights[source]
    return weights


def image(shape: tuple[int, int, int, int], seed: int = 0, block: int = 16, fine: float = 0.5) -> NDArray[np.float32]:
    """A normalised batch ``(B, C, H, W)``: squares of ``block`` pixels in ±1.5, plus noise in ±``fine``."""
    batch, channels, height, width = shape
    random = np.random.RandomState(seed)
    coarse = random.uniform(-1.5, 1.5, (batch, channels, -(-height // block), -(-width // block)))
    detail = random.uniform(-fine, fine, shape)
    return (_enlarged(coarse, block, axes=(2, 3))[:, :, :height, :width] + detail).astype(np.float32)


def uint8_image(height: int, width: int, seed: int = 0, block: int = 12, channels: int = 3) -> NDArray[np.uint8]:
    """A picture ``(H, W, channels)``: squares of ``block`` pixels below 224, plus noise below 32."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 224, (-(-height // block), -(-width // block), channels))
    fine = random.randint(0, 32, (height, width, channels))
    return (_enlarged(coarse, block, axes=(0, 1))[:height, :width] + fine).astype(np.uint8)


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    """``scale`` times standard normal draws."""
    return (scale * np.random.RandomState(seed).standard_normal(shape)).astype(np.float32)


def uniform(shape: tuple[int, ...], seed: int = 0, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
    """Uniform draws between ``low`` and ``high``."""
    return np.random.RandomState(seed).uniform(low, high, shape).astype(np.float32)


def integers(shape: tuple[int, ...], seed: int = 0, low: int = 0, high: int = 2) -> NDArray[np.int64]:
    """Integer draws from ``low`` up to, but not, ``high``."""
    return np.random.RandomState(seed).randint(low, high, shape).astype(np.int64)


INPUTS = {make.__name__: make for make in (image, uint8_image, normal, uniform, integers)}


def make_input(entry: Mapping[str, Any]) -> Tensor:
    """The tensor that an entry of ``inputs`` describes: a literal ``value``, or a ``kind`` and its arguments.

    Raises: ValueError for an unknown kind.
    """
    if "value" in entry:
        return torch.from_numpy(np.array(entry["value"], dtype=entry.get("dtype", "float32")))
    if entry["kind"] not in INPUTS:
        raise ValueError(f"unknown kind of input {entry['kind']!r}")
    arguments = {name: value for name, value in entry.items() if name not in ("kind", "note")}
    return torch.from_numpy(INPUTS[entry["kind"]](**arguments))


def _enlarged(coarse: NDArray[Any], block: int, axes: tuple[int, int]) -> NDArray[Any]:
    for axis in axes:
        coarse = coarse.repeat(block, axis=axis)
    return coarse
