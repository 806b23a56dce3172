"""Which of several ways to compute the same is the fastest here: timed once on the machine at hand, then kept.

Makers and generations of processors differ, and no table knows the one a user has. ``FIDUCIAL_MEASURE=off`` times
nothing and takes the plain way. What was found is kept in the cache folder (``$FIDUCIAL_CACHE``) under the processor's
name, so that later runs, and a training that is continued, compute alike.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fiducial.data.cache import Cache, default_cache_dir, digest

__all__ = ["VARIABLE", "Fastest", "machine", "processor"]

log = logging.getLogger("fiducial")

VARIABLE = "FIDUCIAL_MEASURE"
GAIN = 0.9
"""Another way than the plain one must take at most this part of its time: a tie is not worth other roundings."""
ROUNDS = (3, 9)
"""How often each way is timed, in turns: at least, and at most."""
SECONDS_EACH, SECONDS_ALL = 0.04, 0.4
"""About how long one question, and all questions of one mode, may take in a process."""
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that keep libraries from using all that the processor can do."""

Shape = tuple[int, ...]
Answer = dict[str, Any]
"""The ``way`` of a question, and the least milliseconds of each way where it was timed."""


@cache
def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def machine() -> list[str]:
    """What decides how fast something is computed here, and by which instructions."""
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return [processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__, *limits]


def _is_off() -> bool:
    return os.environ.get(VARIABLE, "").lower() in ("off", "0", "no", "false")


def _itself(saved: Tensor) -> Tensor:
    return saved


class Fastest:
    """Answers which of ``ways`` to take for a shape of ``subject``, and remembers it; the first is the plain one.

    A question is a mode and a shape. One that there is no time left for gets the answer of the nearest shape of its
    mode. ``timer`` gives seconds.
    """

    def __init__(
        self,
        subject: str,
        ways: tuple[str, ...],
        *,
        timer: Callable[[], float] = time.perf_counter,
        folder: Path | None = None,
    ) -> None:
        self.subject, self.ways = subject, ways
        self._timer, self._folder = timer, folder
        self._cannot_keep = False
        self._spent: dict[str, float] = {}
        self._used: dict[tuple[int, str, Shape], str] = {}
        self._found: dict[int, dict[str, Answer]] = {}
        """What is known, by the number of threads: they decide, too."""

    def way(self, mode: str, shape: Shape, make: Callable[[], Sequence[Callable[[], object]]]) -> str:
        """The way to take. Where it has to be timed, ``make`` gives what is run, in the order of the ways."""
        question = (torch.get_num_threads(), mode, shape)
        if (known := self._used.get(question)) is None:
            known = self._used[question] = self._answer(*question, make)
        return known

    def describe(self) -> str:
        """What was taken so far, in a line; empty where nothing was asked."""
        modes = sorted({mode for _, mode, _ in self._used})
        counts = {mode: Counter(way for (_, of, _), way in self._used.items() if of == mode) for mode in modes}
        said = (f"{mode}: " + ", ".join(f"{way} {n}" for way, n in found.items()) for mode, found in counts.items())
        told = "; ".join(said)
        if told and _is_off():
            return f"{self.subject} the plain way: {VARIABLE}=off"
        return f"{self.subject} by what is fastest on {processor()}, shapes in {told}" if told else ""

    def _answer(self, threads: int, mode: str, shape: Shape, make: Callable[[], Sequence[Callable[[], object]]]) -> str:
        if _is_off():
            return self.ways[0]
        name = f"{mode} {_text(shape)}"
        found = self._found.get(threads) or self._read(threads)
        if name not in found:
            start, spent = self._timer(), self._spent.get(mode, 0.0)
            timed = spent < SECONDS_ALL
            with saved_tensors_hooks(_itself, _itself):  # a checkpointed block would take what is timed for its own
                found[name] = self._timed(make()) if timed else {"way": self._nearest(found, mode, shape)}
            self._spent[mode] = spent + self._timer() - start
            found = self._keep(threads, found)
        self._found[threads] = found
        return str(found[name]["way"])

    def _timed(self, runs: Sequence[Callable[[], object]]) -> Answer:
        for run in runs:
            run()  # what is set up at a first call
        begun, times = self._timer(), [[] for _ in runs]  # type: tuple[float, list[list[float]]]
        while len(times[0]) < ROUNDS[0] or (len(times[0]) < ROUNDS[1] and self._timer() - begun < SECONDS_EACH):
            for run, taken in zip(runs, times, strict=True):
                before = self._timer()
                run()
                taken.append(self._timer() - before)
        best = {way: round(min(taken) * 1e3, 4) for way, taken in zip(self.ways, times, strict=True)}
        return {"way": self.ways[_winner(times)], "ms": best}

    def _nearest(self, found: Mapping[str, Answer], mode: str, shape: Shape) -> str:
        """What was found for the shape of this mode whose sides differ least, by their ratios."""
        timed = [(name, answer["way"]) for name, answer in found.items() if "ms" in answer]
        near = [(_shape(name), way) for name, way in timed if name.startswith(f"{mode} ")]
        near = [(other, way) for other, way in near if len(other) == len(shape)]
        far = {way: sum(abs(math.log(a / b)) for a, b in zip(other, shape, strict=True)) for other, way in near}
        return min(far, key=far.__getitem__, default=self.ways[0])

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _record(self, threads: int) -> str:
        return f"fastest-{digest(' | '.join([self.subject, str(threads), *machine()]))[:16]}"

    def _read(self, threads: int) -> dict[str, Answer]:
        found = self._cache.read(self._record(threads)).get("found")
        entries = found.items() if isinstance(found, dict) else ()
        return {name: entry for name, entry in entries if isinstance(entry, dict) and entry.get("way") in self.ways}

    def _keep(self, threads: int, found: dict[str, Answer]) -> dict[str, Answer]:
        """All that is known now: of two processes, the first one's answer counts."""
        about = {"subject": self.subject, "processor": processor(), "threads": threads, "torch": torch.__version__}
        try:
            found = found | self._read(threads)
            self._cache.write(self._record(threads), {**about, "found": found})
        except OSError as error:  # the next process finds it again
            if not self._cannot_keep:
                told = f"{self._cache.root}: cannot keep which {self.subject} are fastest ({error.strerror or error})"
                log.warning("%s · free space there, or set FIDUCIAL_CACHE to a folder that can be written", told)
            self._cannot_keep = True
        return found

    @property
    def _cache(self) -> Cache:
        return Cache(self._folder or default_cache_dir())


def _winner(times: Sequence[Sequence[float]]) -> int:
    """The plain way, unless another is faster by its least and by its median time: one of them alone may be noise."""
    plain = times[0]
    faster = [n for n, taken in enumerate(times) if all(of(taken) <= GAIN * of(plain) for of in (min, median))]
    return min(faster, key=lambda n: min(times[n]), default=0)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _shape(name: str) -> Shape:
    sides = name.rpartition(" ")[2].split("x")
    return tuple(map(int, sides)) if all(side.isdecimal() and int(side) for side in sides) else ()
