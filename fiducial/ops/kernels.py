"""Which kernel serves a device: the best that this machine can run, chosen once, and said once."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

from fiducial.errors import UserError
from fiducial.ops import reference
from fiducial.ops.kernel import Kernel, UnavailableError

log = logging.getLogger(__name__)

ENVIRONMENT = "FIDUCIAL_MSDA_KERNEL"
"""Environment variable that forces one kernel by name."""


class KernelError(UserError):
    """A kernel that was asked for by name cannot serve here."""


def _load_torch(device: str) -> Kernel:
    return Kernel("torch", reference.forward, reference.backward)


def _load_compiled(device: str) -> Kernel:
    from fiducial.ops import compiled

    return Kernel("cuda" if device == "cuda" else "cpp", *compiled.load(device))


def _load_triton(device: str) -> Kernel:
    try:
        from fiducial.ops import triton_kernel
    except ImportError as error:
        raise UnavailableError(f"{error}; pip install triton") from error

    return Kernel("triton", *triton_kernel.load(device))


_LOADERS: dict[str, Callable[[str], Kernel]] = {
    "torch": _load_torch, "cpp": _load_compiled, "cuda": _load_compiled, "triton": _load_triton
}  # fmt: skip
_PREFERENCE = {"cuda": ("cuda", "triton", "torch"), "cpu": ("cpp", "torch")}
KERNELS = tuple(_LOADERS)
"""Names that :data:`ENVIRONMENT` and the argument ``kernel`` accept."""


def kernel_for(device: str, name: str = "") -> Kernel:
    """The kernel for tensors on this type of device (``cpu``, ``cuda``).

    ``name`` forces one, else the environment does, else the best that loads is taken; the choice is logged once.
    The first use may compile; nothing before it does.

    Raises: KernelError if the forced name is unknown or cannot serve this device on this machine.
    """
    return _choose(device, name, os.environ.get(ENVIRONMENT, ""))


@functools.cache
def _choose(device: str, argument: str, environment: str) -> Kernel:
    forced, source = (argument, "kernel") if argument else (environment, ENVIRONMENT)
    if forced:
        return _forced(device, forced, source)
    passed_over = []
    for name in _PREFERENCE[device]:
        try:
            kernel = _LOADERS[name](device)
        except UnavailableError as reason:
            passed_over.append(f"{name}: {reason}")
            continue
        log.info("deformable attention on %s: kernel %s (%s)", device, name, "; ".join(passed_over) or "the fastest")
        return kernel
    raise AssertionError("the torch kernel always loads")


def _forced(device: str, name: str, source: str) -> Kernel:
    if name not in _LOADERS:
        raise KernelError(source, f"unknown kernel '{name}'", f"one of {', '.join(KERNELS)}, or leave it unset")
    if (name, device) in {("cpp", "cuda"), ("cuda", "cpu")}:
        raise KernelError(
            source, f"kernel '{name}' for tensors on {device}", f"one of {', '.join(_PREFERENCE[device])}"
        )
    try:
        kernel = _LOADERS[name](device)
    except UnavailableError as reason:
        raise KernelError(source, f"kernel '{name}' is not available: {reason}", "or leave it unset") from reason
    log.info("deformable attention on %s: kernel %s (forced by %s)", device, name, source)
    return kernel
