"""Searches as people start them: the command line, trainings as processes, kills, and what is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from quick_search import prepared
from quick_task import QUICK

from fiducial.automl.record import read_record
from fiducial.automl.trial import ProcessJob, child_command
from fiducial.checkpoints.resolving import resolve_model_file
from fiducial.run.status import read_status
from fiducial.spec.knob import plain

MAIN = Path(__file__).parents[1] / "support" / "quick_main.py"
SPEC = {
    "results_dir": "out",
    "wandb": {"enable": False},
    "train": {"num_epochs": 4, "seed": 11},
    "automl": {"algorithm": "hyperband", "n_trials": 4, "automl_hyperparameters": ["train.lr"]},
}


def start(folder, *argv, **spec):
    (folder / "spec.yaml").write_text(yaml.safe_dump({**SPEC, **spec}))
    command = [sys.executable, str(MAIN), *argv]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder, *argv, **spec):
    process = start(folder, *argv, **spec)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that ``train`` was routed to."""
    folder = tmp_path_factory.mktemp("searched")
    code, out, err = run(folder, "train", "-e", "spec.yaml", "automl_policy=on")
    assert code == 0, err
    return folder, out, err


class TestSearched:
    def test_starts_nothing_heavy(self, searched):
        assert searched[1].strip() == "torch: False"

    def test_says_what_it_does(self, searched):
        err = searched[2]
        assert "search train.lr in 0.01 … 1, by orders of magnitude (a tenth to ten times the spec's)" in err
        assert "hyperband: rungs do not wait for each other" in err
        assert "training 0 starts with the values of the spec" in err
        assert "4 of 4 trainings over" in err
        assert err.rstrip().endswith("Execution status: PASS")

    def test_leaves_the_best_alone(self, searched):
        folder = searched[0] / "out/automl"
        record = read_record(folder)
        assert record.finished
        assert len(record.rows) == 4
        best = json.loads((folder / "best.json").read_text())
        assert best["trial"] == record.best
        assert best["value"] == min(row.value for row in record.rows if row.value is not None)
        kept = {path.parent.parent.name for path in folder.glob("trial_*/train/*.pth")}
        assert kept == {best["folder"]}
        assert (folder / "best").resolve() == (folder / best["folder"]).resolve()
        assert (
            resolve_model_file(folder, results_dir=None, prefix="quick_model", key="x").path.parent.parent.name in kept
        )
        assert resolve_model_file(searched[0] / "out", results_dir=None, prefix="quick_model", key="x")

    def test_the_best_spec_trains_the_same_by_itself(self, searched, tmp_path):
        folder = searched[0] / "out/automl"
        text = (folder / "best_spec.yaml").read_text()
        tree = yaml.safe_load(text)
        assert "best of 4 (hyperband)" in text.splitlines()[0]
        assert "automl" not in tree
        assert tree["results_dir"] == "out"
        code, _, err = run(tmp_path, "train", "-e", str(folder / "best_spec.yaml"))
        assert code == 0, err
        kpis = [r["kpi"]["val_loss"] for r in read_status(tmp_path / "out/train/status.json") if r.get("kpi")]
        assert min(kpis) == read_record(folder).winner.value

    def test_the_best_is_verified_on_the_test_set(self, searched):
        folder = searched[0] / "out/automl"
        record = read_record(folder)
        assert record.evaluation["test_loss"] == pytest.approx(record.winner.value)
        last = [r["kpi"] for r in read_status(folder / "status.json") if r.get("kpi")][-1]
        assert last["best_val_loss"] == record.winner.value
        assert last["Best experiment id"] == record.best
        assert last["test_loss"] == record.evaluation["test_loss"]
        assert f"the best on the test set: test_loss {record.winner.value:.6g}" in searched[2]

    def test_status_reads_it_offline(self, searched, tmp_path):
        before = {path: path.stat().st_mtime_ns for path in (searched[0] / "out").rglob("*.json")}
        for where in ("out", "out/automl"):
            code, out, err = run(tmp_path, "automl", "status", f"results_dir={searched[0] / where}")
            assert code == 0, err
            assert "(yours)" in out
            assert "finished" in out
        assert before == {path: path.stat().st_mtime_ns for path in (searched[0] / "out").rglob("*.json")}
        (tmp_path / "file").touch()
        for nothing in ("none", "file"):
            code, _, err = run(tmp_path, "automl", "status", f"results_dir={tmp_path / nothing}")
            assert code == 1
            assert "no search has begun here" in err
        code, _, err = run(tmp_path, "automl", "status", "results_dir=ö")
        assert code == 1
        assert "override 'results_dir=ö' · does not parse" in err
        code, _, err = run(tmp_path, "automl", "stats", f"results_dir={searched[0] / 'out'}")
        assert code == 2
        assert "invalid choice: 'stats' (choose from" in err

    def test_a_finished_one_is_not_searched_again(self, searched):
        code, _, err = run(searched[0], "automl", "-e", "spec.yaml")
        assert code == 0, err
        assert " starts" not in err
        assert "evaluating" not in err

    def test_the_page_draws_the_best_in_a_colour_of_its_own(self, searched):
        page = (searched[0] / "out/automl/report.html").read_text()
        colours = dict(re.findall(r"--(good|c\d): (#\w+);", page.partition("prefers-color-scheme")[0]))
        drawn = set(re.findall(r'class="line (\w+)', page))
        assert {"good", "c3"} <= drawn
        assert colours["good"] not in {colours[name] for name in drawn & colours.keys() - {"good"}}

    @pytest.mark.browser
    def test_page(self, searched, dump):
        page = searched[0] / "out/automl/report.html"
        shown = dump(page)
        for part in ("Best so far", "Learning curves", "Values and what they came to", "train.lr", "yours"):
            assert part in shown


class TestKilled:
    def test_goes_on_where_it_was(self, tmp_path):
        spec = {"train": {"num_epochs": 6, "seconds": 0.3}}
        spec["automl"] = {"algorithm": "random", "n_trials": 2, "run_final_evaluation": False}
        process = start(tmp_path, "automl", "-e", "spec.yaml", **spec)
        status = tmp_path / "out/automl/trial_001/train/status.json"
        wait_for(lambda: sum("epoch" in r for r in read_status(status)) >= 2)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda: read_status(status)[-1]["status"] == "FAILURE")  # the training was told to end
        done = json.loads((status.parent / "state.json").read_text())["epoch"]
        assert done < 6
        code, out, err = run(tmp_path, "automl", "status", "results_dir=out")
        assert "no process is at work" in out, err
        code, _, err = run(tmp_path, "automl", "-e", "spec.yaml", **spec)
        assert code == 0, err
        assert "training 1 was left by a process that is gone: it is continued" in err
        record = read_record(tmp_path / "out/automl")
        assert [(row.number, row.state, row.epochs) for row in record.rows] == [(0, "finished", 6), (1, "finished", 6)]
        epochs = [r["epoch"] for r in read_status(status) if r["message"] == "Eval metrics generated."]
        assert epochs == list(range(6))  # none twice

    def test_an_interrupt_ends_the_trainings_too(self, tmp_path):
        spec = {"train": {"num_epochs": 50, "seconds": 0.2}, "automl": {"algorithm": "random", "n_trials": 2}}
        process = start(tmp_path, "automl", "-e", "spec.yaml", **spec)
        status = tmp_path / "out/automl/trial_000/train/status.json"
        wait_for(lambda: any("epoch" in record for record in read_status(status)))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert read_status(status)[-1]["status"] == "FAILURE"
        assert read_record(tmp_path / "out/automl").rows[0].state == "running"


class TestTogether:
    def test_two_processes(self, tmp_path):
        spec = {"automl": {"algorithm": "random", "n_trials": 4, "run_final_evaluation": False}}
        processes = [start(tmp_path, "automl", "-e", "spec.yaml", **spec) for _ in range(2)]
        said = [process.communicate(timeout=240)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        record = read_record(tmp_path / "out/automl")
        assert [row.number for row in record.rows] == [0, 1, 2, 3]
        started = [[line for line in text.splitlines() if " starts" in line] for text in said]
        assert sum(map(len, started)) == 4
        assert all(started)
        assert record.finished

    def test_several_at_a_time(self, tmp_path):
        spec = {"train": {"num_epochs": 3, "seconds": 0.5}}
        spec["automl"] = {"algorithm": "pbt", "automl_population_size": 2, "automl_max_generations": 2}
        spec["automl"] |= {"automl_eval_interval": 2, "automl_max_concurrent": 2}
        code, _, err = run(tmp_path, "automl", "-e", "spec.yaml", **spec)
        assert code == 0, err
        folder = tmp_path / "out/automl"
        record = read_record(folder)
        assert [row.epochs for row in record.rows] == [2, 2, 4, 4]
        assert {row.parent for row in record.rows} - {None} <= {0, 1}
        assert "the checkpoint is the result" in (folder / "best_spec.yaml").read_text()


class TestTrainings:
    @pytest.mark.parametrize(
        ("fault", "kind", "message"),
        [
            ("", "finished", ""),
            ("crash", "killed", "killed by SIGKILL, most likely for memory"),
            ("memory", "out of memory", "CUDA out of memory"),
            ("diverged", "not a number", "no longer finite"),
        ],
    )
    def test_say_how_they_ended(self, tmp_path, fault, kind, message):
        tree = {**plain(prepared().spec), "results_dir": str(tmp_path)}
        tree["train"] |= {"fault": fault, "fault_epoch": 2, "num_epochs": 2}
        job = ProcessJob(child_command(QUICK, "train"), tree, tmp_path, {})
        wait_for(lambda: job.ending() is not None)
        assert job.ending().kind == kind
        assert message in job.ending().message
        assert [epoch for epoch, _ in job.validations()] == ([1, 2] if not fault else [1])
        assert job.validations() == []

    def test_secrets_are_in_no_file_and_no_command(self, tmp_path):
        tree = {**plain(prepared().spec), "results_dir": str(tmp_path), "encryption_key": "open-sesame"}
        tree["train"] |= {"fault": "hang"}
        job = ProcessJob(child_command(QUICK, "train"), tree, tmp_path, {})
        wait_for(lambda: (tmp_path / "train/status.json").is_file())
        command = Path(f"/proc/{job.process.pid}/cmdline").read_text()
        job.stop()
        wait_for(lambda: job.ending() is not None)
        assert job.ending().kind == "stopped"
        written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
        assert not any("open-sesame" in text for text in [command, *written])


class TestNoNumbers:
    def test_can_be_looked_at(self, tmp_path):
        spec = {"train": {"num_epochs": 1, "fault": "diverged"}, "automl": {**SPEC["automl"], "algorithm": "random"}}
        code, _, err = run(tmp_path, "automl", "-e", "spec.yaml", "automl.n_trials=2", **spec)
        assert code == 1
        assert "none of 2 trainings went to its end: not a number" in err
        code, out, err = run(tmp_path, "automl", "status", "results_dir=out")
        assert code == 0, err
        assert "not a number" in out


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"metric": "val_acccc"}, "automl.metric · validation reports no 'val_acccc'"),
            ({"custom_param_ranges": {"train.lr": {"valid_min": -1}}}, "train.lr.valid_min · -1"),
            ({"pinned": ["train.lr"]}, "nothing to search"),
            ({"storage": "postgresql://u:pw@127.0.0.1:9/x"}, "automl.storage"),
            ({"algorithm": "llm"}, "it asks a language model elsewhere"),
            ({"algorithm": "hyprband"}, "did you mean hyperband?"),
            ({"automl_max_epoch": 3}, "did you mean automl.automl_max_epochs?"),
            ({"final_evaluation_metric": "test_lss"}, "evaluate reports no 'test_lss' · use one of test_loss"),
            ({"llm_model": "x"}, "llm_model: language models elsewhere are not asked"),
        ],
    )
    def test_ends_it_before_the_first_training(self, tmp_path, capsys, monkeypatch, changes, told):
        from fiducial import cli

        monkeypatch.chdir(tmp_path)
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "automl": {**SPEC["automl"], **changes}}))
        assert cli.main([QUICK], ["automl", "-e", "spec.yaml"], prog="quick") == 1
        assert told in capsys.readouterr().err
        assert not list(tmp_path.rglob("trial_*"))

    @pytest.mark.parametrize(
        ("overrides", "told"),
        [
            (["dataset.path=''"], "dataset.path · not set"),
            (["dataset.test=''", "automl.run_final_evaluation=true"], "dataset.test · not set"),
            (["train.resume_training_checkpoint_path=x.pth"], "a search begins its trainings anew"),
            (["train.width=63"], "train.width · 63"),
            (["train.checkpointer.filename='{epoch}-{val_lss}'"], "unknown metric 'val_lss'"),
            (["automl.automl_min_epochs=5"], "automl.automl_min_epochs · 5, in units of 1 epochs, is more than the 4"),
            (["automl.epoch_multiplier=6"], "automl.automl_min_epochs · 1, in units of 6 epochs"),
            (["automl.algorithm=pbt", "automl.include_latency=true"], "automl.include_latency · pbt compares"),
            (["automl.storage='postgresql://u@h:port/x'"], "automl.storage · its port is no number"),
            (["automl.storage=nosuch://x"], "automl.storage · it cannot be used: Can't load plugin"),
            (["automl.storage='sqlite:///none/study.db'"], "automl.storage · it cannot be used: unable to open"),
            (["automl.storage=spec.yaml"], "automl.storage · spec.yaml is no journal of a search"),
            (["train.num_nodes=2"], "train.num_nodes · 2, but each training of a search is on one machine"),
        ],
    )
    def test_of_the_rest_of_the_spec(self, tmp_path, capsys, monkeypatch, overrides, told):
        from fiducial import cli

        monkeypatch.chdir(tmp_path)
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        assert cli.main([QUICK], ["automl", "-e", "spec.yaml", *overrides], prog="quick") == 1
        assert told in capsys.readouterr().err
        assert cli.main([QUICK], ["check", "automl", "-e", "spec.yaml", *overrides], prog="quick") == 1
        assert told in capsys.readouterr().err
        assert not list(tmp_path.rglob("trial_*"))

    def test_check_makes_no_storage(self, tmp_path, monkeypatch):
        from fiducial import cli

        monkeypatch.chdir(tmp_path)
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        for storage in ("sqlite:///study.db", "journal.log"):
            command = ["check", "automl", "-e", "spec.yaml", f"automl.storage='{storage}'"]
            assert cli.main([QUICK], command, prog="quick") == 0
        assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]

    @pytest.mark.parametrize(
        ("variables", "told"),
        [
            ({"TORCHELASTIC_RUN_ID": "7"}, "under torchrun"),
            ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "under srun with 2 tasks"),
            ({"WORLD_SIZE": "2", "NODE_RANK": "0"}, "with WORLD_SIZE=2"),
        ],
    )
    def test_one_of_several_processes(self, tmp_path, capsys, monkeypatch, variables, told):
        """Their trainings would wait for each other, or take each other for the one that reports."""
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        self.test_of_the_rest_of_the_spec(tmp_path, capsys, monkeypatch, [], f"automl · {told} · start one")

    def test_a_search_of_another_spec(self, searched, capsys, monkeypatch):
        from fiducial import cli

        monkeypatch.chdir(searched[0])
        assert cli.main([QUICK], ["automl", "-e", "spec.yaml", "train.kind=c"], prog="quick") == 1
        assert "spec: train.kind 'b' · here it is 'c'" in capsys.readouterr().err
