"""One trained model in every runtime of a CPU: the same numbers, and how fast, how large.

    make demo demo-segment demo-mal demo-mlrecog             # trains the models, some minutes each
    python scripts/bench/deploy.py [--demo demo] [--only classify,mal] [--threads 2] [--ways eager,onnx]

Of each demo's best checkpoint: torch as it is, compiled, onnxruntime and OpenVINO in float32, and both in int8
(ModelOpt's graph, NNCF's model, calibrated on the training's data). For each the main metric of ``evaluate`` on the
test data, the largest difference of an output from torch's, in shares of its range, milliseconds of one item and of a
batch of 16, items per second, the file's size, and the memory of a process at its peak beyond torch's libraries. Each
way runs in a process of its own, one after the other; torch as it is runs first and again at the end, since a machine
that others use has no constant speed. Ratios are torch's time at batch 1 by a way's.

The exit code is 1 when a float32 metric is more than 1e-4 from torch's, an int8 one loses more than a point, no int8
way is 1.3 times as fast as its float32, or no way is 1.5 times as fast as torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # runs from a checkout, installed or not

import torch  # noqa: E402
from measure import PROC, machine  # noqa: E402

from changenet.classify.task import CLASSIFY  # noqa: E402
from changenet.segment.task import SEGMENT  # noqa: E402
from fiducial.actions.perform import perform, read_spec  # noqa: E402
from fiducial.deploy.kinds import open_predictor  # noqa: E402
from fiducial.deploy.quantize.comparison import call, file_size, largest_move, latency  # noqa: E402
from fiducial.spec.compose import compose  # noqa: E402
from mal.task import MAL  # noqa: E402
from mlrecog.task import ML_RECOG  # noqa: E402

DEMOS: dict[str, tuple[list[Any], str]] = {
    "classify": ([CLASSIFY, SEGMENT], "changenet/demo"),
    "segment": ([CLASSIFY, SEGMENT], "changenet/demo-segment"),
    "mal": ([MAL], "mal/demo"),
    "mlrecog": ([ML_RECOG], "mlrecog/demo"),
}
WAYS = {
    "eager": "checkpoint",
    "compiled": "checkpoint",
    "onnx": "model.onnx",
    "onnx int8": "quantized_model.onnx",
    "openvino": "model.xml",
    "openvino int8": "quantized_model.xml",
}
"""The file that each way runs, of those that :func:`prepare` makes."""
LARGE = 16
SAME, POINT = 1e-4, 0.01
INT8, BEST = 1.3, 1.5
"""How many times as fast as its float32 an int8 way is to be, and as torch the fastest."""


@dataclass(frozen=True)
class Model:
    """A demo's spec, its folder, and where its files are made."""

    name: str
    demo: Path
    files: Path

    @property
    def spec(self) -> Path:
        """The curated spec, with the demo's folder in it."""
        path = self.files / "spec.yaml"
        text = (ROOT / "configs" / f"{DEMOS[self.name][1]}.yaml").read_text("utf-8")
        path.write_text(text.replace("demo/", f"{self.demo}/"), "utf-8")
        return path

    def run(self, action: str, *overrides: str) -> Any:
        """Perform an action, into the folder of the files."""
        return perform(DEMOS[self.name][0], action, self.spec, [f"results_dir={self.files / 'results'}", *overrides])

    @property
    def task(self) -> Any:
        """The task of the spec."""
        return next(task for task in DEMOS[self.name][0] if task.name == self.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the demos that ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that the demos wrote")
    parser.add_argument("--only", default=",".join(DEMOS), help="demos, with commas")
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--serve", nargs=3, metavar=("DEMO", "WAY", "FILES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.serve:
        name, way, files = options.serve
        print(json.dumps(measured(Model(name, options.demo, Path(files)), way)))
        return 0
    print(machine(options.threads))
    ways = [way for way in WAYS if way in options.ways.split(",")]
    met = [compare(name, options.demo.absolute(), ways, options.threads) for name in options.only.split(",")]
    return int(not all(met))


def compare(name: str, demo: Path, ways: Sequence[str], threads: int) -> bool:
    """Make every form of a demo's model, measure each, print the table; whether the targets are met."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(name, demo, Path(folder))
        prepare(model, ways)
        found = {way: _served(model, way, threads) for way in ways}
        again = _served(model, "eager", threads) if "eager" in ways else None
        first = _outputs(model, ways[0])
        moved = {way: max(largest_move(first, _outputs(model, way)).values()) for way in ways}
    print(f"{name}: {found[ways[0]]['metric_name']}")
    for way in ways:
        print(_line(way, found[way], moved[way], found["eager"]["one"] if "eager" in found else found[way]["one"]))
    if again:
        print(f"    (torch again, at the end: {again['one'] * 1e3:.1f} ms)")
    return _met(found)


def prepare(model: Model, ways: Sequence[str]) -> None:
    """The checkpoint, and what is made of it, below the folder of the files."""
    section = read_spec(DEMOS[model.name][0], model.spec, ())
    results = Path(compose(model.task.spec_model(), section).spec.results_dir)
    checkpoint = results / "train"
    if not checkpoint.is_dir():
        raise SystemExit(f"{checkpoint}: no training of the {model.name} demo: make the demo first, or name its folder")
    (model.files / "checkpoint").symlink_to(checkpoint)
    openvino = any(way.startswith("openvino") for way in ways)
    graph = model.files / "model.onnx"
    if len(ways) > 1:
        to = (f"export.onnx_file={graph}", "export.overwrite=true", f"export.openvino={openvino}")
        model.run("export", f"export.checkpoint={checkpoint}", *to)
    for way, backend in (("onnx int8", "modelopt.onnx"), ("openvino int8", "openvino")):
        if way in ways:
            made = model.run(
                "quantize",
                *(f"quantize.backend={backend}", "quantize.mode=static_ptq", f"quantize.model_path={graph}"),
                *("quantize.compare=false", "quantize.algorithm=max"),
            )
            for part in made.files[0].parent.glob(f"{made.files[0].stem}.*"):
                (model.files / part.name).write_bytes(part.read_bytes())


def measured(model: Model, way: str) -> Mapping[str, Any]:
    """What a way measures, in this process."""
    before, file = _peak(), model.files / WAYS[way]
    key, compiled = "evaluate.checkpoint", way == "compiled"
    result = model.run("evaluate", f"{key}={file}", f"evaluate.compile={compiled}")
    metric = model.task.metrics.main.replace("{stage}", "test")
    spec = compose(model.task.spec_model(), read_spec(DEMOS[model.name][0], model.spec, ())).spec
    runtime = model.task.runtime(spec)
    path = file if file.is_file() else file / f"{model.task.prefix}_best.pth"
    predictor = open_predictor(path.resolve() if path.exists() else path, runtime)
    if compiled:
        predictor.compile(True)
    graph = runtime.graph()
    items = _items(runtime, graph)
    torch.save([call(predictor, graph, item) for item in items], model.files / f"{way}.pt")
    large = {name: torch.cat([items[i % len(items)][name] for i in range(LARGE)]) for name in graph.inputs}
    one, many = latency(predictor, graph, items[0]), latency(predictor, graph, large)
    size = sum(t.nbytes for t in predictor.network.state_dict().values()) if predictor.network else file_size(path)
    return {
        "metric_name": metric,
        "metric": result.kpis.get(metric),
        "one": one,
        "many": many,
        "bytes": size,
        "peak": _peak() - before,
    }


def _items(runtime: Any, graph: Any) -> list[dict[str, Any]]:
    return [
        {name: torch.as_tensor(item[entry.batch_key])[None] for name, entry in graph.inputs.items()}
        for item in runtime.samples(8)
    ]


def _outputs(model: Model, way: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = torch.load(model.files / f"{way}.pt", weights_only=True)
    return found


def _peak() -> float:
    status = (PROC / "status").read_text() if PROC.exists() else ""
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM")), float("nan"))


def _served(model: Model, way: str, threads: int) -> Mapping[str, Any]:
    command = [sys.executable, __file__, "--demo", str(model.demo), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--serve", model.name, way, str(model.files)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(f"{model.name}, {way}:\n{done.stderr[-3000:]}")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(way: str, found: Mapping[str, Any], moved: float, eager: float) -> str:
    numbers = f"{found['one'] * 1e3:8.1f} ms {found['many'] * 1e3:9.1f} ms {LARGE / found['many']:8.1f}/s"
    sizes = f"{found['bytes'] / 1e6:7.1f} MB {found['peak']:6.0f} MB"
    return f"    {way:14} {found['metric']:.4f}  differs {moved:.1e} {numbers} {sizes}   {eager / found['one']:.2f}x"


def _met(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the targets are met, of the ways that were run; what is missed is printed."""
    missed = []
    if (eager := found.get("eager")) is None:
        return True
    for way, row in found.items():
        limit = POINT if "int8" in way else SAME
        if abs(row["metric"] - eager["metric"]) > limit and ("int8" not in way or row["metric"] < eager["metric"]):
            missed.append(f"{way}: the metric moved by {row['metric'] - eager['metric']:+.4f}")
    pairs = [(found[w], found[f"{w} int8"]) for w in ("onnx", "openvino") if {w, f"{w} int8"} <= found.keys()]
    if pairs and (best := max(full["one"] / small["one"] for full, small in pairs)) < INT8:
        missed.append(f"int8 is at most {best:.2f} times as fast as float32 (target {INT8:g})")
    if len(found) > 1 and (best := max(eager["one"] / row["one"] for row in found.values())) < BEST:
        missed.append(f"the fastest runtime is {best:.2f} times as fast as torch (target {BEST:g})")
    for text in missed:
        print(f"    MISSED {text}")
    return not missed


if __name__ == "__main__":
    sys.exit(main())
