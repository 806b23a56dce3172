"""Putting a model file's tensors into a module, and telling exactly what fitted and what did not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from fiducial.checkpoints.finite import not_finite
from fiducial.checkpoints.keys import KeyMap, family_of, translate
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError, Problem, one_line

log = logging.getLogger("fiducial")

Shape = tuple[int, ...]
Explain = Callable[[str, Shape | None, Shape | None], str]
"""``(key, the module's shape, the file's shape)``, None where absent -> which spec keys explain it, or ""."""
Adapt = Callable[[str, Tensor, Shape], Tensor | None]
"""``(key, the file's tensor, the module's shape)`` -> the tensor made to fit (a position table resized), or None."""

_COUNTER = "num_batches_tracked"  # old files and frozen norms lack it, and nothing depends on it
_NAMED = 5


@dataclass(frozen=True)
class LoadReport:
    """What happened to the tensors of a module and of a file; the names are those of the module."""

    what: str
    wanted: int
    """How many tensors the module needs."""
    matched: int
    """How many of them came from the file, the reshaped ones included."""
    missing: tuple[str, ...] = ()
    """In the module, not in the file: they keep their values."""
    unexpected: tuple[str, ...] = ()
    """In the file, not in the module."""
    reshaped: tuple[str, ...] = ()
    """Loaded after a resize."""
    kept: tuple[str, ...] = ()
    """Of another size in the file, where that is expected: they keep their values."""
    layouts: tuple[str, ...] = ()
    """The foreign layouts that were recognised and renamed."""

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.what}: {self.matched} of {self.wanted} tensors loaded"]
        parts += [f"layout: {name}" for name in self.layouts]
        for label, names in (
            ("resized", self.reshaped),
            ("left as initialised, another size", self.kept),
            ("missing", self.missing),
            ("not used", self.unexpected),
        ):
            if names:
                parts.append(f"{len(names)} {label} ({_some(names)})")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def load_into(
    module: nn.Module,
    source: Checkpoint | Mapping[str, Tensor],
    *,
    key_maps: Iterable[KeyMap] = (),
    what: str = "checkpoint",
    strict: bool = False,
    allow: tuple[str, ...] = (),
    min_match: float = 0.9,
    size_dependent: tuple[str, ...] = (),
    adapt: Adapt | None = None,
    explain: Explain | None = None,
) -> LoadReport:
    """Copies the tensors that fit from ``source`` into ``module``; nothing is copied when this raises.

    Into a module on torch's device ``meta`` nothing can be copied: then this tells what would be.

    ``key_maps`` rename a foreign layout first. ``allow`` and ``size_dependent`` are patterns of names
    (``decoder.*``): of tensors that may be missing or unused, and of tensors that may have another size and then keep
    their values. ``adapt`` may make a tensor of another size fit. ``strict``: no other difference at all is accepted,
    and ``explain`` adds to each one which spec keys it depends on.
    Raises: CheckpointError when a shape differs, when fewer than ``min_match`` (0..1) of the wanted tensors match,
    naming what both sides look like, or when ``strict`` finds any difference.
    """
    where = str(source.path) if isinstance(source, Checkpoint) else what
    given, layouts = translate(source.state_dict if isinstance(source, Checkpoint) else source, key_maps)
    wanted = module.state_dict()
    fitting: dict[str, Tensor] = {}
    reshaped: list[str] = []
    kept: list[str] = []
    wrong: list[str] = []
    for key in wanted.keys() & given.keys():
        tensor, shape = given[key], tuple(wanted[key].shape)
        if tuple(tensor.shape) == shape:
            fitting[key] = tensor
        elif adapt and (adapted := adapt(key, tensor, shape)) is not None:
            fitting[key] = adapted
            reshaped.append(key)
        else:
            (kept if _among(key, size_dependent) else wrong).append(key)
    missing = [key for key in wanted if key not in given and not _ignorable(key, allow)]
    unexpected = [key for key in given if key not in wanted and not _ignorable(key, allow)]
    needed = [key for key in wanted if key in given or not _ignorable(key, allow)]
    found = [key for key in needed if key in given]

    if len(found) < min_match * len(needed) or not found:
        raise CheckpointError(
            where,
            f"only {len(found)} of {len(needed)} tensors match: the file looks like {family_of(given)}, the model is "
            f"{family_of(wanted)}"
            + (f"; not in the file: {_some(missing)}" if missing else "")
            + (f"; not in the model: {_some(unexpected)}" if unexpected else "")
            + "".join(f"; {_sizes(key, wanted, given)}" for key in sorted(wrong)[:1]),
            f"give a file of {family_of(wanted)}"
            + ("" if family_of(given) == family_of(()) else ", or set the model in the spec to what the file holds"),
        )
    differing = [*sorted(wrong), *(missing + unexpected if strict else [])]
    if differing:
        fix = "use the spec that the file was trained with"
        beside = source.path.resolve().parent / "experiment.yaml" if isinstance(source, Checkpoint) else None
        fix += f": {beside}" if beside and beside.is_file() else ""
        raise CheckpointError.of(_difference(where, key, wanted, given, explain, fix) for key in differing)
    if not is_shapes_alone(module):
        if name := not_finite({"state_dict": fitting}):
            # some networks hide it: a NaN in an attention's query can vanish, and the outputs look sound
            log.warning("%s: %s is not finite: the training diverged, and results mean nothing", where, name)
        module.load_state_dict(fitting, strict=False)
    return LoadReport(
        what=what,
        wanted=len(needed),
        matched=sum(key in fitting for key in needed),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        reshaped=tuple(sorted(reshaped)),
        kept=tuple(sorted(kept)),
        layouts=layouts,
    )


def is_shapes_alone(module: nn.Module) -> bool:
    """Whether a module was built on torch's device ``meta``: its tensors have no content."""
    return any(parameter.is_meta for parameter in module.parameters())


def _difference(
    where: str, key: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], explain: Explain | None, fix: str
) -> Problem:
    want, got = (tuple(side[key].shape) if key in side else None for side in (wanted, given))
    if want is None:
        found = f"{key} {list(got or ())} is in the file, not in the model"
    elif got is None:
        found = f"{key} {list(want)} is in the model, not in the file"
    else:
        found = _sizes(key, wanted, given)
    reason = explain(key, want, got) if explain else ""
    return Problem(where, found, reason or fix)


def _sizes(key: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    return f"{one_line(key, 100)} is {list(given[key].shape)} in the file, {list(wanted[key].shape)} in the model"


def _among(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _ignorable(key: str, allow: tuple[str, ...]) -> bool:
    return key.endswith(_COUNTER) or _among(key, allow)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(one_line(name, 100) for name in listed[:_NAMED]) + (", …" if len(listed) > _NAMED else "")
