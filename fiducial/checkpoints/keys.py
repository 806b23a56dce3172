"""Names of tensors: the renames that foreign files need, and which family of models a set of names belongs to.

Works on names alone and imports no torch. Renames that belong to one model are declared beside it, as `KeyMap`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

T = TypeVar("T")

_PREFIXES = ("backbone.", "model.model.backbone.", "model.backbone.", "model.encoder.", "model.decoder.", "model.")
FAMILIES_GROUP = "fiducial.families"
"""Entry points of packages, each a sequence of :class:`Family`: what the packages' networks look like."""


@dataclass(frozen=True)
class Family:
    """A kind of network, told by the names of its tensors."""

    name: str
    """What it is called in messages."""
    patterns: tuple[str, ...]
    """Regular expressions, each of which some name must match."""
    backbone: str = ""
    """What the names of its backbone's tensors begin with, where a file of it can give a backbone."""


@dataclass(frozen=True)
class KeyMap:
    """How the names of one foreign layout become ours.

    It applies to a file in which every prefix of ``has`` occurs and none of ``lacks``. Then names that start with one
    of ``drops`` are left out, and in each other name the first matching prefix of ``renames`` is replaced.
    """

    layout: str
    """What the layout is called in messages: ``C-RADIO adapter of TAO up to 6.25.7``."""
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[str, ...] = ()

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether these names are in this layout."""
        return all(_any_starts(keys, prefix) for prefix in self.has) and not any(
            _any_starts(keys, prefix) for prefix in self.lacks
        )

    def apply(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """The renamed dict; where two names become one, the later wins."""
        return {
            self._renamed(key): value for key, value in state_dict.items() if not key.startswith(self.drops or ("\0",))
        }

    def _renamed(self, key: str) -> str:
        for old, new in self.renames:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key


_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_COUNT_OF_AVERAGE = "n_averaged"


def unwrapped(state_dict: Mapping[str, T]) -> dict[str, T]:
    """The tensors under the names of the model's own modules, without those of what was wrapped around it.

    ``torch.compile``, sharded training and activation checkpointing put ``_orig_mod.`` and the like anywhere; data
    parallel training and averaged models ``module.`` before every name, or after ``model.``. Where two names would
    become one nothing is changed.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in state_dict}
    for prefix, inner in (("module.", ""), ("model.module.", "model."), ("module.", "")):
        below = [key for key, name in names.items() if name.startswith(inner) and name != _COUNT_OF_AVERAGE]
        if all(names[key].startswith(prefix) for key in below):
            names |= {key: inner + names[key].removeprefix(prefix) for key in below}
    if len(set(names.values())) < len(names):
        return dict(state_dict)
    return {names[key]: value for key, value in state_dict.items()}


def translate(state_dict: Mapping[str, T], key_maps: Iterable[KeyMap]) -> tuple[dict[str, T], tuple[str, ...]]:
    """The dict after every map that recognises it, one after the other, and the names of the layouts that did."""
    result, layouts = dict(state_dict), []
    for key_map in key_maps:
        if key_map.recognises(result):
            result = key_map.apply(result)
            layouts.append(key_map.layout)
    return result, tuple(layouts)


def backbone_keys(
    state_dict: Mapping[str, T], *, tao_model: str | None = None, prefer: Literal["teacher", "student"] = "teacher"
) -> dict[str, T]:
    """A pretrained file's tensors under the names that a backbone gives them itself.

    The first matching rule decides, as in TAO's loader: a name with ``module`` anywhere loses its first part; then one
    prefix (``backbone.``, ``model.model.backbone.``, ``model.backbone.``, ``model.encoder.``, ``model.decoder.``,
    ``model.``) is cut; ``ema_*`` is left out. A file whose ``tao_model`` is ``classification`` only loses ``model.``.
    Where two names become one, the later wins. Beyond TAO: of a file with ``teacher.`` and ``student.`` names the
    preferred side is taken, and of a whole network that is known (:class:`Family`) the backbone.
    """
    state_dict = unwrapped(state_dict)
    if tao_model == "classification":
        return {key.removeprefix("model."): value for key, value in state_dict.items()}
    tensors = _one_side(state_dict, prefer)
    network = _first(network_families(), list(tensors))
    if network and network.backbone and _any_starts(tensors, network.backbone):
        tensors = {key: value for key, value in tensors.items() if key.startswith(network.backbone)}
    return {
        _backbone_key(key): value for key, value in tensors.items() if "module" in key or not key.startswith("ema_")
    }


def _backbone_key(key: str) -> str:
    if "module" in key:
        return key.split(".", 1)[-1]
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)


def _one_side(state_dict: Mapping[str, T], prefer: str) -> Mapping[str, T]:
    for side in (prefer, "teacher", "student"):
        if _any_starts(state_dict, f"{side}."):
            inner = {
                key.removeprefix(f"{side}."): value for key, value in state_dict.items() if key.startswith(f"{side}.")
            }
            backbone = {key: value for key, value in inner.items() if key.startswith("backbone.")}
            return backbone or inner
    return state_dict


def _any_starts(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


_BACKBONES = (  # the first whose patterns all occur; the specific ones come first
    Family("C-RADIO", (r"\bpatch_generator\.",)),
    Family("FAN", (r"\bpatch_embed\.backbone\.stem\.",)),
    Family("DINOv3", (r"\bblocks\.0\.gamma_1$", r"\breg_token$")),
    Family("DINOv3", (r"\bstorage_tokens$",)),  # as Meta publishes it
    Family("NVDINOv2/DINOv2", (r"\bblocks\.0\.ls1\.gamma$", r"\bpatch_embed\.proj\.")),
    Family("ViT (MAE, DeiT)", (r"\bblocks\.0\.attn\.qkv\.", r"\bpatch_embed\.proj\.")),
    Family("ResNet", (r"\blayer4\.0\.conv1\.", r"\bbn1\.")),
)


@cache
def network_families() -> tuple[Family, ...]:
    """The networks of all installed packages, by their entry points."""
    from importlib.metadata import entry_points  # not worth its time at every start

    return tuple(family for point in entry_points(group=FAMILIES_GROUP) for family in point.load())


def family_of(keys: Iterable[str]) -> str:
    """What kind of model these names look like, in a user's words: a network, a backbone, or one with the other.

    A guess for messages; ``an unknown model`` when nothing is recognised.
    """
    names = list(keys)
    found = [family.name for family in (_first(network_families(), names), _first(_BACKBONES, names)) if family]
    return " with ".join(found) or "an unknown model"


def bare_backbone(keys: Iterable[str]) -> str | None:
    """The family of a backbone, where these names are of one and of no network around it."""
    names = list(keys)
    backbone = _first(_BACKBONES, names)
    return backbone.name if backbone and not _first(network_families(), names) else None


def _first(table: Iterable[Family], names: Collection[str]) -> Family | None:
    return next((f for f in table if all(any(re.search(p, name) for name in names) for p in f.patterns)), None)
