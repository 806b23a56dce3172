"""Builds the compiled kernels in ``csrc/``: ``python -m fiducial.ops.build``.

Both are plain shared libraries on libtorch's stable ABI: the CPU one needs a C++ compiler and torch's headers, the CUDA
one nvcc besides; neither needs the rest of the CUDA toolkit. What is built on first use or by hand lands in a cache,
under a name that tells the sources, the torch and the devices that it is for. Libraries that a wheel brings
(``--output csrc/build`` before the wheel is made) are named alike, without torch: one binary serves many versions.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock

from fiducial.ops.kernel import UnavailableError
from fiducial.resources import resource_dir

log = logging.getLogger(__name__)

Target = Literal["cpu", "cuda"]
Arch = tuple[int, int]
ARCHITECTURES: tuple[Arch, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""GPU generations that are built for ahead of time, as far as nvcc knows them; the last also as PTX, for later ones."""
OLDEST_TORCH = (2, 10)
"""The first torch whose stable ABI has all that the kernels use. They are built to run with it and every later one."""

_SOURCES: dict[Target, tuple[str, ...]] = {
    "cpu": ("message_passing_cpu.cpp", "ms_deform_attn_cpu.cpp"),
    "cuda": ("ms_deform_attn_cuda.cu",),
}


def library(target: Target) -> Path:
    """The shared library for this machine (and all of its GPUs), built now if there is none yet.

    Raises: UnavailableError saying what is missing and what to install.
    """
    _check_torch()
    if target == "cpu":
        return _find("cpu", _serves_cpu) or build("cpu")
    archs = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    found = _find("cuda", lambda names: all(_serves_gpu(names, arch) for arch in archs))
    return found or build("cuda", architectures=archs)


def build(target: Target, *, architectures: Sequence[Arch] = (), output: Path | None = None) -> Path:
    """Compile one library: into the cache for this machine, or into ``output`` for others too.

    ``architectures`` (of ``cuda``) default to :data:`ARCHITECTURES` and PTX. Processes that want the same library build
    it once.

    Raises: UnavailableError if torch is too old, if a compiler or one of its parts is missing, or if it fails.
    """
    _check_torch()
    if target == "cpu":
        names, command = _cpu_command(portable=output is not None)
    else:
        names, command = _cuda_command(find_nvcc(), architectures)
    path = (output or cache_dir()) / f"{_stem(target, packaged=output is not None)}-{'.'.join(names)}.so"
    try:
        for folder in (path.parent, cache_dir()):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / f"{path.name}.lock"):
            if not path.exists():
                log.info("building the compiled kernels for %s (once, up to a minute): %s", target, path)
                _compile(command, path)
    except OSError as error:
        raise UnavailableError(f"{error}; XDG_CACHE_HOME names another folder for what is built") from error
    return path


def torch_is_new_enough() -> bool:
    """Whether libraries can be built for this torch, and loaded by it."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= OLDEST_TORCH


def _check_torch() -> None:
    if not torch_is_new_enough():
        raise UnavailableError(f"needs torch {'.'.join(map(str, OLDEST_TORCH))}, this is {torch.__version__}")


def cache_dir() -> Path:
    """Where this machine's libraries are kept: ``fiducial/kernels`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fiducial" / "kernels"


def _sources(target: Target) -> list[Path]:
    return [resource_dir("csrc") / name for name in _SOURCES[target]]


def _stem(target: Target, *, packaged: bool) -> str:
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in _sources(target)))
    digest.update(b"" if packaged else torch.__version__.encode())
    return f"kernels_{target}-{digest.hexdigest()[:12]}"


def _find(target: Target, serves: Callable[[list[str]], bool]) -> Path | None:
    """A library from the wheel, else from the cache, for these sources and for this device among others."""
    for folder, packaged in ((resource_dir("csrc") / "build", True), (cache_dir(), False)):
        stem = _stem(target, packaged=packaged)
        for path in sorted(folder.glob(f"{stem}-*.so")):
            if serves(path.stem.removeprefix(f"{stem}-").split(".")):
                return path
    return None


def _compile(command: list[str], path: Path) -> None:
    """Run the compiler into a file beside ``path`` and move it there, so that nobody loads half a library."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise UnavailableError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())  # a file that a power failure cuts off would kill whoever loads it
    unfinished.replace(path)


def torch_flags() -> list[str]:
    """What a compiler must be told to build against torch's stable ABI; put it behind the source."""
    home = Path(torch.__file__).parent
    target = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
    return [target, "-I", str(home / "include"), "-L", str(home / "lib"), "-ltorch_cpu"]


# --- CPU --------------------


def _cpu_command(*, portable: bool) -> tuple[list[str], list[str]]:
    chosen = shlex.split(os.environ.get("CXX", ""))  # perhaps with options, or behind ccache
    named = [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]
    compiler = next((words for words in named if shutil.which(words[0])), None)
    if compiler is None:
        raise UnavailableError(f"no C++ compiler ({', '.join(words[0] for words in named)}): install g++")
    is_x86 = platform.machine() == "x86_64"
    tuned = ([f"-march={'x86-64-v3' if portable else 'native'}"] if is_x86 else []) + (
        ["-mcpu=native"] if not portable and not is_x86 else []
    )
    loops = ["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", *tuned]
    command = [*compiler, "-std=c++20", "-shared", "-fPIC", *loops, *map(str, _sources("cpu")), *torch_flags()]
    return ["portable" if portable else _native_name()], command


def _native_name() -> str:
    """One name for all CPUs with the same instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    instructions = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.machine())
    return f"native_{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


def _serves_cpu(names: list[str]) -> bool:
    fast = platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    return names == [_native_name()] or (names == ["portable"] and fast)


# --- CUDA --------------------


def find_nvcc() -> Path:
    """nvcc from ``CUDA_HOME``, ``PATH`` or pip's packages: the first of the same major version as torch's CUDA.

    Raises: UnavailableError.
    """
    if torch.version.cuda is None:
        raise UnavailableError("this torch is built without CUDA")
    wanted, others = torch.version.cuda.split(".")[0], []
    for nvcc in _nvcc_candidates():
        found = re.search(r"release (\d+)\.", _output([str(nvcc), "--version"]))
        if found and found[1] == wanted:
            return nvcc
        others.append(f"; {nvcc} is of CUDA {found[1] if found else '?'}")
    package = "nvidia-cuda-nvcc-cu12" if wanted == "12" else f"nvidia-cuda-nvcc=={wanted}.*"
    raise UnavailableError(
        f"no nvcc of CUDA {wanted} in CUDA_HOME, PATH or pip's packages{''.join(others)}; pip install '{package}'"
    )


def _nvcc_candidates() -> Iterator[Path]:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = [Path(found) for found in [shutil.which("nvcc")] if found]
    candidates = [*(home / "bin/nvcc" for home in homes), *on_path, *(home / "bin/nvcc" for home in _pip_cuda())]
    return filter(Path.is_file, candidates)


def _pip_cuda() -> list[Path]:
    """The folders of pip's CUDA packages: ``nvidia/cu13``; for CUDA 12 ``nvidia/cuda_nvcc``, ``cuda_runtime``, …"""
    spec = find_spec("nvidia")
    roots = (spec and spec.submodule_search_locations) or []
    return [folder for root in roots for folder in sorted(Path(root).glob("cu*"))]


def _cuda_command(nvcc: Path, asked: Sequence[Arch]) -> tuple[list[str], list[str]]:
    known = re.findall(r"compute_(\d+)", _output([str(nvcc), "--list-gpu-arch"]))
    numbers = [f"{major}{minor}" for major, minor in sorted(asked or ARCHITECTURES)]
    kept = [number for number in numbers if number in known]
    if not kept or (asked and kept != numbers):
        raise UnavailableError(f"{nvcc} builds for {', '.join(known)}, not {', '.join(sorted({*numbers} - {*kept}))}")
    names, code = [f"sm{n}" for n in kept], [f"arch=compute_{n},code=sm_{n}" for n in kept]
    if not asked:
        names.append(f"ptx{kept[-1]}")
        code.append(f"arch=compute_{kept[-1]},code=compute_{kept[-1]}")

    # pip's packages come first: their runtime is the one that torch loads
    homes = [*_pip_cuda(), nvcc.resolve().parents[1], Path(torch.__file__).parent]
    runtime = [path for home in homes for path in sorted(home.glob("lib*/libcudart*.so.*"))]
    headers = [path.parent for home in homes for path in home.glob("include/cuda_runtime.h")]
    if not runtime or not headers:
        raise UnavailableError("no CUDA runtime or no headers of it; pip install nvidia-cuda-runtime")
    command = [str(nvcc), "-std=c++20", "-shared", "-O3", "-Xcompiler", "-fPIC", "-cudart", "none", "--threads", "0"]
    command += [part for arch in code for part in ("-gencode", arch)]
    command += ["-I", str(headers[0]), "-I", str(headers[0] / "cccl"), "-Xlinker", str(runtime[0])]
    return names, [
        *command,
        "-DUSE_CUDA",
        "-DCCCL_DISABLE_CTK_COMPATIBILITY_CHECK",
        *map(str, _sources("cuda")),
        *torch_flags(),
        "-ltorch_cuda",
    ]


def _serves_gpu(names: list[str], arch: Arch) -> bool:
    """A cubin serves later minors of its generation, PTX everything later."""
    for name in names:
        parsed = re.fullmatch(r"(sm|ptx)(\d+)(\d)", name)
        built = (int(parsed[2]), int(parsed[3])) if parsed else arch
        if parsed and built <= arch and (parsed[1] == "ptx" or built[0] == arch[0]):
            return True
    return False


def _output(command: list[str]) -> str:
    """What a program prints; nothing if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _arch(text: str) -> Arch:
    if not (parsed := re.fullmatch(r"(\d+)\.(\d)", text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no compute capability, such as 8.6")
    return int(parsed[1]), int(parsed[2])


def _target(text: str) -> str:
    if text not in _SOURCES:
        raise argparse.ArgumentTypeError(f"'{text}' is neither {' nor '.join(_SOURCES)}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 if something that was asked for could not be built."""
    parser = argparse.ArgumentParser(prog="python -m fiducial.ops.build", description="Build the compiled kernels.")
    parser.add_argument("targets", nargs="*", type=_target, metavar="cpu|cuda", help="default: both")
    parser.add_argument(
        "--arch", nargs="+", type=_arch, default=[], metavar="8.6", help="GPU generations (default: all)"
    )
    parser.add_argument("--output", type=Path, help="folder for libraries that a wheel brings: csrc/build")
    arguments = parser.parse_args(argv)
    failed = False
    for target in arguments.targets or _SOURCES:
        try:
            print(f"{target}: {build(target, architectures=arguments.arch, output=arguments.output)}")
        except UnavailableError as reason:
            print(f"{target}: not built: {reason}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
