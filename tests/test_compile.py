"""Every network is one graph for any batch, and the keys ``compile`` reach training, ``evaluate`` and the library."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from changenet.classify.model import build_classifier
from changenet.classify.predictor import PairPredictor
from changenet.segment.model import build_segmenter
from changenet.segment.runtime import ScenePredictor
from fiducial import cli
from fiducial.checkpoints.reading import read
from fiducial.deploy import compiled
from mal.model import build_labeler
from mal.predictor import BoxLabeler, BoxPredictor
from mlrecog.model import build_recognizer
from mlrecog.predictor import Embedder

sys.path += [str(Path(__file__).parent / "fiducial" / "support"), str(Path(__file__).parent / "support")]

import small_runs
from tiny_task import LINE


def images(count, side, seed=1, channels=3):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def pairs(count, ids=None):
    known = torch.full((count,), -1) if ids is None else torch.tensor(ids)
    return {"test": images(count, 64), "golden": images(count, 64, seed=2), "golden_id": known}


def classify(difference):
    network = build_classifier(backbone="fan_tiny_8_p4_hybrid", difference_module=difference, image_size=(64, 64))
    return PairPredictor(network, cache_mb=64)


NETWORKS = {
    "classify, learnable": (lambda: classify("learnable"), [pairs(2), pairs(1), pairs(3, [4, 5, 4])]),
    "classify, euclidean": (lambda: classify("euclidean"), [pairs(2), pairs(3, [4, 5, 4])]),
    "segment": (
        lambda: ScenePredictor(build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(64, 64))),
        [{"A": images(n, 64), "B": images(n, 64, seed=2)} for n in (2, 1)],
    ),
    "mal": (
        lambda: BoxPredictor(BoxLabeler([build_labeler("vit-deit-tiny/16")], flip=True)),
        [{"image": images(n, 64), "boxmask": images(n, 64, channels=1).round(), "area": torch.rand(n)} for n in (2, 3)],
    ),
    "mlrecog": (
        lambda: Embedder(build_recognizer("fan_tiny", feat_dim=8, image_size=(32, 32))),
        [{"image": images(n, 32)} for n in (2, 1, 5)],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph_for_any_batch(name, monkeypatch, tmp_path, caplog):
    """What is exported runs here as torch exported it: that inductor compiles it right is checked where it runs."""
    programs = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def package(program):
        programs["latest"] = program
        return b""

    monkeypatch.setattr(compiled, "_package", package)
    monkeypatch.setattr(compiled, "_loaded", lambda graph: programs["latest"].module())
    torch.manual_seed(0)
    make, batches = NETWORKS[name]
    predictor = make()
    expected = [{key: value.clone() for key, value in predictor.predict(batch).items()} for batch in batches]
    if isinstance(predictor, PairPredictor):
        predictor = PairPredictor(predictor.network, cache_mb=64)  # with no golden encoded yet
    predictor.compile()
    for batch, wanted in zip(batches, expected, strict=True):
        for key, found in predictor.predict(batch).items():
            torch.testing.assert_close(found, wanted[key], rtol=1e-4, atol=1e-5)
    assert programs
    assert not [record.getMessage() for record in caplog.records if "not compiled" in record.getMessage()]


@pytest.mark.slow
@pytest.mark.parametrize("name", small_runs.RUNS)
def test_every_network_trains_compiled(name, monkeypatch, tmp_path, caplog):
    """In graphs without a break, whose losses are those of the network as it is; without inductor, for the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    small_runs.draw(name, tmp_path)
    task, composed = small_runs.composed(name, tmp_path)
    runtime = task.runtime(composed.spec)
    losses = []
    for compiles in (False, True):
        pl.seed_everything(0, verbose=False)
        module, data = runtime.module(pretrained=False), runtime.datamodule()
        module.policy = task.policy(composed.spec)
        data.num_workers = 0
        if compiles:
            module.compile_networks()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=3, limit_val_batches=0, **quiet)
        trainer.fit(module, datamodule=data)
        losses.append(module.last_loss)
    assert "uncompiled" not in caplog.text
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
class TestKeys:
    def test_train_and_evaluate(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        spec = tmp_path / "spec.yaml"
        spec.write_text("wandb: {enable: false}\ntrain: {num_epochs: 2, optim: sgd}\n")

        def run(action, results, *overrides):
            command = [action, "-e", str(spec), f"results_dir={tmp_path / results}", *overrides]
            assert cli.main([LINE], command, prog="tiny") == 0
            return capsys.readouterr()

        run("train", "plain")
        said = run("train", "compiled", "train.compile=true").err
        assert "uncompiled" not in said
        found, wanted = (
            read(tmp_path / folder / "train" / "tiny_model_latest.pth").state_dict for folder in ("compiled", "plain")
        )
        assert list(found) == list(wanted), "no name begins with _orig_mod"
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
        run("evaluate", "plain")
        checkpoint = f"evaluate.checkpoint={tmp_path / 'plain' / 'train'}"
        said = run("evaluate", "compiled", "evaluate.compile=true", checkpoint)
        assert "forward compiled in" in said.err
        files = [tmp_path / folder / "evaluate" / "evaluate.json" for folder in ("plain", "compiled")]
        wanted, found = (torch.tensor(json.loads(file.read_text("utf-8"))["rows"]) for file in files)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    def test_another_mode_is_refused(self, tmp_path, capsys):
        spec = tmp_path / "spec.yaml"
        spec.write_text("train: {num_epochs: 1, compile: fastest}\n")
        assert cli.main([LINE], ["train", "-e", str(spec), f"results_dir={tmp_path}"], prog="tiny") != 0
        assert "train.compile" in capsys.readouterr().err
