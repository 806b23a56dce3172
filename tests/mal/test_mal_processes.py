"""Boxes shared out between processes: the files are those of one, whatever the shares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mal
from fiducial.spec.compose import Source, compose
from mal import evaluator
from mal.coco_labels import labelled_rows
from mal.config import ExperimentSpec
from mal.model import build_labeler
from mal.predictor import BoxLabeler, BoxPredictor
from mal.task import MAL

ROOT = Path(__file__).parents[2]


def first_boxes(folder, pictures, count):
    """An annotation file with the first boxes of ``val``."""
    tree = json.loads((pictures / "val" / "ann.json").read_text())
    tree["annotations"] = tree["annotations"][:count]
    path = folder / f"{count}.json"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_labeler("vit-deit-tiny/16", hidden=8, out_dim=8)


class TestShares:
    """Without processes: what each rank's loader and evaluator make, put together."""

    @pytest.fixture
    def results_of(self, network, make_tree, tmp_path, pictures, monkeypatch):
        def run(count, world, batch_size, stage):
            tree = make_tree(tmp_path, inference__batch_size=batch_size, evaluate__batch_size=batch_size)
            tree["inference"]["ann_path"] = tree["dataset"]["val_ann_path"] = first_boxes(tmp_path, pictures, count)
            runtime = MAL.runtime(compose(ExperimentSpec, Source(tree)).spec)
            predictor = BoxPredictor(BoxLabeler([network]))
            parts, shares = [], []
            monkeypatch.setattr(evaluator, "gather", lambda local: parts)
            for rank in range(world):
                one = runtime.evaluator(stage)
                for source, loader in enumerate(runtime.loaders(stage, rank=rank, world_size=world)):
                    for batch in loader:
                        one.update(predictor.predict(batch), batch, source=source)
                shares.append(len(one._found))
                parts.append(one._found)
            result = one.finish()
            return shares, list(labelled_rows(result)), one.kpis(result)

        return run

    @pytest.mark.parametrize("stage", ["infer", "test"])
    @pytest.mark.parametrize(
        ("count", "batch_size", "shares"),
        [
            (5, 1, {2: [3, 2], 3: [2, 2, 1]}),
            (5, 2, {2: [3, 2], 3: [2, 2, 1]}),
            (5, 3, {2: [3, 2], 3: [3, 2, 0]}),
            (1, 3, {2: [1, 0], 3: [1, 0, 0]}),
            (6, 4, {2: [4, 2], 3: [4, 2, 0]}),
        ],
    )
    def test_together_are_those_of_one_process(self, results_of, stage, count, batch_size, shares):
        alone, tree, kpis = results_of(count, 1, batch_size, stage)
        assert alone == [count]
        assert len(tree) == count
        for world, expected in shares.items():
            found, again, numbers = results_of(count, world, batch_size, stage)
            assert found == expected
            assert again == tree
            assert numbers == pytest.approx(kpis, nan_ok=True)

    def test_batches_of_several_processes_hold_every_box(self, make_tree, tmp_path):
        """15 boxes to train on; ranks have equally many batches, so that none waits for another."""
        tree = make_tree(tmp_path, train__batch_size=4)
        data = MAL.runtime(compose(ExperimentSpec, Source(tree)).spec).datamodule()
        for world in (1, 2, 3, 7):
            places, counts = set(), set()
            for rank in range(world):
                data.ranks = lambda rank=rank, world=world: (rank, world)
                batches = [[draw.index for draw in batch] for batch in data.train_dataloader().batch_sampler]
                counts.add(len(batches))
                places.update(place for batch in batches for place in batch)
            assert places == set(range(15))
            assert counts == {-(-4 // world)}


def test_no_search_for_unused_parameters(make_tree, tmp_path):
    """Nor is there need: every trained parameter gets a gradient, whatever the sizes of the boxes."""
    assert not MAL.policy(compose(ExperimentSpec, Source(make_tree(tmp_path))).spec).find_unused_parameters
    for area in (100.0, 5000.0, 20000.0):
        network = build_labeler("vit-deit-tiny/16", hidden=8, out_dim=8)
        network(torch.randn(1, 3, 32, 32), torch.tensor([area])).sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in network.parameters())


@pytest.mark.slow
class TestProcesses:
    def by(self, count, *arguments):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*launcher, "-m", "mal", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def test_labels_are_those_of_one_process(self, write_spec, make_tree, tmp_path):
        spec = write_spec(tmp_path, train__num_epochs=1)
        self.by(2, "train", "-e", spec)
        self.by(2, "inference", "-e", spec, f"inference.results_dir={tmp_path / 'two'}")
        mal.run("inference", spec, f"inference.results_dir={tmp_path / 'one'}")
        for name in ("instances_val2017_mal.json", "quality.csv"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    @pytest.mark.parametrize(("processes", "boxes"), [(2, 5), (2, 1), (3, 4)])
    def test_uneven_shares(self, network, write_spec, tmp_path, pictures, processes, boxes):
        """Batches of three boxes: the last process has fewer, or none."""
        weights = {f"student.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": weights}, tmp_path / "model.pth")
        given = first_boxes(tmp_path, pictures, boxes)
        spec = write_spec(tmp_path, inference__checkpoint=str(tmp_path / "model.pth"), inference__ann_path=given)
        ids = f"inference.gpu_ids={list(range(processes))[::-1]}".replace(" ", "")
        self.by(processes, "inference", "-e", spec, ids, f"inference.results_dir={tmp_path / 'many'}")
        mal.run("inference", spec, f"inference.results_dir={tmp_path / 'one'}")
        for name in ("instances_val2017_mal.json", "quality.csv"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
        rows = json.loads((tmp_path / "many" / "instances_val2017_mal.json").read_text())["annotations"]
        assert [row["id"] for row in rows] == [row["id"] for row in json.loads(Path(given).read_text())["annotations"]]
