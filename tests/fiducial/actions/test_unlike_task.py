"""Every shared action with a network that is as unlike the others as the contract allows."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import seek_runtime
import torch
from seek_task import SEEK, write_annotations

from fiducial import cli
from fiducial.actions.action import Action
from fiducial.actions.perform import compose_for, read_spec
from fiducial.checkpoints.reading import read
from fiducial.deploy.card import ModelCard
from fiducial.errors import SpecError
from fiducial.run.resume import Place, place_of
from fiducial.run.status import read_status

BEST = "val Precision at Rank 1"
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def act(tmp_path, monkeypatch):
    """Runs an action in-process; returns its exit code and the training steps it made."""
    monkeypatch.chdir(tmp_path)
    write_annotations(Path("shapes.json"))
    Path("spec.yaml").write_text("wandb: {enable: false}\ntrain: {num_epochs: 4}\n")

    def run(*words, results="a"):
        seek_runtime.SEEN.clear()
        code = cli.main([SEEK], [*words, "-e", "spec.yaml", f"results_dir={results}"], prog="seek")
        return code, list(seek_runtime.SEEN)

    yield run
    seek_runtime.STOP.clear()


@pytest.fixture
def whole(act):
    """The steps of a run that nothing interrupts: 3 batches in each of 4 epochs."""
    code, steps = act("train", results="whole")
    assert code == 0
    assert [step[:2] for step in steps] == [(epoch, batch) for epoch in range(4) for batch in range(3)]
    return steps


@pytest.fixture
def trained(act, tmp_path):
    assert act("train")[0] == 0
    return tmp_path / "a" / "train"


def records(folder):
    return read_status(folder / "status.json")


class TestTrain:
    def test_files(self, trained):
        """Two optimizers step after two batches and at the end of an epoch: four steps an epoch."""
        names = {path.name for path in trained.glob("*.pth")}
        files = {f"model_epoch_00{epoch}_step_{4 * epoch + 4:05d}.pth" for epoch in range(4)}
        assert names == files | {"seek_model_latest.pth", "seek_model_best.pth"}

    def test_best_is_the_monitors(self, trained):
        values = [r["kpi"][BEST] for r in records(trained) if r["message"] == "Eval metrics generated."]
        best = int(os.readlink(trained / "seek_model_best.pth").split("_")[2])
        assert best == values.index(max(values))

    def test_records(self, trained):
        told = [(r["message"], set(r.get("kpi", {}))) for r in records(trained)]
        held_out = {BEST, "val_box_error"}
        epoch = [
            ("Eval metrics generated.", held_out),
            ("Training loop in progress", held_out),
            ("Train metrics generated.", {"train_loss", "trunk_base_lr"}),
        ]
        assert told[2:14] == epoch * 4
        assert records(trained)[4]["kpi"]["trunk_base_lr"] == "5.0000e-02"

    def test_scalars(self, trained):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(trained / "lightning_logs/version_1")).Reload()
        tags = {tag.replace("_", " ") for tag in events.Tags()["scalars"]}
        assert {"train loss epoch", BEST, "val/box error"} <= tags
        assert "trunk base lr" not in tags

    def test_progress_shows_the_loss(self, act, capfd):
        act("train", "train.num_epochs=1")
        assert "epoch 0/0 step 3/3 loss " in capfd.readouterr().err

    def test_names_of_best_files(self, act, tmp_path):
        template = "train.checkpointer.filename='best_{epoch:02d}_{val Precision at Rank 1:.2f}_{val/box error:.0f}'"
        assert act("train", "train.checkpointer.enable_topk=true", template, "train.num_epochs=1")[0] == 0
        (file,) = (tmp_path / "a/train").glob("best_*.pth")
        value = records(tmp_path / "a/train")[2]["kpi"]
        assert file.name == f"best_00_{value[BEST]:.2f}_{value['val_box_error']:.0f}.pth"

    def test_unknown_name_in_best_files(self, act, capfd):
        options = ("train.checkpointer.enable_topk=true", "train.checkpointer.filename='b_{val_nothing:.2f}'")
        assert act("train", *options)[0] == 1
        assert "train.checkpointer.filename · unknown metric 'val_nothing'" in capfd.readouterr().err

    @pytest.mark.parametrize("name", ["val_box_error", "val/box error", BEST])
    def test_either_name_can_be_monitored(self, act, tmp_path, name):
        options = ("train.checkpointer.enable_topk=true", f"train.checkpointer.monitor='{name}'")
        assert act("train", *options, "train.num_epochs=2")[0] == 0
        assert len(list((tmp_path / "a/train").glob("model_best_*.pth"))) == 1

    def test_steps_that_jump(self, act, tmp_path):
        """Steps 2, 4 | 6, 8: every third step is passed by 4 and 6, and met by none."""
        unit = ("train.checkpoint_interval_unit=step", "train.checkpoint_interval=3", "train.num_epochs=2")
        assert act("train", *unit)[0] == 0
        names = sorted(path.name for path in (tmp_path / "a/train").glob("model_*.pth"))
        assert names == [f"model_epoch_00{e}_step_0000{s}.pth" for e, s in ((0, 4), (1, 6), (1, 8))]

    def test_clipped(self, act, monkeypatch):
        norms = []
        step = torch.optim.SGD.step

        def measured(self, *args, **kwargs):
            norms.append(float(torch.cat([p.grad.ravel() for p in self.param_groups[0]["params"]]).norm()))
            return step(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.SGD, "step", measured)
        assert act("train", "train.clip_grad_norm=0.001", "train.num_epochs=1")[0] == 0
        assert len(norms) == 2  # steps: two batches, then the third alone
        assert 0 < max(norms) <= 0.001 * (1 + 1e-5)

    def test_result(self, act, tmp_path):
        from fiducial.actions.perform import perform

        result = perform([SEEK], "train", Path("spec.yaml"), ["results_dir=lib", "train.num_epochs=2"])
        assert result.folder == tmp_path / "lib" / "train"
        assert {BEST, "train_loss"} <= set(result.kpis)
        assert [epoch for epoch, _ in result.history] == [0, 1]
        assert result.history[1][1][BEST] == result.kpis[BEST]
        assert {path.name for path in result.files} >= {"seek_model_latest.pth", "seek_model_best.pth"}

    def test_results_of_the_other_actions(self, trained, tmp_path):
        from fiducial.actions.perform import perform

        found = {}
        for action, more in (("evaluate", ()), ("inference", ()), ("export", ("export.onnx_file=out.onnx",))):
            overrides = ["results_dir=a", *more]
            found[action] = perform([SEEK], action, {"wandb": {"enable": False}}, overrides)
        assert set(found["evaluate"].kpis) == {"test Precision at Rank 1", "test_box_error"}
        assert found["evaluate"].files == (tmp_path / "a/evaluate/shapes.json",)
        assert (found["inference"].kpis, found["inference"].files) == ({}, (tmp_path / "a/inference/shapes.json",))
        assert found["export"].files == (Path("out.onnx"), Path("out.onnx.card.json"))

    def test_a_refused_action_is_an_error_of_the_user(self):
        from fiducial.actions.perform import perform

        with pytest.raises(SpecError, match="Seek models are not pruned"):
            perform([SEEK], "prune", None)
        with pytest.raises(SpecError, match="no such action"):
            perform([SEEK], "polish", None)


class TestResume:
    @pytest.mark.parametrize("where", [(0, 1), (0, 2), (1, 0), (1, 1), (2, 2)])
    def test_after_an_exception(self, act, whole, where, tmp_path):
        seek_runtime.STOP[where] = RuntimeError("broken")
        code, before = act("train")
        assert code == 1
        code, after = act("train")
        assert code == 0
        assert before + after == whole
        ends = [sorted((tmp_path / r / "train").glob("model_epoch_003_*.pth"))[-1] for r in ("whole", "a")]
        first, second = (read(path).state_dict for path in ends)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_after_a_signal(self, act, whole, interruptible):
        seek_runtime.STOP[1, 0] = lambda: os.kill(os.getpid(), signal.SIGINT)  # between two batches of one step
        code, before = act("train")
        assert code == 130
        assert len(before) == 4
        assert before + act("train")[1] == whole

    def test_from_a_step(self, act, whole, tmp_path):
        unit = ("train.checkpoint_interval_unit=step", "train.checkpoint_interval=2")
        assert act("train", *unit)[0] == 0
        file = tmp_path / "a/train/model_epoch_001_step_00006.pth"
        assert place_of(read(file).raw, file) == Place(1, 2)
        assert act("train", f"train.resume_training_checkpoint_path={file}", results="b") == (0, whole[5:])


class TestEvaluate:
    def test_two_loaders(self, act, trained, tmp_path):
        assert act("evaluate", "evaluate.checkpoint=best")[0] == 0
        written = json.loads((tmp_path / "a/evaluate/shapes.json").read_text())
        assert written["info"] == {"from": "a tool"}
        assert len(written["shapes"]) == 12
        assert [shape["why"] for shape in written["shapes"]] == [""] * 11 + ["no box"]
        assert written["run"]["boxes"] == "corners"
        last = next(r for r in records(tmp_path / "a/evaluate") if r["message"] == "Test metrics generated.")
        assert set(last["kpi"]) == {"test Precision at Rank 1", "test_box_error"}

    def test_is_what_validation_said(self, act, trained, tmp_path):
        """One evaluator for both: the same model gives the same numbers."""
        act("evaluate", "evaluate.checkpoint=latest")
        said = [r["kpi"] for r in records(trained) if r["message"] == "Eval metrics generated."][-1]
        tested = next(r["kpi"] for r in records(tmp_path / "a/evaluate") if r["message"] == "Test metrics generated.")
        assert {k.replace("val", "test"): v for k, v in said.items()} == pytest.approx(tested, rel=1e-6)

    def test_inference_has_one_loader_and_no_kpis(self, act, trained, tmp_path):
        assert act("inference")[0] == 0
        assert (tmp_path / "a/inference/shapes.json").exists()
        assert not any("kpi" in record for record in records(tmp_path / "a/inference"))

    def test_preprocessing_is_the_models(self, act, trained, monkeypatch, tmp_path):
        act("evaluate", "evaluate.checkpoint=latest")
        files = [tmp_path / "a/evaluate/shapes.json"]
        first = json.loads(files[0].read_text())["shapes"]
        made = seek_runtime.Runtime.__init__

        def other_mean(self, spec):
            made(self, spec)
            self.mean = 5.0

        monkeypatch.setattr(seek_runtime.Runtime, "__init__", other_mean)
        act("evaluate", "evaluate.checkpoint=latest")
        assert json.loads(files[0].read_text())["shapes"] == first


class TestExport:
    def test_named_outputs(self, act, trained, tmp_path, capfd):
        assert act("export", "export.onnx_file=m.onnx", "export.checkpoint=latest")[0] == 0
        model = onnx.load("m.onnx")
        assert [output.name for output in model.graph.output] == ["embedding", "box"]
        card = ModelCard.read(Path("m.onnx"))
        assert (card.network, card.task, card.mean, card.details["corners"]) == ("seek_net", "seek", (1.0,), 2)
        assert card.inputs["shape"].shape == (6,)
        assert act("evaluate", "evaluate.checkpoint=latest")[0] == 0
        by_torch = json.loads((tmp_path / "a/evaluate/shapes.json").read_text())["shapes"]
        assert act("evaluate", "evaluate.checkpoint=m.onnx")[0] == 0
        by_onnx = json.loads((tmp_path / "a/evaluate/shapes.json").read_text())["shapes"]
        for one, other in zip(by_torch[:-1], by_onnx[:-1], strict=True):
            np.testing.assert_allclose(one["found"], other["found"], atol=1e-5)


class TestCommandLine:
    def test_check(self, act, capfd):
        assert act("check", "train")[0] == 0
        assert "kind 1: 4" in capfd.readouterr().out
        assert act("check", "evaluate")[0] == 0  # nothing is trained yet: the run to come is its own business
        assert re.findall(r"^(\w+):$", capfd.readouterr().out, re.MULTILINE) == ["gallery", "queries"]
        assert act("check", "train", "train.batch_size=5")[0] == 1
        assert "train.batch_size · 5 is no multiple of train.per_kind 2" in capfd.readouterr().err
        assert act("check", "gallery")[0] == 0
        for wrong in ("evaluate.checkpoint='epoch:x'", "evaluate.trt_engine=x.engine"):
            assert act("check", "evaluate", wrong)[0] == 1

    def test_missing_annotations(self, act, capfd):
        assert act("train", "data.annotations=none.json")[0] == 1
        assert "data.annotations · no file none.json · name one" in capfd.readouterr().err

    def test_alias_of_a_network_without_tasks(self, act):
        assert act("seek_train", "train.num_epochs=1")[0] == 0

    def test_wrapped_spec(self, act, tmp_path):
        Path("spec.yaml").write_text("tool: seek\nseek: {wandb: {enable: false}, train: {num_epochs: 1}}\n")
        assert act("train")[0] == 0
        assert (tmp_path / "a/train/model_epoch_000_step_00004.pth").exists()

    def test_verbs_of_an_action(self, act, trained, tmp_path, capfd):
        assert act("gallery", "add")[0] == 0
        assert act("gallery", "list")[0] == 0
        assert "12 references" in capfd.readouterr().err
        with pytest.raises(SystemExit) as caught:
            act("gallery", "remove")
        assert caught.value.code == 2

    @pytest.mark.parametrize(
        ("action", "why"),
        [("prune", "Seek models are not pruned"), ("retrain", "not pruned and retrained")],
    )
    def test_refused(self, act, capfd, action, why):
        assert act(action)[0] == 1
        assert why in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes(act, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SUPPORT / "tiny_main.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TINY_SEEN": str(tmp_path), "FAKE": "seek"}

    def two(*words):
        command = [sys.executable, *launcher, *words, "-e", "spec.yaml"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)

    done = two("train", "results_dir=two", "train.num_epochs=2", "train.batch_size=4")
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [step[:2] for step in ranks[0]] == [step[:2] for step in ranks[1]]
    assert all(first[2] != second[2] for first, second in zip(*ranks, strict=True))
    checkpoint = f"evaluate.checkpoint={tmp_path / 'two/train/seek_model_latest.pth'}"
    assert two("evaluate", "results_dir=two", checkpoint).returncode == 0
    assert act("evaluate", checkpoint, results="one")[0] == 0
    kpis = [
        next(r["kpi"] for r in records(tmp_path / r / "evaluate") if r["message"] == "Test metrics generated.")
        for r in ("two", "one")
    ]
    assert kpis[0] == pytest.approx(kpis[1], rel=1e-5)


def test_an_action_whose_section_the_spec_lacks(tmp_path):
    """As of a network from elsewhere, whose spec has only what it needs."""
    action = Action("grind", help="", model_key="checkpoint")
    source = read_spec([SEEK], {"results_dir": str(tmp_path)}, ())
    with pytest.raises(SpecError, match=f"grind · {SEEK.title} has no such section"):
        compose_for([SEEK], action, source, {})
