"""How good a search is.

``collect`` trains a small network on scikit-learn's digits with many values of classify's keys, and keeps the learning
curves (``automl_curves.json``).
``surrogate`` searches on what was fitted to these curves: each algorithm against random search, over seeds.
``demo`` searches better values for the classify demo with bohb, and compares them with the curated ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import make_demo_data  # noqa: E402

from changenet.__main__ import TASKS  # noqa: E402
from fiducial.actions.perform import compose_for, known_action, perform, read_spec  # noqa: E402
from fiducial.automl.algorithms import per_trial  # noqa: E402
from fiducial.automl.prepare import Prepared, prepare  # noqa: E402
from fiducial.automl.record import read_record, rows_of  # noqa: E402
from fiducial.automl.search import Search, best_of  # noqa: E402
from fiducial.automl.study import Workers, open_study  # noqa: E402
from fiducial.automl.trial import Ending, Order  # noqa: E402

CURVES = Path(__file__).with_name("automl_curves.json")
EPOCHS = 9
METRIC = "val_loss"
AUGMENT = "dataset.classify.augmentation_config"
SEARCHED: dict[str, dict[str, Any]] = {
    "train.optim.lr": {"valid_min": 1e-4, "valid_max": 1e-2},
    "train.optim.weight_decay": {"valid_min": 1e-4, "valid_max": 0.3},
    "dataset.classify.fpratio_sampling": {"valid_min": 0.05, "valid_max": 1.0},
    f"{AUGMENT}.augment": {},
    f"{AUGMENT}.random_flip.vflip_probability": {"valid_min": 0.0, "valid_max": 1.0},
    f"{AUGMENT}.random_rotate.rotate_probability": {"valid_min": 0.0, "valid_max": 1.0},
}


def demo_spec(folder: Path) -> dict[str, Any]:
    import yaml

    text = (ROOT / "configs/changenet/demo.yaml").read_text("utf-8").replace("demo/", f"{folder}/")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def prepared(settings: Mapping[str, Any]) -> Prepared:
    tree = demo_spec(Path("demo"))
    tree["train"]["num_epochs"] = EPOCHS
    tree["automl"] = {"metric": METRIC, "automl_hyperparameters": list(SEARCHED), **settings}
    tree["automl"]["custom_param_ranges"] = {key: entry for key, entry in SEARCHED.items() if entry}
    action = known_action(TASKS, "automl")
    task, composed = compose_for(TASKS, action, read_spec(TASKS, tree, ()), {}, record=False)
    return prepare(task, composed.spec)


def trained(values: Mapping[str, Any], seed: int) -> list[float]:
    """The log loss after each epoch of a real training: which of scikit-learn's digits are an 8."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    lr, decay, share, augment, flip, turn = (values[key] for key in SEARCHED)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 16, dtype=torch.float32)
    label = torch.tensor(digits.target[order] == 8)
    x, y, test_x, test_y = images[:600], label[:600], images[600:], label[600:]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, EPOCHS)
    losses = []
    for _ in range(EPOCHS):
        weight = torch.where(y, share / y.float().mean(), 1 / (1 - y.float().mean()))
        for rows in torch.multinomial(weight, len(y), replacement=True).split(32):
            batch = x[rows].clone()
            if augment:
                flipped, turned = torch.rand(len(rows)) < flip, torch.rand(len(rows)) < turn
                batch[flipped] = batch[flipped].flip(1)
                batch[turned] = batch[turned].rot90(1, (1, 2))
                batch += 0.1 * torch.randn_like(batch)
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(batch)[:, 0], y[rows].float()).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            losses.append(nn.functional.binary_cross_entropy_with_logits(net(test_x)[:, 0], test_y.float()).item())
    return losses


def collect(count: int) -> None:
    """Train with ``count`` draws of values."""
    space = prepared({}).space
    trainings = []
    for number in range(count):
        rng = np.random.default_rng([17, number])
        params = {d.path: d.at(rng.random()) for d in space.dimensions}
        curve = trained(space.values(params), number)
        units = [round(d.unit(params[d.path]), 4) for d in space.dimensions]
        trainings.append({"units": units, "curve": [round(value, 5) for value in curve]})
        CURVES.write_text(json.dumps({"keys": [d.path for d in space.dimensions], "trainings": trainings}) + "\n")
    print(f"{count} trainings, {METRIC} at the end: {min(t['curve'][-1] for t in trainings):.4f} at best")


class Surrogate:
    """Kernel regression on the logarithm of the curves; what it does not explain is noise of a training."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.x = np.asarray([t["units"] for t in kept["trainings"]])
        self.y = np.log(np.asarray([t["curve"] for t in kept["trainings"]]))
        self.mean = self.y.mean(axis=0)
        errors = {width: self._left_out(width) for width in (0.3, 0.5, 0.8, 1.2, 2.0)}
        self.width = min(errors, key=lambda width: float((errors[width] ** 2).mean()))
        residual = errors[self.width]
        self.explained = 1 - float((residual[:, -1] ** 2).mean() / self.y[:, -1].var())
        self.noise = 0.5 * residual.std(axis=0)  # the other half is what so few trainings do not tell
        self.weights = np.linalg.solve(self._kernel(self.x, self.x) + 0.1 * np.eye(len(self.x)), self.y - self.mean)

    def curve(self, units: np.ndarray, seed: int) -> np.ndarray:
        """The metric of every epoch."""
        rng = np.random.default_rng(seed)
        smooth = self.mean + (self._kernel(units[None], self.x) @ self.weights)[0]
        luck = 0.8 * rng.standard_normal() + 0.6 * rng.standard_normal(len(self.mean))
        return np.exp(smooth + self.noise * luck)

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * self.width**2))

    def _left_out(self, width: float) -> np.ndarray:
        self.width = width
        inverse = np.linalg.inv(self._kernel(self.x, self.x) + 0.1 * np.eye(len(self.x)))
        return (inverse @ (self.y - self.mean)) / np.diag(inverse)[:, None]


class Computed:
    """A training whose curve is known."""

    def __init__(self, curve: np.ndarray) -> None:
        self.curve, self.epoch, self.stopped = curve, 0, False

    def validations(self) -> list[tuple[int, Mapping[str, Any]]]:
        if self.stopped or self.epoch == len(self.curve):
            return []
        self.epoch += 1
        return [(self.epoch, {METRIC: float(self.curve[self.epoch - 1])})]

    def ending(self) -> Ending | None:
        return Ending("stopped") if self.stopped else Ending("finished") if self.epoch == len(self.curve) else None

    def stop(self) -> None:
        self.stopped = True


class Quiet:
    def moved(self, said: str) -> None:
        pass


def searched(ready: Prepared, surrogate: Surrogate, budget: int | None) -> tuple[float, int, int]:
    """The best value that a search finds, without noise; its epochs, and those without early ends.

    ``budget``: end when so many epochs are spent.
    """
    dims = {d.path: d for d in ready.space.dimensions}

    def units(values: Mapping[str, Any]) -> np.ndarray:
        return np.asarray([dims[key].unit(dims[key].param(values[key])) for key in dims])

    with tempfile.TemporaryDirectory() as folder:
        study = open_study(
            None,
            Path(folder),
            "bench",
            ready.goal.direction,
            sampler=per_trial(ready.plan, ready.seed),
            pruner=ready.plan.pruner,
        )

        def launch(order: Order, place: int) -> Computed:
            return Computed(surrogate.curve(units(order.values), order.seed))

        workers = Workers(Path(folder))
        search = Search(
            study, ready.space, ready.plan, ready.goal, workers, launch, Quiet(), ready.seed, 0,
            run_baseline=False, pause_s=0.0,
        )  # fmt: skip
        while search._step():
            if budget is not None and not search.running:
                rows = rows_of(search.trials())
                if sum(row.epochs for row in rows) >= budget:
                    break
        workers.close()
        rows = rows_of(search.trials())
        best = best_of(search.trials(), ready.goal)
        assert best is not None
        truth = (
            surrogate.mean
            + (surrogate._kernel(units(best.user_attrs["values"])[None], surrogate.x) @ surrogate.weights)[0]
        )
        return float(np.exp(truth).min()), sum(row.epochs for row in rows), ready.plan.epochs * len(rows)


def compare(seeds: Sequence[int], trials: int, algorithms: list[str]) -> int:
    """Each algorithm against random search with as many epochs, over seeds."""
    import os

    from scipy.stats import wilcoxon

    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing is kept
    kept = json.loads(CURVES.read_text())
    surrogate = Surrogate(kept)
    print(f"{len(kept['trainings'])} trainings; left out, {surrogate.explained:.0%} of their differences are explained")
    found: dict[str, list[tuple[float, int, int]]] = {}
    plans: dict[str, Callable[[int], tuple[dict[str, Any], int | None]]] = {
        "random": lambda seed: ({"algorithm": "random", "n_trials": trials}, None),
        "bayesian": lambda seed: ({"algorithm": "bayesian", "n_trials": trials}, None),
        **{
            name: lambda seed, name=name: (  # type: ignore[misc]
                {"algorithm": name, "n_trials": 20 * trials}, EPOCHS * trials
            )
            for name in ("hyperband", "asha", "bohb", "dehb", "hyperband_es")
        },
    }  # fmt: skip
    for name, plan in plans.items():
        if name not in ("random", *algorithms):
            continue
        for seed in seeds:
            settings, budget = plan(seed)
            ready = prepared({**settings, "seed": seed})
            found.setdefault(name, []).append(searched(ready, surrogate, budget))
    plain = [value for value, _, _ in found["random"]]
    print(f"{'':14}{'median':>8} {'of random':>9} {'epochs':>7} {'of unpruned':>11}  p (Wilcoxon, one-sided)")
    good = True
    for name, rows in found.items():
        values = [value for value, _, _ in rows]
        epochs, full = sum(row[1] for row in rows), sum(row[2] for row in rows)
        p = float("nan") if name == "random" else float(wilcoxon(values, plain, alternative="less").pvalue)
        print(
            f"{name:14}{median(values):8.4f} {median(values) / median(plain):9.3f} {epochs / len(seeds):7.0f} "
            f"{epochs / full:11.0%}  {p:.4f}"
        )
        if name in ("bayesian", "bohb"):
            good &= median(values) < median(plain) and p < 0.05
        if name not in ("random", "bayesian"):
            good &= epochs <= 0.6 * full
    print(f"bayesian and bohb beat random, early ends take at most 60 % of the epochs: {'yes' if good else 'NO'}")
    return int(not good)


def demo(seeds: list[int], trials: int, boards: int, epochs: int | None) -> int:
    """bohb on the classify demo: as good as the curated values, for the epochs of four trainings at most."""
    good = True
    print(f"{'seed':>4} {'curated':>8} {'found':>8} {'epochs':>7} {'trainings':>9} {'seconds':>8}", flush=True)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as text:
            folder, start = Path(text), time.monotonic()
            make_demo_data.main(["classify", str(folder / "data"), "--seed", str(seed), "--boards", str(boards)])
            tree = demo_spec(folder)
            if epochs is not None:
                tree["train"]["num_epochs"] = epochs
            tree["train"]["seed"] = seed
            tree["automl"] = {
                "algorithm": "bohb",
                "automl_reduction_factor": 5,  # fewer rungs: what four trainings pay for
                "n_trials": trials,
                "min_points_in_model": 4,
                "run_final_evaluation": False,
            }
            perform(TASKS, "automl", tree)
            logging.getLogger("fiducial").handlers = []
            record = read_record(folder / "results/automl")
            own = next(row for row in record.rows if row.own)
            best = record.winner
            assert best is not None
            assert best.value is not None
            assert own.value is not None
            spent = record.spent / record.epochs
            better = best.value >= own.value if record.direction == "maximize" else best.value <= own.value
            good &= better and spent <= 4
            print(
                f"{seed:>4} {own.value:8.4f} {best.value:8.4f} {record.spent:>7} {spent:>9.2f} "
                f"{time.monotonic() - start:8.0f}",
                flush=True,
            )
    print(f"at least as good for the epochs of four trainings at most: {'yes' if good else 'NO'}")
    return int(not good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("--trainings", type=int, default=200)
    one = commands.add_parser("surrogate")
    one.add_argument("--seeds", type=int, default=10, help="how many")
    one.add_argument("--first-seed", type=int, default=0)
    one.add_argument("--trials", type=int, default=20)
    names = ["bayesian", "bohb", "hyperband", "asha", "dehb", "hyperband_es"]
    one.add_argument("--algorithms", nargs="+", default=names, choices=names)
    one = commands.add_parser("demo")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--trials", type=int, default=12)
    one.add_argument("--boards", type=int, default=40)
    one.add_argument("--epochs", type=int, default=None)
    args = parser.parse_args()
    logging.getLogger("fiducial").setLevel(logging.ERROR)
    if args.command == "collect":
        collect(args.trainings)
        return 0
    if args.command == "surrogate":
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        return compare(seeds, args.trials, args.algorithms)
    return demo(args.seeds, args.trials, args.boards, args.epochs)


if __name__ == "__main__":
    sys.exit(main())
