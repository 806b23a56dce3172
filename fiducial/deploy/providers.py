"""What onnxruntime runs a graph on: its execution providers, by their names or the short ones (``cpu``, ``cuda``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fiducial.errors import Problem

__all__ = ["chosen_providers", "short_name", "unavailable"]

_ENDING = "ExecutionProvider"
_AUTOMATIC = ("CUDAExecutionProvider", "CPUExecutionProvider")
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""float32 as it is: onnxruntime would multiply with 10 bits of it."""


def short_name(provider: str) -> str:
    """``CUDAExecutionProvider`` as ``cuda``."""
    return provider.removesuffix(_ENDING).lower()


def unavailable(named: Sequence[str], key: str) -> Iterator[Problem]:
    """A problem for each provider that the installed onnxruntime does not have."""
    if not named:  # not worth the import
        return
    import onnxruntime as ort

    here = {short_name(name) for name in ort.get_available_providers()}
    known = {short_name(name) for name in ort.get_all_providers()}
    for name in named:
        if short_name(name) not in here:
            what = "not in the onnxruntime that is installed" if short_name(name) in known else "no provider"
            yield Problem(key, f"{name!r} is {what}", f"use: {', '.join(sorted(here))}")


def chosen_providers(named: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """onnxruntime's names of available providers, with their options; without any named, a GPU where there is one."""
    import onnxruntime as ort

    available = ort.get_available_providers()
    by_name = {short_name(name): name for name in available}
    chosen = [by_name[short_name(name)] for name in named] or [name for name in _AUTOMATIC if name in available]
    return [(name, _OPTIONS.get(name, {})) for name in chosen]
