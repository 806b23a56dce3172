"""Networks compiled for the machine at hand: the same outputs sooner, after a first start that takes minutes.

On a CPU a graph with an open batch axis is compiled ahead of time, its weights folded in, and kept in the cache folder:
later starts load it in seconds. On a GPU ``torch.compile`` does it, which keeps what it compiles by itself. What cannot
be compiled runs as it is, and one line says why.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fiducial.data.cache import Cache
from fiducial.errors import one_line
from fiducial.ops.build import cache_dir
from fiducial.ops.fastest import machine
from fiducial.spec.common import CompileMode

__all__ = ["compile_calls"]

log = logging.getLogger("fiducial")

KEPT = 8
"""Graphs that stay in the cache folder, the last used ones."""
MOST_SHAPES = 4
"""Sizes of inputs that a call is compiled for; others run as they are."""
RTOL, ATOL = 1e-4, 1e-5
"""How far outputs may be from those of the network as it is: relative to the largest, and absolute."""
_TRACED = 13
"""The batch that is traced with, which no other size may equal: inductor then takes one for the other (seen in torch
2.14: memory was written beyond its end); and one item would be taken for a constant."""

Call = Callable[..., Any]


def compile_calls(network: nn.Module, calls: Iterable[str], mode: CompileMode | bool = True) -> None:
    """Replace methods of an evaluated ``network`` by what compiles itself when it is first called.

    ``calls``: methods that take tensors, or tuples of them, and whose tensors all have the batch as their first axis.
    The names and values of the weights stay what they are; those that are loaded later do not count.
    ``mode``: of ``torch.compile``; on a CPU they are all the same.
    """
    for name in calls:
        setattr(network, name, _Compiled(network, name, getattr(network, name), mode))


class _Compiled:
    """One method, compiled for each shape of its inputs but for their batch axis."""

    def __init__(self, network: nn.Module, name: str, eager: Call, mode: CompileMode | bool) -> None:
        self._network, self._name, self._eager, self._mode = network, name, eager, mode
        self._made: dict[tuple[Any, ...], Call] = {}

    def __call__(self, *arguments: Any) -> Any:
        given = tree_leaves(arguments)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():  # a part of another graph, or of a training
            return self._eager(*arguments)
        key = tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in given)
        if key not in self._made:
            self._made[key] = self._compile(arguments, given[0].device.type)
        return self._made[key](*arguments)

    def _compile(self, arguments: tuple[Any, ...], device: str) -> Call:
        if len(self._made) >= MOST_SHAPES:
            log.warning("%s met %d sizes of inputs: others run uncompiled", self._name, MOST_SHAPES)
            return self._eager
        start = time.monotonic()
        try:
            with torch.no_grad():
                expected = self._eager(*arguments)
                ran, how = self._on_cpu(arguments) if device == "cpu" else self._elsewhere()
                with _quiet():  # what compiles at its first call
                    worst = _difference(expected, ran(*arguments))
                if device == "cpu":  # and for another batch, to see that the axis is open
                    more = tree_map(lambda x: torch.cat((x, x[:1])), arguments)
                    worst = max(worst, _difference(self._eager(*more), ran(*more)))
        except Exception as error:  # whatever a compiler says: the network itself is fine
            log.warning("%s is not compiled: %s", self._name, one_line(f"{type(error).__name__}: {error}", 200))
            return self._eager
        if worst > 1:
            log.warning("%s is not compiled: its outputs would differ, %.1f times what is allowed", self._name, worst)
            return self._eager
        log.info("%s compiled in %.1f s%s", self._name, time.monotonic() - start, how)
        return ran

    def _elsewhere(self) -> tuple[Call, str]:
        mode = None if isinstance(self._mode, bool) else self._mode
        return torch.compile(self._eager, fullgraph=True, mode=mode), ""

    def _on_cpu(self, arguments: tuple[Any, ...]) -> tuple[Call, str]:
        batch = torch.export.Dim("batch", min=1, max=65536)
        traced = tree_map(_traced, arguments)
        shapes = {"arguments": tree_map(lambda _: {0: batch}, traced)}
        with _quiet():
            method = _Method(self._network, self._eager)
            program = torch.export.export(method, traced, dynamic_shapes=shapes, strict=False)
        cache = Cache(cache_dir().parent / "compiled")
        path = cache.root / "graphs" / f"{_digest(program)}.pt2"
        if _is_whole(path):
            with suppress(OSError):  # in a folder that is read only
                path.touch()  # see _forget
            return _loaded(path), f", with what {path.parent} keeps"
        log.info("compiling %s for this processor: some minutes, once", self._name)
        package = lru_cache(partial(_package, program))
        try:
            cache.publish(path, lambda part: part.write_bytes(package()), replace=path.exists())
            _forget(path.parent)
        except OSError as error:
            fix = "free space there, or set XDG_CACHE_HOME to another folder"
            why = error.strerror or error
            log.warning("%s: cannot keep what is compiled (%s): every start compiles anew · %s", cache.root, why, fix)
            return _loaded(io.BytesIO(package())), ""
        return _loaded(path), f"; {path.parent} keeps it"


class _Method(nn.Module):
    """A method as a module, for ``torch.export``."""

    def __init__(self, network: nn.Module, method: Call) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *arguments: Any) -> Any:
        return self.method(*arguments)


def _package(program: torch.export.ExportedProgram) -> bytes:
    """A compiled graph; not as a file, since torch ends the process where a disk is full."""
    settings = {"freezing": True}  # fold the weights in, in the layout that the processor likes
    written = io.BytesIO()
    with _quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=written, inductor_configs=settings)
    return written.getvalue()


def _is_whole(path: Path) -> bool:
    """Whether a graph is there as it was written: half of one would end the process."""
    try:
        with ZipFile(path) as file:
            damaged = file.testzip() is not None
    except OSError:  # most often there is none
        return False
    except Exception:  # whatever the bytes happen to say
        damaged = True
    if damaged:
        log.warning("%s: damaged, and made again", path)
    return not damaged


def _loaded(graph: Path | io.BytesIO) -> Call:
    """Raises: PermissionError for a file that another user could have written: it is code."""
    for place in (graph, graph.parent) if isinstance(graph, Path) else ():
        status = place.stat()
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise PermissionError(f"{place} can be written by others: make it yours alone (chmod go-w)")
    with _quiet():
        loaded: Call = torch._inductor.aoti_load_package(graph)
    # the graph reads memory as it lay when it was traced, and looks at no strides
    return lambda *arguments: loaded(*tree_map(Tensor.contiguous, arguments))


def _forget(folder: Path) -> None:
    """Keep the graphs that were used last."""
    graphs = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in graphs[KEPT:]:
        path.unlink(missing_ok=True)


def _digest(program: torch.export.ExportedProgram) -> str:
    """Of all that the compiled graph depends on: what it computes and of which sizes, its weights, and the machine."""
    inputs = [f"{x.dtype} {tuple(x.shape)}" for x in tree_leaves(program.example_inputs)]  # the code names no sizes
    about = [*machine(), str(program.graph_module.code), str(program.range_constraints), *inputs]
    told = hashlib.sha256("\n".join(about).encode())
    for name, tensor in sorted((program.state_dict | program.constants).items()):
        if isinstance(tensor, Tensor):
            plain = tensor.detach().cpu().contiguous()
            told.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            told.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _traced(x: Tensor) -> Tensor:
    """A batch to trace with."""
    return x[:1].expand(_TRACED, *x.shape[1:]).contiguous()


def _difference(expected: Any, found: Any) -> float:
    """The largest difference, in what is allowed."""
    worst = 0.0
    for one, other in zip(tree_leaves(expected), tree_leaves(found), strict=True):
        allowed = ATOL + RTOL * float(one.abs().max())
        far = float((one.float() - other.float()).abs().where(one.isfinite() | other.isfinite(), 0.0).max())
        worst = max(worst, far / allowed if far == far else math.inf)
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """What compilers warn of does not concern who runs a network."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
