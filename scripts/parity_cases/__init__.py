"""Parity cases: stored inputs and outputs of other implementations, run through ours.

A case is ``<name>.json`` (the manifest) and ``<name>.npz`` (its expected outputs, sampled). The manifest names a
``run`` and perhaps what to ``build``; a function registered for them by :func:`runs` makes the outputs. Every module of
this package registers its own: a new family is a new file.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parity_cases import recipe

__all__ = [
    "Case",
    "CaseError",
    "NotBuilt",
    "Outcome",
    "Runner",
    "check_output",
    "load_case",
    "load_runners",
    "run_case",
    "runs",
]

Output = Tensor | NDArray[Any] | float
Runner = Callable[["Case"], Mapping[str, Output]]

_RUNNERS: dict[tuple[str | None, str | None], Runner] = {}


class CaseError(Exception):
    """The files of a case cannot be used."""


class NotBuilt(Exception):  # noqa: N818 (no error)
    """The case is of a kind that the project does not have (yet)."""


@dataclass(frozen=True)
class Case:
    """One case, read."""

    name: str
    manifest: Mapping[str, Any]
    expected: Mapping[str, NDArray[Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """What the case was made with."""
        config: Mapping[str, Any] = self.manifest["config"]
        return config

    def inputs(self) -> dict[str, Tensor]:
        """All inputs, by name."""
        return {name: recipe.make_input(entry) for name, entry in self.manifest["inputs"].items()}

    def weights(self) -> dict[str, Tensor]:
        """The whole checkpoint, in the manifest's order."""
        return recipe.state_dict(self.manifest)

    def wants(self, prefix: str) -> bool:
        """Whether some output's name begins so."""
        return any(name.startswith(prefix) for name in self.manifest["outputs"])


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    name: str
    status: Literal["pass", "FAIL", "not built"]
    note: str


def runs(run: str | None, *, build: str | None = None) -> Callable[[Runner], Runner]:
    """Register a function for the cases of this ``run``; with ``build``, for those that build this alone."""

    def register(runner: Runner) -> Runner:
        _RUNNERS[run, build] = runner
        return runner

    return register


def load_runners() -> None:
    """Import every module of this package, so that its runs are registered."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


def load_case(path: Path) -> Case:
    """Read ``path`` (the manifest) and the ``.npz`` beside it.

    Raises: CaseError saying what is wrong with the files.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaseError(f"unreadable manifest: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
        raise CaseError("no manifest: it has no table 'outputs'")
    return Case(path.stem, manifest, _load_arrays(path.with_suffix(".npz")) if manifest["outputs"] else {})


def run_case(path: Path) -> Outcome:
    """Run and check one case; whatever goes wrong with it is its outcome."""
    name = path.stem
    try:
        case = load_case(path)
        outputs = _runner(case)(case)
        return _judge(case, outputs)
    except NotBuilt as reason:
        return Outcome(name, "not built", str(reason))
    except CaseError as error:
        return Outcome(name, "FAIL", str(error))
    except Exception as error:  # one broken case must not hide the others
        return Outcome(name, "FAIL", f"{type(error).__name__}: {error}".replace("\n", " ")[:300])


def check_output(got: Output, info: Mapping[str, Any], want: NDArray[Any]) -> tuple[bool, float, float]:
    """Compare one full-size output with its stored sample: (passed, largest error, largest error / allowed).

    Allowed is ``atol + rtol * |want|``; where the manifest has ``accept``, ``fraction`` of the positions may differ by
    up to ``error`` instead. NaNs and infinities must be where they are expected.

    Raises: CaseError when the shape is not the manifest's, or the sample does not fit it.
    """
    array = np.asarray(got.detach().cpu().numpy() if isinstance(got, Tensor) else got)
    if list(array.shape) != list(info["shape"]):
        raise CaseError(f"shape {list(array.shape)} instead of {info['shape']}")
    sample = array.ravel()[:: info["stride"]].astype(np.float64)
    want = want.astype(np.float64).ravel()
    if sample.shape != want.shape:
        raise CaseError(f"{want.size} stored values instead of {sample.size}")
    if sample.size == 0:
        return True, 0.0, 0.0
    finite = np.isfinite(sample) & np.isfinite(want)
    error = np.where((sample == want) | (np.isnan(sample) & np.isnan(want)), 0.0, np.inf)
    error[finite] = np.abs(sample[finite] - want[finite])
    allowed = info["atol"] + info["rtol"] * np.abs(np.where(finite, want, 0.0))
    over = error > allowed
    largest, ratio = float(error.max()), float((error / np.maximum(allowed, 1e-300)).max())
    accept = info.get("accept", {"fraction": 0.0, "error": 0.0})
    passed = not over.any() or (over.mean() <= accept["fraction"] and largest <= accept["error"])
    return bool(passed), largest, ratio


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, numpy and the file system have an error each
        raise CaseError(f"unreadable {path.name}: {error}") from error


def _runner(case: Case) -> Runner:
    run, build = case.manifest.get("run"), case.manifest.get("build")
    runner = _RUNNERS.get((run, build)) or _RUNNERS.get((run, None))
    if runner is None:
        raise NotBuilt(f"run {run!r}" + (f", build {build!r}" if build else ""))
    return runner


def _judge(case: Case, outputs: Mapping[str, Output]) -> Outcome:
    worst_ratio, worst_note = 0.0, ""
    failures = []
    for name, info in case.manifest["outputs"].items():
        if name not in outputs or name not in case.expected:
            failures.append(f"{name}: {'not computed' if name not in outputs else 'not stored'}")
            continue
        try:
            passed, error, ratio = check_output(outputs[name], info, case.expected[name])
        except CaseError as reason:
            failures.append(f"{name}: {reason}")
            continue
        note = f"{name} {error:.3g} = {ratio:.3g} of the allowed"
        if not passed:
            failures.append(note)
        if ratio >= worst_ratio:
            worst_ratio, worst_note = ratio, note
    if failures:
        return Outcome(case.name, "FAIL", "; ".join(failures))
    return Outcome(case.name, "pass", worst_note)
