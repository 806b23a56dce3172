"""``gen_trt_engine``: an exported model as an engine of TensorRT, or of TensorRT for RTX."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiducial.actions.models import open_model
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.actions.serving import prepare, publish
from fiducial.checkpoints.atomic import save_atomically
from fiducial.deploy.graph_predictor import adopt_card
from fiducial.deploy.pixels import PixelInputs, taking_pixels
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.tensorrt import gpu
from fiducial.deploy.tensorrt.build import BuildSettings, Built, build
from fiducial.deploy.tensorrt.calibration_cache import Ranges
from fiducial.deploy.tensorrt.compare import SAME_8_BITS, TOLERANCES, Arrays, difference, run_onnx
from fiducial.deploy.tensorrt.engine_card import DETAIL, EngineFacts
from fiducial.deploy.tensorrt.flavour import Flavour, load
from fiducial.deploy.tensorrt.inspect import check_types, types_of_engine, types_of_network
from fiducial.deploy.tensorrt.layers import LayerRules
from fiducial.deploy.tensorrt.precision import Feeds, typed
from fiducial.deploy.tensorrt.rules import check_precision, named_engine
from fiducial.deploy.tensorrt.runner import Runner
from fiducial.deploy.tensorrt.source import Source
from fiducial.errors import CheckpointError, DatasetError, SpecError
from fiducial.prediction import Graph, GraphInput
from fiducial.run.console import LOGGER
from fiducial.run.run import Run, writable_folder
from fiducial.task import Task, TaskRuntime

_KEY = "gen_trt_engine"
_CALIBRATION = f"{_KEY}.tensorrt.calibration"


def gen_trt_engine(task: Task[Any], run: Run) -> Result:
    """Write ``gen_trt_engine.trt_engine``, or ``model.engine``, and the card beside it."""
    preflight(task, run)
    section, tensorrt = run.section, run.section.tensorrt
    flavour = load(tensorrt.flavor)
    here = _gpu(section, flavour)
    source = Source.read(open_model(task, run), plugins=tensorrt.flavor == "tensorrt")
    runtime = task.runtime(run.spec)
    runtime.action = run.action.name
    inputs = _Inputs(runtime, source)
    target = named_engine(section) or run.folder / "model.engine"
    writable_folder(target.parent, f"{_KEY}.trt_engine", "name a file in a folder that can be written to")
    prepare(section.triton, f"{_KEY}.triton")
    rules = LayerRules.of(tensorrt)
    settings = _settings(section, source, here)
    sample = inputs.sample(source.batch_size or settings.batches[1])
    with tempfile.TemporaryDirectory(prefix=".engine-", dir=run.folder) as folder:
        path = typed(
            source,
            Path(folder),
            rules,
            sample=_first(sample, source.batch_size or 1),
            batches=_Calibration(inputs, tensorrt.calibration, source),
            ranges=_ranges(tensorrt.calibration, source),
        )
        exact = _exact(rules, tensorrt)
        expected = _compare_typed(source, path, sample, inputs.graph, max(exact, TOLERANCES.get(rules.small, 0.0)))
        built = build(flavour, path, source.inputs, settings)
        found = types_of_network(built.network)
        check_types(found, rules, source.path)
        if here is not None:
            in_8_bits = rules.small or source.is_quantized
            tolerance = max(exact, SAME_8_BITS) if in_8_bits else exact
            _compare_engine(flavour, built, source.path, sample, expected, here, tolerance)
        _write(built, target, source, _facts(flavour, tensorrt, settings, source, found, here))
    said = ", ".join(f"{count} {name}" for name, count in found.items())
    LOGGER.info("%s: %.1f MB; layers: %s", target, target.stat().st_size / 1e6, said)
    least, _, most = settings.batches
    served = publish(section.triton, target, batch_size=most if least == most else -1, most=most)
    run.note(f"Engine generated at {target}")
    return Result(run.action.name, run.folder, files=(target, *served))


def _gpu(section: Any, flavour: Flavour) -> gpu.Gpu | None:
    """The GPU that is built on; None where there is none, which TensorRT for RTX does without.

    Raises: SpecError when TensorRT has none, it is not there, or it lacks a type.
    """
    tensorrt, there = section.tensorrt, gpu.count()
    if not there and flavour.name == "rtx":
        LOGGER.info("no GPU here: the engine is built, and not compared with the graph that it was built from")
        return None
    if section.gpu_id >= there:
        found = f"{section.gpu_id}, and there are {there} GPUs, numbered from 0"
        fix = "lower it" if there else "build on a machine with a GPU, or set flavor: rtx, which needs none"
        raise SpecError(f"{_KEY}.gpu_id", found, fix)
    here = gpu.find(section.gpu_id)
    assert here is not None
    if tensorrt.compute_capability and here.said not in tensorrt.compute_capability:
        LOGGER.info("not built for the GPU of this machine: the engine is not compared with the file")
        return None
    problems = list(check_precision(tensorrt, [here.capability]))
    if problems:
        raise SpecError.of(problems)
    return here


def _settings(section: Any, source: Source, here: gpu.Gpu | None) -> BuildSettings:
    tensorrt, fixed = section.tensorrt, source.batch_size
    if fixed and section.batch_size not in (-1, fixed):
        found = f"{section.batch_size}, and the ONNX file is fixed to {fixed}"
        raise SpecError(f"{_KEY}.batch_size", found, "set -1, or export with batch_size=-1")
    batches = (tensorrt.min_batch_size, tensorrt.opt_batch_size, tensorrt.max_batch_size)
    size = fixed or section.batch_size
    capabilities = tuple(tensorrt.compute_capability)
    if tensorrt.flavor == "rtx" and not capabilities and here is not None:
        capabilities = (here.said,)
    return BuildSettings(
        batches=(size, size, size) if size > 0 else batches,
        workspace_mb=tensorrt.workspace_size,
        timing_cache=Path(section.timing_cache).expanduser() if section.timing_cache else None,
        optimization_level=tensorrt.optimization_level,
        tf32=tensorrt.tf32,
        version_compatible=tensorrt.version_compatible,
        hardware_compatibility=tensorrt.hardware_compatibility,
        capabilities=capabilities,
        verbose=section.verbose,
    )


class _Inputs:
    """What the graph is fed with, prepared as its card says.

    Raises: CheckpointError for a file that is not of the task and the spec.
    """

    def __init__(self, runtime: TaskRuntime, source: Source) -> None:
        self.runtime = runtime
        adopt_card(source.card, runtime, source.path)  # first: the two may contradict each other
        self.prepared = self.graph = runtime.graph()
        self.pixels = PixelInputs.of(self.prepared, source.card)
        if self.pixels is not None:
            self.graph = taking_pixels(self.prepared, self.pixels.names)
        source.check(self.graph)

    def feeds(self, batch: Mapping[str, torch.Tensor]) -> Feeds:
        """Values of the graph's inputs for those of the task."""
        found = batch if self.pixels is None else self.pixels(batch)
        return {name: value.numpy().astype(self.graph.inputs[name].dtype) for name, value in found.items()}

    def sample(self, size: int) -> Feeds:
        """A batch of real inputs, the last one repeated where there are too few; random ones where there are none."""
        items = list(self.runtime.samples(size))
        if not items:
            LOGGER.info("no dataset of the spec is there: the engine is compared on random inputs only")
            return {name: _random(entry, size) for name, entry in self.graph.inputs.items()}
        items += items[-1:] * (size - len(items))
        inputs = self.prepared.inputs.items()
        return self.feeds({name: torch.stack([item[entry.batch_key] for item in items]) for name, entry in inputs})


def _random(entry: GraphInput, size: int) -> np.ndarray[Any, Any]:
    generator, shape = np.random.default_rng(0), (size, *entry.shape)
    if entry.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(entry.dtype)
    return generator.integers(0, 256 if entry.dtype == "uint8" else 2, shape).astype(entry.dtype)


def _first(feeds: Feeds, count: int) -> Feeds:
    return {name: values[:count] for name, values in feeds.items()}


class _Calibration:
    """Batches that calibration observes; the data are looked for when it does."""

    def __init__(self, inputs: _Inputs, section: Any, source: Source) -> None:
        self.inputs, self.section, self.source = inputs, section, source

    def __iter__(self) -> Iterator[Feeds]:
        section = self.section
        wanted = section.cal_batches * section.cal_batch_size
        data = self.inputs.runtime.calibration(section.cal_image_dir or (), f"{_CALIBRATION}.cal_image_dir")
        if len(data.items) < wanted:
            found = f"{len(data.items)} items in {data.source}; cal_batches x cal_batch_size asks for {wanted}"
            raise DatasetError(_CALIBRATION, found, "name more data, or lower cal_batches")
        size = self.source.batch_size or section.cal_batch_size
        if size != section.cal_batch_size:
            LOGGER.warning("cal_batch_size %d: the ONNX file is fixed to %d", section.cal_batch_size, size)
        LOGGER.info("calibrating with %d items of %s", wanted, data.source)
        yield from map(self.inputs.feeds, CalibrationBatches(data, self.inputs.prepared, items=wanted, batch_size=size))


def _ranges(calibration: Any, source: Source) -> Ranges | None:
    path = calibration.cal_cache_file
    return Ranges(Path(path).expanduser(), source.digest) if path else None


def _exact(rules: LayerRules, tensorrt: Any) -> float:
    """How far apart two programs may be that compute in the same types."""
    return max(TOLERANCES[kind] for kind in (rules.half, "tf32" if tensorrt.tf32 else "fp32") if kind)


def _compare_typed(source: Source, path: Path, sample: Feeds, graph: Graph, tolerance: float) -> Arrays | None:
    """What the engine must give: what the graph gives that it is built from, after a comparison with the exported one.

    None where only TensorRT runs it.
    """
    if source.has_plugins:
        LOGGER.info("not compared: only TensorRT runs the plugins in %s", source.path)
        return None
    wanted = run_onnx(source.path, sample, graph.results)
    if wanted is None:
        raise CheckpointError(str(source.path), "onnxruntime does not run it", "export the model again")
    if path == source.path or (found := run_onnx(path, sample, graph.results)) is None:
        return wanted
    worst = difference(source.path, found, wanted, tolerance, "in the types that the spec asks for")
    LOGGER.info("in the types that the spec asks for at most %.2g from the exported file", worst)
    return found


def _compare_engine(
    flavour: Flavour,
    built: Built,
    path: Path,
    sample: Feeds,
    expected: Arrays | None,
    here: gpu.Gpu,
    tolerance: float,
) -> None:
    """Load the engine, say what its layers compute in, and compare it with the graph that it was built from."""
    runner = Runner(flavour, built.engine, path, here.device, allow_code=True)  # it was built here, just now
    kinds = types_of_engine(flavour, runner.engine)
    LOGGER.info("the engine's layers give: %s", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if expected is None:
        return
    outputs = runner.run({name: torch.from_numpy(value) for name, value in sample.items()}, list(expected))
    found = {name: output.float().cpu().numpy() for name, output in zip(expected, outputs, strict=True)}
    worst = difference(path, found, expected, tolerance, "the engine")
    LOGGER.info("the engine is at most %.2g from the graph that it was built from", worst)


def _facts(
    flavour: Flavour,
    tensorrt: Any,
    settings: BuildSettings,
    source: Source,
    types: Mapping[str, int],
    here: gpu.Gpu | None,
) -> EngineFacts:
    capabilities = tuple(settings.capabilities)
    if flavour.name == "tensorrt" and here is not None:
        capabilities = (here.said,)
    return EngineFacts(
        flavor=flavour.name,
        version=flavour.version,
        precision=tensorrt.data_type,
        types=types,
        batches=settings.batches,
        onnx=source.digest,
        compute_capability=capabilities,
        gpu=here.name if here is not None else "",
        system=platform.system(),
        hardware_compatibility=settings.hardware_compatibility,
        version_compatible=settings.version_compatible,
    )


def _write(built: Built, target: Path, source: Source, facts: EngineFacts) -> None:
    """The engine, then its card: between the two there is an engine that nothing loads."""
    save_atomically(target, lambda file: file.write(memoryview(built.engine)))
    versions = {**source.card.versions, facts.flavor: facts.version}
    card = replace(source.card, versions=versions, details={**source.card.details, DETAIL: facts.plain()})
    try:
        card.write_beside(target)
    except OSError as error:
        found = f"its card cannot be written ({error.strerror or error})"
        raise CheckpointError(str(target), found, "check the folder, and build the engine again") from None
