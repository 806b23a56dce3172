"""The one place that imports TensorRT: the library itself, or TensorRT for RTX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from fiducial.deploy.tensorrt.surface import Bindings
from fiducial.errors import MissingDependencyError, one_line, optional
from fiducial.run.console import LOGGER

__all__ = ["FIRST", "TITLES", "Flavour", "FlavourName", "Said", "load"]

FlavourName = Literal["tensorrt", "rtx"]
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
FIRST = 10
"""The first major version of TensorRT whose networks can be strongly typed as they are needed here."""


class Said:
    """What the library has logged: its errors are kept, for the message of what fails then."""

    def __init__(self, trt: Bindings, *, verbose: bool = False) -> None:
        self.errors: list[str] = []
        severity = trt.ILogger.Severity
        worst = (severity.INTERNAL_ERROR, severity.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(logger) -> None:  # noqa: N805
                trt.ILogger.__init__(logger)

            def log(logger, level: Any, message: str) -> None:  # noqa: N805
                if level in worst:
                    self.errors.append(message)
                elif verbose or level == severity.WARNING:
                    (LOGGER.info if verbose else LOGGER.debug)("TensorRT: %s", message)

        self.logger = Logger()

    def last(self, otherwise: str) -> str:
        """The newest error, in one line, which is forgotten with those before it."""
        found = one_line(self.errors[-1]) if self.errors else otherwise
        self.errors.clear()
        return found


@dataclass(frozen=True)
class Flavour:
    """An imported library."""

    name: FlavourName
    trt: Bindings

    @property
    def title(self) -> str:
        """What people call it."""
        return TITLES[self.name]

    @property
    def version(self) -> str:
        """All of it: an engine is of one build."""
        return str(self.trt.__version__)

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])

    @property
    def strongly_typed(self) -> int:
        """The flags of a network whose types are those of its graph: from TensorRT 11 on, and in RTX, all are so."""
        if self.name == "tensorrt" and self.major < 11:
            return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return 0


def load(name: FlavourName) -> Flavour:
    """Import a library. Raises: MissingDependencyError naming the extra, or a version that is too old."""
    if name == "rtx":
        optional("tensorrt_rtx_libs", extra="tensorrt-rtx")  # where the other one finds its libraries
        module = optional("tensorrt_rtx_bindings", extra="tensorrt-rtx")
    else:
        module = optional("tensorrt", extra="tensorrt")
    if not hasattr(module, "Builder"):  # a namespace package: what is left of one that is not installed whole
        raise MissingDependencyError(module.__name__, "not installed whole: it has no Builder", "install it again")
    found = Flavour(name, cast(Bindings, module))
    if name == "tensorrt" and found.major < FIRST:
        fix = f"pip install 'tensorrt>={FIRST}'"
        raise MissingDependencyError("tensorrt", f"TensorRT {found.version} has no strongly typed networks", fix)
    return found
