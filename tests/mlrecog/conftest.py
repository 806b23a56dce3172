"""Class folders and specs for the tests of ML Recog."""

import os

import pytest
import yaml
from mlrecog_shelves import make_folders

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shelves(tmp_path_factory):
    """Folder with ``train``, ``reference`` and ``query``."""
    root = tmp_path_factory.mktemp("shelves")
    for seed, (name, each) in enumerate({"train": 6, "reference": 3, "query": 2}.items()):
        make_folders(root / name, each=each, seed=seed)
    return root


def merged(tree, changes):
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@pytest.fixture(scope="session")
def make_tree(shelves):
    """A spec's tree of a small network on the shelves; changes as ``train__num_epochs=3``."""

    def make(results, **changes):
        tree = {
            "results_dir": str(results),
            "wandb": {"enable": False},
            "model": {"backbone": "fan_tiny", "input_width": 32, "input_height": 32, "feat_dim": 8},
            "dataset": {
                "train_dataset": str(shelves / "train"),
                "val_dataset": {"reference": str(shelves / "reference"), "query": str(shelves / "query")},
                "workers": 0,
                "num_instance": 2,
                "gaussian_blur": {"kernel": [3, 3]},
            },
            "train": {
                "num_epochs": 2,
                "batch_size": 4,
                "optim": {"warmup_iters": 1, "trunk": {"base_lr": 1e-3}, "embedder": {"base_lr": 1e-3}},
            },
            "inference": {"input_path": str(shelves / "query"), "topk": 2, "batch_size": 4},
        }
        return merged(tree, changes)

    return make


@pytest.fixture(scope="session")
def make_spec(make_tree):
    from mlrecog.config import ExperimentSpec

    return lambda results, **changes: ExperimentSpec.model_validate(make_tree(results, **changes))


@pytest.fixture(scope="session")
def act():
    """Runs the command: ``act(tree, "train", "train.num_epochs=1")``, its exit code."""
    from fiducial import cli
    from mlrecog.__main__ import TASKS

    def run(tree, *words):
        from pathlib import Path

        folder = Path(tree["results_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.yaml").write_text(yaml.safe_dump(tree))
        return cli.main(TASKS, [words[0], *words[1:], "-e", str(folder / "spec.yaml")], prog="mlrecog")

    return run


@pytest.fixture(scope="session")
def trained(make_tree, act, tmp_path_factory):
    """The tree of a training that was done."""
    tree = make_tree(tmp_path_factory.mktemp("trained"))
    assert act(tree, "train") == 0
    return tree
