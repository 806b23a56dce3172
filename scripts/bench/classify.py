"""What classify's shortcuts are worth: each against the plain way of doing the same, in one run.

    python scripts/bench/classify.py [--radio] [--only abe] [--turns 3] [--threads 2] [--workers 2] [--cpu-time]

(a) the loader, which keeps decoded goldens, against a loop that opens and resizes every image of every row
(b) evaluate with a golden's part of the network computed once, against computing it for every row
(c) one backbone pass over tests and goldens together, against two (in eval mode; matters on GPUs)
(d) a training step with scaled-dot-product attention, against softmax attention written out
(e) start-up of --help, and of train up to its first batch, beside the bare import of torch and Lightning
(f) with --radio: (b) for C-RADIO base, learnable and euclidean (some minutes on a CPU)

The data is drawn: photographs of 512 × 512 under four lights, 20 rows for every golden. Both ways must give the same
pixels, or scores that differ by rounding only, before anything is timed. They take turns, and medians are printed;
memory is what a call takes at its peak beyond what was there before. On a machine that others use too, --threads 1
--cpu-time gives steadier ratios. Runs on a GPU where there is one. The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # runs from a checkout, installed or not

import numpy as np  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import yaml  # noqa: E402
from measure import Meter, Ratio, Turn, Way, compare, machine, measure, measure_program, print_line  # noqa: E402
from PIL import Image  # noqa: E402
from plain import explicit_attention  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.transforms.functional import normalize, to_tensor  # noqa: E402

from changenet.classify.data import PairDataset  # noqa: E402
from changenet.classify.evaluator import PairEvaluator  # noqa: E402
from changenet.classify.outputs import PairResults  # noqa: E402
from changenet.classify.predictor import PairPredictor  # noqa: E402
from changenet.classify.runtime import ClassifyRuntime  # noqa: E402
from changenet.config import ExperimentSpec  # noqa: E402
from fiducial.run.evaluation import EvaluationModule  # noqa: E402

LIGHTS = ("LowAngleLight", "SolderLight", "UniformLight", "WhiteLight")
FAN = "fan_small_12_p4_hybrid"
RADIO = "c_radio_v2_vit_base_patch16_224"
ROUNDING = 1e-3
"""Scores of two formulations may differ by this; they are probabilities, or distances of order one."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    goldens: int = 2
    loader_goldens: int = 24  # enough rows that the start of its processes does not count
    rows_per_golden: int = 20
    photo: int = 512
    tile: int = 128
    batch: int = 16
    backbone: str = FAN


QUICK = Scale(loader_goldens=2, rows_per_golden=3, photo=64, tile=32, batch=4, backbone="fan_tiny_8_p4_hybrid")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="abcde", help="letters of the parts to run")
    parser.add_argument("--radio", action="store_true", help="also part f")
    parser.add_argument("--turns", type=int, default=3, help="times that each way is run; f: once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, in part a")
    parser.add_argument("--cpu-time", action="store_true", help="count computing, not waiting; not for a and e")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    scale, turns = (QUICK, 1) if options.quick else (Scale(), options.turns)
    meter = partial(measure, clock=time.process_time if options.cpu_time else time.perf_counter)
    print(machine(options.threads) + ("; CPU time" if options.cpu_time else ""))
    parts: dict[str, Callable[[Path], list[Ratio]]] = {
        "a": lambda data: loading(data, scale, turns, meter, options.workers),
        "b": lambda data: evaluating(data, scale, turns, meter),
        "c": lambda data: doubled_pass(data, scale, turns, meter),
        "d": lambda data: training_step(data, scale, turns, meter),
        "e": lambda data: start_up(data, turns),
        "f": lambda data: evaluating_radio(data, scale, meter),
    }
    with tempfile.TemporaryDirectory() as folder:
        draw_data(Path(folder), scale)
        wanted = options.only + ("f" if options.radio else "")
        ratios = [ratio for letter in parts if letter in wanted for ratio in parts[letter](Path(folder))]
    return int(not options.quick and not all(ratio.met for ratio in ratios))


# --- (a) -------------------------------------------------------------------------------------------------------------


class PlainPairs(PairDataset):
    """The plain way: open, convert, resize and normalise every image of every row, then join the lights."""

    def __getitem__(self, index: Any) -> dict[str, Any]:
        row = self.table.rows[index]
        files = {"test": self.table.test_files(row), "golden": self.table.golden_files(row)}
        return {key: torch.cat([self._tile(path) for path in paths], dim=1) for key, paths in files.items()}

    def _tile(self, path: Path) -> Tensor:
        height, width = self.table.layout.tile
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        return normalize(to_tensor(resized), list(self.normalize.mean), list(self.normalize.std))


class CountedPairs(PairDataset):
    """The loader's own dataset; items also say how many goldens came from the cache."""

    def __getitem__(self, index: Any) -> dict[str, Any]:
        goldens = self.reader.goldens
        before = goldens.hits, goldens.misses
        item = super().__getitem__(index)
        return {**item, "cache": torch.tensor([goldens.hits - before[0], goldens.misses - before[1]])}


def loading(data: Path, scale: Scale, turns: int, meter: Meter, workers: int) -> list[Ratio]:
    """Rows of a whole pass over the data, in order, as ``evaluate`` reads them."""
    data = data / "loader"
    draw_data(data, replace(scale, goldens=scale.loader_goldens))
    runtime = runtime_of(data, scale, image_width=224 if scale.photo > 224 else scale.tile)
    table = runtime.table("test")
    counts: list[Tensor] = []

    def run(dataset: PairDataset) -> DataLoader[Any]:
        loader = DataLoader(
            dataset, batch_size=scale.batch, num_workers=workers, persistent_workers=workers > 0, shuffle=False
        )
        counts[:] = [batch.get("cache", torch.zeros(1, 2)).sum(0) for batch in loader]
        return loader  # its processes live as long as it does

    def dataset(kind: type[PairDataset]) -> PairDataset:
        return kind(table, runtime.normalization)

    plain, ours = dataset(PlainPairs), dataset(CountedPairs)
    for index in range(len(table.rows)):
        items = plain[index], ours[index]
        for key in ("test", "golden"):
            if not torch.equal(*(item[key] for item in items)):
                raise AssertionError(f"row {index}: the two loaders give different pixels")
    size = " × ".join(map(str, runtime.layout.tile))
    print(f"(a) loader: {len(table.rows)} rows, {len(LIGHTS)} lights of {size}, {workers} workers")
    ratio = compare(
        Way("open and resize every image", lambda: run(dataset(PlainPairs))),
        Way("goldens kept decoded", lambda: run(dataset(CountedPairs))),
        turns=turns,
        target=1.6,
        meter=meter,
    )
    hits, misses = (int(count) for count in torch.stack(counts).sum(0))
    print(f"    golden cache: {hits} of {hits + misses} pictures were there ({hits / (hits + misses):.0%})")
    return [ratio]


# --- (b), (f) --------------------------------------------------------------------------------------------------------


def evaluating(data: Path, scale: Scale, turns: int, meter: Meter) -> list[Ratio]:
    """``evaluate`` on the test split, with and without the cache of encoded goldens."""
    runtime = runtime_of(data, scale)
    return [compare_evaluation("(b)", runtime, turns, meter, target=1.4)]


def evaluating_radio(data: Path, scale: Scale, meter: Meter) -> list[Ratio]:
    """The same for C-RADIO base at 224 × 224 (four lights as a grid of 2 × 2); one golden with its rows."""
    ratios = []
    for difference, target in (("learnable", 1.5), ("euclidean", 1.8)):
        side = 112 if scale.photo > 224 else scale.tile
        runtime = runtime_of(
            data,
            scale,
            backbone=RADIO,
            difference=difference,
            csv="one_golden.csv",
            image_width=side,
            concat_type="grid",
            grid_map={"x": 2, "y": 2},
        )
        ratios.append(compare_evaluation(f"(f) {difference}", runtime, 1, meter, target=target))
    return ratios


def compare_evaluation(title: str, runtime: ClassifyRuntime, turns: int, meter: Meter, *, target: float) -> Ratio:
    network = calibrated(runtime)
    kept: dict[int, PairResults] = {}

    def run(cache_mb: int) -> None:
        predictor = PairPredictor(network, cache_mb=cache_mb)
        module = EvaluationModule(predictor, PairEvaluator("test", margin=runtime.margin))
        quiet_trainer().test(module, dataloaders=runtime.loaders("test"), verbose=False)
        kept[cache_mb] = module.results

    rows, backbone = len(runtime.table("test").rows), runtime.spec.model.backbone.type
    print(f"{title} evaluate: {rows} rows, {backbone}, composed to {' × '.join(map(str, runtime.layout.composed))}")
    ratio = compare(
        Way("goldens computed for every row", lambda: run(0)),
        Way("goldens computed once", lambda: run(1024)),
        turns=turns,
        target=target,
        meter=meter,
    )
    score = kept[0].score
    difference = float((score - kept[1024].score).abs().max())
    print(
        f"    scores {score.min():.3g} to {score.max():.3g}; largest difference between the two ways: {difference:.1e}"
    )
    if difference > ROUNDING:
        raise AssertionError("the scores differ")
    return ratio


# --- (c) -------------------------------------------------------------------------------------------------------------


def doubled_pass(data: Path, scale: Scale, turns: int, meter: Meter) -> list[Ratio]:
    """The network's forward, which joins tests and goldens, against one pass for each of the two."""
    runtime = runtime_of(data, scale)
    network: Any = calibrated(runtime)
    test, golden = random_pairs(runtime, scale.batch)

    @torch.inference_mode()
    def twice() -> Tensor:
        output: Tensor = network.compare(network.encode(test), network.encode_golden(golden))
        return output

    @torch.inference_mode()
    def once() -> Tensor:
        output: Tensor = network(test, golden)
        return output

    assert_close(twice(), once())
    print(f"(c) forward in eval mode: batch {scale.batch}, {runtime.spec.model.backbone.type}")
    return [compare(Way("two backbone passes", twice), Way("one doubled pass", once), turns=turns, meter=meter)]


# --- (d) -------------------------------------------------------------------------------------------------------------


@contextmanager
def attention(function: Callable[..., Tensor]) -> Iterator[None]:
    """Let every layer use ``function`` in place of torch's."""
    ours = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = function  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = ours


def training_step(data: Path, scale: Scale, turns: int, meter: Meter) -> list[Ratio]:
    """Forward, loss, backward and optimiser step."""
    runtime = runtime_of(data, scale)
    module = runtime.module(pretrained=False).to(device())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)  # every step is the same step
    test, golden = random_pairs(runtime, max(2, scale.batch // 4))
    label = torch.arange(len(test), device=device()) % 2
    torch_attention = F.scaled_dot_product_attention

    def step(function: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(0)  # of the dropped paths
        with attention(function):
            optimizer.zero_grad()
            loss: Tensor = module.loss(module.model(test, golden), label)
            loss.backward()
            optimizer.step()
        return loss.detach()

    assert_close(step(explicit_attention), step(torch_attention))
    print(f"(d) training step: batch {len(test)}, {runtime.spec.model.backbone.type}")
    ratio = compare(
        Way("softmax attention written out", lambda: step(explicit_attention)),
        Way("scaled_dot_product_attention", lambda: step(torch_attention)),
        turns=turns,
        meter=meter,
    )
    return [ratio]


# --- (e) -------------------------------------------------------------------------------------------------------------

_UNTIL_FIRST_BATCH = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import changenet.classify.lightning as lightning
lightning.ClassifyModule.training_step = lambda *_: os._exit(0)
from changenet.__main__ import main
main()
"""


def start_up(data: Path, turns: int) -> list[Ratio]:
    """Programs from their start to the point named; with a small network, so that it is not the network that counts."""
    spec = data / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_tree(data, QUICK)), encoding="utf-8")
    env_root = str(ROOT)
    bare = [sys.executable, "-c", "import torch, pytorch_lightning"]
    help_text = [sys.executable, "-c", f"import sys; sys.path.insert(0, {env_root!r}); " + _HELP]
    first_batch = [sys.executable, "-c", _UNTIL_FIRST_BATCH, env_root, "train", "-e", str(spec)]
    spent: dict[str, list[Turn]] = {"bare": [], "help": [], "first": []}
    for _ in range(turns):
        for name, command in (("bare", bare), ("help", help_text), ("first", first_batch)):
            spent[name].append(measure_program(command))
    seconds = {name: float(np.median([turn.seconds for turn in taken])) for name, taken in spent.items()}
    print("(e) start-up")
    print_line("import torch, pytorch_lightning", spent["bare"])
    print_line("changenet --help", spent["help"], f"{seconds['bare'] / seconds['help']:.1f}x less than the import")
    more = seconds["first"] - seconds["bare"]
    print_line("changenet train, up to its first batch", spent["first"], f"{more:+.2f} s beyond the import")
    return []


_HELP = "sys.argv = ['changenet', '--help']; from changenet.__main__ import main; main()"


# --- data and networks -----------------------------------------------------------------------------------------------


def draw_data(folder: Path, scale: Scale) -> None:
    """Photographs with structure and grain, as JPEG; ``one_golden.csv`` has the rows of the first golden alone."""
    rng = np.random.default_rng(0)
    rows = []
    for golden in range(scale.goldens):
        scene = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for light in LIGHTS:
            photograph(folder / "golden" / f"part{golden}_{light}.jpg", scene, scale.photo, rng)
        for number in range(scale.rows_per_golden):
            for light in LIGHTS:
                photograph(folder / f"board{number}" / f"part{golden}_{light}.jpg", scene, scale.photo, rng)
            label = "PASS" if (golden + number) % 4 else "MISSING"
            rows.append((f"board{number}", "golden", label, f"part{golden}"))
    for name, chosen in (("test.csv", rows), ("one_golden.csv", rows[: scale.rows_per_golden])):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("input_path", "golden_path", "label", "object_name"), *chosen])


def photograph(path: Path, scene: np.ndarray[Any, Any], side: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth = np.asarray(Image.fromarray(scene).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-6, 7, smooth.shape, dtype=np.int16)
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=92)


def spec_tree(
    data: Path,
    scale: Scale,
    *,
    backbone: str | None = None,
    difference: str = "learnable",
    csv: str = "test.csv",
    image_width: int | None = None,
    **dataset: Any,
) -> dict[str, Any]:
    """A spec as plain data: every split is the drawn data."""
    side = image_width or scale.tile
    files = {"csv_path": str(data / csv), "images_dir": str(data)}
    splits = ("train_dataset", "validation_dataset", "test_dataset", "infer_dataset")
    return {
        "task": "classify",
        "results_dir": str(data / "results"),
        "wandb": {"enable": False},
        "model": {
            "backbone": {"type": backbone or scale.backbone},
            "decode_head": {"feature_strides": [4, 8, 16, 32 if backbone else 16]},
            "classify": {"difference_module": difference, "embed_dec": 30, "eval_margin": 0.5},
        },
        "dataset": {
            "classify": {
                **dict.fromkeys(splits, files),
                "image_ext": ".jpg",
                "input_map": {light: place for place, light in enumerate(LIGHTS)},
                "num_input": len(LIGHTS),
                "image_width": side,
                "image_height": side,
                "batch_size": scale.batch,
                "workers": 0,
                **dataset,
            }
        },
        "train": {"num_epochs": 1, "classify": {"loss": "ce" if difference == "learnable" else "contrastive"}},
    }


def runtime_of(data: Path, scale: Scale, **changes: Any) -> ClassifyRuntime:
    return ClassifyRuntime(ExperimentSpec.model_validate(spec_tree(data, scale, **changes)))


def calibrated(runtime: ClassifyRuntime) -> torch.nn.Module:
    """The network in eval mode, its batch norms set by a few rows: with a fresh one's, all scores are nearly equal."""
    torch.manual_seed(0)
    network = runtime.network()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    rows = runtime.dataset("test")
    items = [rows[index] for index in range(0, len(rows), max(1, len(rows) // 4))]
    with torch.no_grad():
        network.train()(*(torch.stack([item[key] for item in items]) for key in ("test", "golden")))
    return network.eval().to(device())


def random_pairs(runtime: ClassifyRuntime, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, *runtime.layout.composed)
    test, golden = (torch.randn(shape, generator=generator).to(device()) for _ in range(2))
    return test, golden


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet_trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


if __name__ == "__main__":
    import logging
    import warnings

    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's, about itself
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("fiducial").setLevel(logging.WARNING)
    sys.exit(main())
