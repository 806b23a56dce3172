"""From an ONNX file whose types are decided to a serialized engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiducial.checkpoints.atomic import save_atomically
from fiducial.deploy.graph_predictor import Port
from fiducial.deploy.onnx_file import AGAIN
from fiducial.deploy.tensorrt.flavour import Flavour, Said
from fiducial.deploy.tensorrt.rules import capability
from fiducial.deploy.tensorrt.surface import Builder, Config, Network
from fiducial.errors import CheckpointError, Problem, SpecError
from fiducial.run.console import LOGGER

__all__ = ["BuildSettings", "Built", "build"]

_MB = 2**20
_KEY = "gen_trt_engine.tensorrt"


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built. Batch sizes are those that it takes; equal ones where the graph's is fixed."""

    batches: tuple[int, int, int]
    """The smallest, the one to tune for, the largest."""
    workspace_mb: int = 1024
    """0: as much as the GPU has."""
    timing_cache: Path | None = None
    optimization_level: int | None = None
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    capabilities: Sequence[str] = ()
    """Of the GPUs that an engine of TensorRT for RTX is for."""
    verbose: bool = False


@dataclass(frozen=True)
class Built:
    """A serialized engine, and the network that it was built from."""

    engine: Any
    """A buffer."""
    network: Network
    alive: tuple[Any, ...] = ()
    """What the network lives in."""


def build(flavour: Flavour, onnx_path: Path, inputs: Sequence[Port], settings: BuildSettings) -> Built:
    """Parse and build. ``inputs`` are the graph's.

    Raises: CheckpointError with the library's own words where it cannot parse the file, or builds nothing; SpecError
        for GPUs that it builds nothing for.
    """
    trt = flavour.trt
    said = Said(trt, verbose=settings.verbose)
    if flavour.name == "tensorrt":
        trt.init_libnvinfer_plugins(said.logger, "")  # deformable attention, where a file has it as a plugin's node
    try:
        builder = trt.Builder(said.logger)
    except TypeError as error:  # what a factory that gave nothing ends in
        found = said.last(f"{flavour.title} {flavour.version} does not start ({error})")
        raise CheckpointError(str(onnx_path), found, "install a GPU's driver that fits, or set flavor: rtx") from None
    network = builder.create_network(flavour.strongly_typed)
    parser = trt.OnnxParser(network, said.logger)
    if not parser.parse_from_file(str(onnx_path)):
        problems = [Problem(str(onnx_path), *what) for what in _errors(parser, flavour)]
        raise CheckpointError.of(problems or [Problem(str(onnx_path), said.last("not parsed"), AGAIN)])
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the engine's inspector needs
    _set(flavour, config, settings)
    _add_profile(builder, config, inputs, settings.batches)
    keep_timings = _use_timings(config, settings.timing_cache) if settings.timing_cache else None
    LOGGER.info("building with %s %s: seconds to many minutes", flavour.title, flavour.version)
    engine = builder.build_serialized_network(network, config)
    if engine is None or not engine.nbytes:
        found = said.last("the builder gave no engine, and no reason")
        fix = "choose another data_type, more workspace_size, or another GPU; verbose=true shows the builder's log"
        raise CheckpointError(str(onnx_path), f"{flavour.title} cannot build it: {found}", fix)
    if keep_timings:
        keep_timings()
    return Built(engine, network, (builder, parser, config, said))


def _errors(parser: Any, flavour: Flavour) -> Iterator[tuple[str, str]]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = f" at {error.node_operator()} {error.node_name()}".rstrip()
        yield f"{flavour.title} cannot parse it{place}: {' '.join(error.desc().split())}", AGAIN


def _set(flavour: Flavour, config: Config, settings: BuildSettings) -> None:
    trt = flavour.trt
    if settings.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb * _MB)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        name = settings.hardware_compatibility.upper()
        level = getattr(trt.HardwareCompatibilityLevel, name, None)
        if level is None:
            found = f"{flavour.title} {flavour.version} does not know {settings.hardware_compatibility}"
            raise SpecError(f"{_KEY}.hardware_compatibility", found, "use a newer TensorRT, or none")
        config.hardware_compatibility_level = level
    if settings.capabilities:
        _target(flavour, config, settings.capabilities)


def _target(flavour: Flavour, config: Any, capabilities: Sequence[str]) -> None:
    known = flavour.trt.ComputeCapability  # type: ignore[attr-defined]
    names = {said: "SM{}{}".format(*capability(said)) for said in dict.fromkeys(capabilities)}
    unknown = [said for said, name in names.items() if not hasattr(known, name)]
    if unknown:
        choices = sorted(name[2:-1] + "." + name[-1] for name in dir(known) if name.startswith("SM"))
        found = f"{', '.join(unknown)}: {flavour.title} {flavour.version} does not build for it"
        raise SpecError(f"{_KEY}.compute_capability", found, f"choose among {', '.join(choices)}")
    config.num_compute_capabilities = len(names)
    for place, name in enumerate(names.values()):
        config.set_compute_capability(getattr(known, name), place)


def _add_profile(builder: Builder, config: Config, inputs: Sequence[Port], batches: tuple[int, int, int]) -> None:
    if all(isinstance(port.shape[0], int) for port in inputs):
        return
    profile = builder.create_optimization_profile()
    for port in inputs:
        smallest, usual, largest = ((size, *port.shape[1:]) for size in batches)
        profile.set_shape(port.name, smallest, usual, largest)  # type: ignore[arg-type]
    config.add_optimization_profile(profile)


def _use_timings(config: Config, path: Path) -> Callable[[], None]:
    """Give the builder the timings of a file; returns what writes them back, with the new ones."""
    held = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(held) if held else None
    if held and (cache is None or not config.set_timing_cache(cache, False)):
        LOGGER.warning("%s: no timings of this version and GPU: they are measured anew, and the file is replaced", path)
        cache = None
    if cache is None and (cache := config.create_timing_cache(b"")) is not None:
        config.set_timing_cache(cache, False)

    def write() -> None:
        found = config.get_timing_cache()
        if found is not None:
            save_atomically(path, lambda file: file.write(memoryview(found.serialize())))

    return write
