"""Reading a model file: which of its content are the weights, and what it says of itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiducial.checkpoints.formats import is_safetensors, read_raw
from fiducial.checkpoints.keys import unwrapped
from fiducial.checkpoints.resolving import real_file
from fiducial.checkpoints.stand_ins import PARTS_OF
from fiducial.errors import CheckpointError, one_line

__all__ = ["MARKER", "NESTING", "Checkpoint", "read", "read_raw"]

log = logging.getLogger("fiducial")

NESTING = (*("state_dict", "state_dict_ema", "model", "model_ema", "ema", "model_state_dict", "teacher", "student"),)
"""Where files keep their tensors, in the order of preference; several can be inside one another."""
AVERAGES = ("state_dict_ema", "model_ema", "ema")
"""Those of them that hold the average of the weights over the training."""
MARKER = "pytorch-lightning_version"
"""The entry that every Lightning checkpoint has."""
_AVERAGE_FIRST = re.compile(r"(^|\.)(base_model|patch_generator)\.")
"""In names of the training files of C-RADIO, of which NVIDIA's own loader takes the average."""


@dataclass(frozen=True)
class Checkpoint:
    """A model file, read."""

    path: Path
    kind: str
    """``lightning``, ``safetensors``, ``state_dict`` (tensors alone) or ``nested`` (tensors inside other entries)."""
    state_dict: dict[str, Tensor]
    """By the names of the model's own modules: what data parallel training and compilation put before them is cut."""
    meta: dict[str, Any]
    """What the file says of itself as plain data: ``epoch``, ``global_step``, ``tao_model``, ``hyper_parameters``."""
    raw: Any = field(repr=False)
    """Everything in the file, as plain data and tensors."""
    nesting: tuple[str, ...] = ()
    """The entries that the tensors were found in, from the outside."""
    foreign: tuple[str, ...] = ()
    """Classes that the file names and that were read as plain data."""
    skipped: tuple[str, ...] = ()
    """Entries beside the tensors that hold no tensor."""


def read(
    path: str | Path, *, device: str = "cpu", mmap: bool = True, key: str | None = None, where: str = ""
) -> Checkpoint:
    """Reads a model file of any known format.

    ``device`` ``meta`` gives tensors without content. ``mmap`` maps the tensors of zip and safetensors files instead of
    copying them: do not rewrite such a file in place. ``key`` decrypts files that TAO encrypted, where NVIDIA's ``eff``
    is installed. ``where`` is the spec key for messages.

    Raises: CheckpointError when the file is missing, damaged, no model file, encrypted, made to fill the memory,
        names code that it would run, or holds quantized weights, which are no tensors of a training.
    """
    file = real_file(path, where=where)
    raw, foreign = read_raw(file, device=device, mmap=mmap, key=key)
    tensors, nesting = _nested(raw)
    if told := _told_by(raw, tensors):
        found = f"holds quantized weights ({told})"
        raise CheckpointError(str(file), found, "give the checkpoint that it was made from")
    state_dict = {
        str(name): value for name, value in ((n, _tensor(v)) for n, v in tensors.items()) if value is not None
    }
    if not state_dict:
        raise CheckpointError(str(file), f"holds no tensors ({_contents(raw)})", "give a file with a model's weights")
    for name in set(AVERAGES).intersection(nesting):
        log.info("%s: the weights are those of %s, the average over its training", file, name)
    return Checkpoint(
        path=file,
        kind=_kind(file, raw, nesting),
        state_dict=unwrapped(state_dict),
        meta=_meta(raw, nesting),
        raw=raw,
        nesting=nesting,
        foreign=foreign,
        skipped=tuple(str(name) for name in tensors if str(name) not in state_dict),
    )


def _nested(raw: Any) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The dict that holds the tensors, and the names that lead to it."""
    names: list[str] = []
    tree = raw
    holders = _Holders()
    while isinstance(tree, dict):
        inside = {
            name: tree[name] for name in NESTING if isinstance(tree.get(name), dict) and holders.holds(tree[name])
        }
        if not inside:
            return tree, tuple(names)
        name = next(iter(inside))
        if any(isinstance(key, str) and _AVERAGE_FIRST.search(key) for key in inside[name]):
            name = next((average for average in AVERAGES if average in inside), name)
        names.append(name)
        tree = inside[name]
    return {}, ()


def _told_by(raw: Any, tensors: Mapping[Any, Any]) -> str:
    """What says that weights are quantized: torchao's have parts, ModelOpt's a state beside them. Empty: nothing."""
    parts = next(
        (f"{name}, …" for name, value in tensors.items() if isinstance(value, Mapping) and PARTS_OF in value), ""
    )
    return parts or ("modelopt_state" if isinstance(raw, dict) and "modelopt_state" in raw else "")


class _Holders:
    """Which dicts of a tree hold tensors, at any depth; each is looked at once, however often it stands there."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def holds(self, tree: Mapping[Any, Any]) -> bool:
        if id(tree) not in self._known:
            self._known[id(tree)] = any(
                self.holds(value) if isinstance(value, dict) else _is_tensor(value) for value in tree.values()
            )
        return self._known[id(tree)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _tensor(value: Any) -> Tensor | None:
    if not _is_tensor(value):
        return None
    try:
        return value if isinstance(value, Tensor) else torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    except TypeError:  # a type that torch has not, such as long double
        return None


def _kind(path: Path, raw: Any, nesting: tuple[str, ...]) -> str:
    if MARKER in raw:
        return "lightning"
    with path.open("rb") as file:
        if is_safetensors(file.read(9)):
            return "safetensors"
    return "nested" if nesting else "state_dict"


def _meta(raw: dict[Any, Any], nesting: tuple[str, ...]) -> dict[str, Any]:
    if not nesting:
        return {}
    plain_kinds = (str, int, float, bool)
    return {
        str(name): value
        for name, value in raw.items()
        if name not in nesting and (isinstance(value, plain_kinds) or name == "hyper_parameters")
    }


def _contents(raw: Any) -> str:
    if not isinstance(raw, dict):
        return f"it holds a {type(raw).__name__}"
    return (
        f"its entries: {one_line(', '.join(str(name)[:80] for name in list(raw)[:5]))}"
        if raw
        else "it is an empty dict"
    )
