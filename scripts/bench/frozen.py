"""What keeping the features of a frozen backbone, and encoding a shared golden once, is worth in an epoch.

    python scripts/bench/frozen.py [--only abcd] [--turns 3] [--threads 2] [--cpu-time]

(a) C-RADIO base, euclidean: an epoch after the first with train.feature_cache: ram, against one without a cache
(b) the same from a folder (train.feature_cache: disk)
(c) FAN, learnable: an epoch on kept feature maps, against one without a cache
(d) FAN, learnable, no cache: goldens that a batch shares encoded once, against once for every row

Epochs are the loader's and the optimizer's work, of networks with the same weights; the data is drawn, photographs
under four lights, 20 rows for every golden. The largest difference of a loss is printed, and must be rounding only.
Memory is what an epoch takes at its peak beyond what was there before. Runs on a GPU where there is one. The exit code
is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from classify import FAN, QUICK, RADIO, Scale, device, draw_data, spec_tree  # noqa: E402
from measure import Meter, Ratio, Way, compare, machine, measure  # noqa: E402
from torch import Tensor  # noqa: E402

from changenet.classify.lightning import ClassifyModule  # noqa: E402
from changenet.classify.runtime import ClassifyRuntime  # noqa: E402
from changenet.config import ExperimentSpec  # noqa: E402

ROUNDING = 1e-5
"""Losses of one batch may differ by this part of them."""


@dataclass(frozen=True)
class Case:
    """A network of part a, b or c."""

    backbone: str
    difference: str
    tile: int
    target: float | None = None


CASES = {
    "a": Case(RADIO, "euclidean", 112, target=15.0),
    "b": Case(RADIO, "euclidean", 112, target=15.0),
    "c": Case(FAN, "learnable", 128),
}
ROWS = Scale(goldens=2, rows_per_golden=20, batch=8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="abcd", help="letters of the parts to run")
    parser.add_argument("--turns", type=int, default=3, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="count computing, not waiting")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    scale, turns = (QUICK, 1) if options.quick else (ROWS, options.turns)
    meter = partial(measure, clock=time.process_time if options.cpu_time else time.perf_counter)
    print(machine(options.threads) + ("; CPU time" if options.cpu_time else ""))
    ratios: list[Ratio] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        os.environ["FIDUCIAL_CACHE"] = str(data / "cache")
        draw_data(data, scale)
        for letter in sorted(set(options.only)):
            if letter == "d":
                ratios.append(shared_goldens(data, scale, turns, meter))
                continue
            case = CASES[letter]
            if options.quick:
                case = replace(case, backbone=scale.backbone, tile=scale.tile)
            ratios.append(kept(letter, case, data, scale, turns, meter))
    return int(not options.quick and not all(ratio.met for ratio in ratios))


def kept(letter: str, case: Case, data: Path, scale: Scale, turns: int, meter: Meter) -> Ratio:
    """An epoch on kept features against one that computes them."""
    kind = "disk" if letter == "b" else "ram"
    plain, cached = (training(case, data, scale, cache) for cache in ("off", kind))
    print(f"({letter}) {case.backbone}, {case.difference}, {len(plain.rows)} rows in batches of {scale.batch}")
    assert_same_losses(plain, cached)
    cached.epoch()  # the first one, which keeps
    ratio = compare(
        Way("every picture anew", plain.epoch),
        Way(f"features kept ({kind})", cached.epoch),
        turns=turns,
        target=case.target,
        meter=meter,
    )
    assert cached.module.features is not None
    print(f"    {cached.module.features.report()}")
    cached.module.features.close()
    return ratio


def shared_goldens(data: Path, scale: Scale, turns: int, meter: Meter) -> Ratio:
    """An epoch with goldens that batches share, and one that does not know of it."""
    case = Case(scale.backbone if scale is QUICK else FAN, "learnable", scale.tile)
    ours, plain = training(case, data, scale, "off"), training(case, data, scale, "off")
    plain.dataset._golden_ids = [-1] * len(plain.rows)
    print(f"(d) {case.backbone}, frozen: {scale.goldens} goldens in batches of {scale.batch}")
    assert_same_losses(plain, ours)
    return compare(Way("each row's golden", plain.epoch), Way("each golden once", ours.epoch), turns=turns, meter=meter)


class Training:
    """A module, its batches in the order of the rows, and what a step needs."""

    def __init__(self, module: ClassifyModule, dataset: Any, loader: Iterable[Any]) -> None:
        self.module, self.dataset, self.loader, self.rows = module, dataset, loader, dataset.table.rows
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def losses(self) -> list[float]:
        """Of every batch, in eval mode: batch statistics of a few rows would make much of rounding."""
        self.module.eval()
        with torch.no_grad():
            found = [float(self.module.evaluate_batch(_moved(batch))[1]) for batch in self.loader]
        self.module.train()
        return found

    def epoch(self) -> None:
        """Every batch once, with a step."""
        for batch in self.loader:
            self.optimizer.zero_grad()
            self.module.evaluate_batch(_moved(batch))[1].backward()
            self.optimizer.step()


def training(case: Case, data: Path, scale: Scale, cache: str) -> Training:
    """The network of a case with its backbone frozen, as ``train`` makes it but for weights from a file."""
    tree = spec_tree(
        data,
        scale,
        backbone=case.backbone if case.backbone != scale.backbone else None,
        difference=case.difference,
        image_width=case.tile,
        concat_type="grid",
        grid_map={"x": 2, "y": 2},
    )
    tree["model"]["backbone"] |= {"freeze_backbone": True}
    tree["train"] |= {"feature_cache": cache}
    runtime = ClassifyRuntime(ExperimentSpec.model_validate(tree))
    torch.manual_seed(0)
    datamodule, module = runtime.datamodule(), runtime.module(pretrained=False)
    (loader,) = datamodule.val_dataloader()  # all rows in order; with keys where training has them, too
    return Training(module.to(device()).train(), loader.dataset, loader)


def assert_same_losses(plain: Training, ours: Training) -> None:
    difference = max(abs(a - b) / abs(a) for a, b in zip(plain.losses(), ours.losses(), strict=True))
    print(f"    largest difference of a loss: {difference:.1e}")
    if difference > ROUNDING:
        raise AssertionError("the two ways have different losses")


def _moved(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(device()) if isinstance(value, Tensor) else value for key, value in batch.items()}


if __name__ == "__main__":
    import logging

    logging.getLogger("fiducial").setLevel(logging.WARNING)
    sys.exit(main())
