"""What can be said of an export before anything heavy is loaded. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiducial.deploy.opsets import check_opset
from fiducial.deploy.triton import check_triton
from fiducial.errors import Problem

__all__ = ["SUFFIX", "check_export", "check_targets", "named_target"]

SUFFIX = ".onnx"


def check_export(section: Any) -> Iterator[Problem]:
    """What is wrong with a spec's ``export`` section, whatever the network."""
    yield from check_opset(section.opset_version, quantized=section.is_quantized)
    if section.batch_size == 0:
        yield Problem("export.batch_size", "found 0", "-1 leaves the batch size open, 1 or more fixes it")
    yield from check_triton(section.triton, "export.triton")
    if section.openvino and section.is_quantized:  # whose int8 overflows there on processors without VNNI
        found = "true, with export.is_quantized: OpenVINO computes something else from ModelOpt's numbers"
        yield Problem("export.openvino", found, "quantize the exported graph, with quantize.backend=openvino")
    if section.onnx_file:
        yield from check_targets(section, named_target(section))


def named_target(section: Any) -> Path:
    """The file that a spec names; ``~`` is the home of whoever there is, else a folder of that name."""
    return Path(os.path.expanduser(section.onnx_file))  # pathlib's raises for a user there is not


def check_targets(section: Any, target: Path) -> Iterator[Problem]:
    """Why the ONNX file, or another of the same name that is asked for, cannot be written."""
    problems = list(check_target(target, overwrite=section.overwrite))
    yield from problems
    if not section.openvino or problems:
        return
    for suffix in (".xml", ".bin"):
        other = target.with_suffix(suffix)
        if other.is_dir():
            yield Problem("export.openvino", f"{other} is a folder", "set another export.onnx_file")
        elif os.path.lexists(other) and not section.overwrite:
            fix = "set export.overwrite=true, or another export.onnx_file"
            yield Problem("export.openvino", f"{other} exists already", fix)


def check_target(target: Path, *, overwrite: bool) -> Iterator[Problem]:
    """Why a file of this name cannot be written."""
    key, suffix = "export.onnx_file", target.suffix.lower()
    there = True
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as error:  # too long a name, or one with NUL in it
        yield Problem(key, f"cannot write to {str(target)!r} ({error})", f"name a file, model{SUFFIX} say")
        return
    if suffix == ".etlt":
        yield Problem(key, "an encrypted .etlt file: its format is NVIDIA's own", f"write {SUFFIX}")
    elif there and target.is_dir():
        yield Problem(key, f"{target} is a folder", f"name the file: {target / 'model'}{SUFFIX}")
    elif suffix != SUFFIX:
        # what runs a model file goes by its suffix, and a checkpoint must not be written over
        yield Problem(key, f"{target.name} does not end in {SUFFIX}", f"name it {target.with_suffix(SUFFIX).name}")
    elif there and not overwrite:
        yield Problem(key, f"{target} exists already", "set export.overwrite=true, or another name")
