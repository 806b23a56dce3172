"""What can be said of building an engine before anything is loaded. No torch, no TensorRT."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fiducial.deploy.digest import ENGINE_SUFFIXES
from fiducial.deploy.tensorrt.layers import SMALL, LayerRules
from fiducial.deploy.triton import check_triton
from fiducial.errors import Problem

__all__ = ["PICTURES", "check_engine", "check_library", "check_precision", "named_engine"]

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
"""What TAO calibrates with, in small letters or capitals."""
FEW = 32
"""Calibration items below which a warning is due."""
_SECTION = "gen_trt_engine.tensorrt"
_LEAST: dict[tuple[str, str], tuple[int, int]] = {
    ("tensorrt", "bf16"): (8, 0),
    ("tensorrt", "fp8"): (8, 9),
    ("rtx", "fp32"): (8, 0),
    ("rtx", "bf16"): (8, 0),
    ("rtx", "fp8"): (8, 9),
}
"""The first compute capability that a library computes in a type on; of others it does on any that it knows."""
_PACKAGES = {"tensorrt": ("tensorrt", "tensorrt"), "rtx": ("tensorrt_rtx_bindings", "tensorrt-rtx")}
"""Of each flavor what is imported, and the extra that brings it."""


def named_engine(section: Any) -> Path | None:
    """The file that a spec names to write."""
    return Path(os.path.expanduser(section.trt_engine)) if section.trt_engine else None


def check_engine(section: Any) -> Iterator[Problem]:
    """What is wrong with a spec's ``gen_trt_engine`` section, whatever the network and the machine."""
    tensorrt = section.tensorrt
    if section.batch_size == 0:
        yield Problem("gen_trt_engine.batch_size", "found 0", "-1 leaves the batch size open, 1 or more fixes it")
    if section.onnx_file and Path(section.onnx_file).suffix.lower() == ".etlt":
        found = "an encrypted .etlt file: its format is NVIDIA's own"
        yield Problem("gen_trt_engine.onnx_file", found, "export the checkpoint as .onnx")
    if (target := named_engine(section)) is not None:
        yield from _check_target(target)
    sizes = [tensorrt.min_batch_size, tensorrt.opt_batch_size, tensorrt.max_batch_size]
    if section.batch_size < 0 and sizes != sorted(sizes):
        found = "min_batch_size {}, opt_batch_size {}, max_batch_size {}".format(*sizes)
        yield Problem(_SECTION, found, "let each be at least the one before it")
    yield from LayerRules.check(tensorrt)
    yield from _check_flavour(tensorrt)
    yield from check_triton(section.triton, "gen_trt_engine.triton")
    if tensorrt.flavor == "rtx" and section.triton.repository:
        fix = "export.triton.repository serves the ONNX file; or build with flavor: tensorrt"
        yield Problem("gen_trt_engine.triton.repository", "Triton does not run engines of TensorRT for RTX", fix)
    if tensorrt.data_type in SMALL:
        yield from _check_calibration(tensorrt.calibration)


def check_precision(tensorrt: Any, capabilities: Iterable[tuple[int, int]]) -> Iterator[Problem]:
    """Types that GPUs lack; ``capabilities`` are those that the engine is for."""
    rules = LayerRules.of(tensorrt)
    used = {rules.half or "fp32", rules.small, *(("fp32",) if tensorrt.rest == "fp32" and rules.small else ())} - {""}
    for capability in capabilities:
        for kind in sorted(used):
            least = _LEAST.get((tensorrt.flavor, kind), (0, 0))
            if capability < least:
                found = f"{kind} on a GPU of compute capability {_said(capability)}, which begins at {_said(least)}"
                others = [k for k in ("fp16", "fp32") if capability >= _LEAST.get((tensorrt.flavor, k), (0, 0))]
                yield Problem(f"{_SECTION}.data_type", found, f"choose {' or '.join(others)}, or another GPU")


def capability(text: str) -> tuple[int, int]:
    """``8.6`` as two numbers."""
    major, minor = text.split(".")
    return int(major), int(minor)


def _said(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def check_library(flavor: str) -> Iterator[Problem]:
    """That what builds an engine is installed."""
    name, extra = _PACKAGES[flavor]
    if name not in sys.modules and find_spec(name) is None:
        yield Problem(f"{_SECTION}.flavor", f"{flavor}: {name} is not installed", f"pip install 'fiducial[{extra}]'")


def _check_target(target: Path) -> Iterator[Problem]:
    key = "gen_trt_engine.trt_engine"
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long a name, or one with NUL in it
        yield Problem(key, f"cannot write to {str(target)!r} ({error})", "name a file, model.engine say")
        return
    if target.is_dir():
        yield Problem(key, f"{target} is a folder", f"name the file: {target / 'model.engine'}")
    elif target.suffix.lower() not in ENGINE_SUFFIXES:
        # what runs a model file goes by its suffix, and a model of another kind must not be written over
        known, fix = ", ".join(ENGINE_SUFFIXES), target.with_suffix(ENGINE_SUFFIXES[0]).name
        yield Problem(key, f"{target.name} ends in none of {known}", f"name it {fix}")


def _check_flavour(tensorrt: Any) -> Iterator[Problem]:
    if tensorrt.flavor == "rtx":
        for name, off in (("version_compatible", False), ("hardware_compatibility", "none")):
            if getattr(tensorrt, name) != off:
                fix = "leave it out: name the GPUs in compute_capability instead"
                yield Problem(f"{_SECTION}.{name}", "TensorRT for RTX has no such engines", fix)
        yield from check_precision(tensorrt, map(capability, tensorrt.compute_capability))
    elif tensorrt.compute_capability:
        found = f"{', '.join(tensorrt.compute_capability)}, and TensorRT builds for the GPU that it runs on"
        yield Problem(f"{_SECTION}.compute_capability", found, "leave it out, or set flavor: rtx")


def _check_calibration(calibration: Any) -> Iterator[Problem]:
    key = f"{_SECTION}.calibration"
    wanted = calibration.cal_batches * calibration.cal_batch_size
    cache = Path(os.path.expanduser(calibration.cal_cache_file or ""))
    if calibration.cal_cache_file and cache.is_dir():
        yield Problem(f"{key}.cal_cache_file", f"{cache} is a folder", f"name the file: {cache / 'cal.bin'}")
    if wanted < FEW and not cache.is_file():
        found = f"cal_batches {calibration.cal_batches} x cal_batch_size {calibration.cal_batch_size}: {wanted} items"
        yield Problem(key, found, "a few hundred make a better int8 engine", "warning")
    if not calibration.cal_image_dir:
        return
    folders = [Path(os.path.expanduser(name)) for name in calibration.cal_image_dir]
    for folder in folders:
        if not folder.exists():
            yield Problem(f"{key}.cal_image_dir", f"no folder {folder}", "name folders of images")
        elif folder.is_dir() and not any(_pictures(folder)):
            found = f"{folder} holds no image ({', '.join(PICTURES)})"
            yield Problem(f"{key}.cal_image_dir", found, "name folders of images")
    if all(folder.is_dir() for folder in folders):
        count = sum(1 for _ in islice(chain.from_iterable(map(_pictures, folders)), wanted))
        if 0 < count < wanted:
            found = f"{count} images for cal_batches {calibration.cal_batches} x {calibration.cal_batch_size}"
            yield Problem(key, found, "add images, or lower cal_batches")


def _pictures(folder: Path) -> Iterator[str]:
    """Image files below a folder; one at a time, for there may be millions."""
    for _, _, names in os.walk(folder, followlinks=True):
        yield from (name for name in names if name.lower().endswith(PICTURES))
