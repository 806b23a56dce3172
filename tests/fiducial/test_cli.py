"""The command line: what it answers, what it writes last, and how it exits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_task import LINE, Line, Spec

from fiducial import cli
from fiducial.spec.knob import knob

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent / "support"


class TaskSpec(Spec):
    """The spec of a network with two tasks."""

    task: str = knob("one", "The task.")


class One(Line):
    name = "one"

    def spec_model(self):
        return TaskSpec


class Other(One):
    name = "other"


ONE, OTHER = One(), Other()


def run(*argv):
    return cli.main([LINE], list(argv), prog="tiny")


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "spec.yaml"
    path.write_text("results_dir: /results\nwandb: {enable: false}\n")
    return str(path)


def last(capfd):
    return capfd.readouterr().err.rstrip().splitlines()[-1].split(" - ")[-1]


class TestArguments:
    @pytest.mark.parametrize("argv", [[], ["bogus"], ["train", "-e", "x", "--gpus", "2"], ["check", "prune"]])
    def test_usage_errors(self, argv):
        with pytest.raises(SystemExit) as caught:
            run(*argv)
        assert caught.value.code == 2

    @pytest.mark.parametrize(
        ("argv", "text"),
        [
            (["train"], "ERROR: The subtask `train` requires the following argument: -e/--experiment_spec_file"),
            (["train", "-e", "none.yaml"], "ERROR: The indicated experiment spec file doesn't exist!"),
            (["prune"], "models of Tiny are not pruned"),
            (["prune"], "prune · models of"),
            (["train", "--config", "nothing"], "no curated spec 'nothing' · use one of: changenet/"),
            (["train", "-e", "none.yaml", "--map-path", "x"], "ERROR: The indicated"),
            (["train", "-e", "x" * 300], "ERROR: The indicated"),
            (["train", "-e", "~nobody-here/x"], "ERROR: The indicated"),
            (["train", "-e", "/"], "is a folder"),
            (["train", "-e", "/dev/zero"], "is a pipe or a device"),
            (["train", "--config", "x" * 300], "no curated spec"),
            (["train", "--config", "../README"], "no curated spec"),
            (["default_specs", "a=["], "does not parse"),
        ],
    )
    def test_refused(self, argv, text, capfd):
        assert run(*argv) == 1
        err = capfd.readouterr().err
        assert text in err
        assert err.rstrip().endswith("Execution status: FAIL")

    def test_curated_spec(self, capfd, monkeypatch):
        from changenet.classify.task import CLASSIFY

        assert cli.main([CLASSIFY], ["check", "train", "--spec-only", "--config", "changenet/demo"], prog="x") in (0, 1)
        assert "type: fan_tiny_8_p4_hybrid" in capfd.readouterr().out

    def test_alias_of_a_network_without_tasks(self, spec, capfd):
        assert run("line_train", "-e", spec, "results_dir=r", "train.num_epochs=1") == 0

    def test_alias_sets_the_task(self, spec, capfd):
        assert cli.main([ONE, OTHER], ["other_train", "-e", spec, "results_dir=r"], prog="two") == 0
        assert "\ntask: other\n" in capfd.readouterr().err

    def test_unknown_task(self, spec, capfd):
        assert cli.main([ONE, OTHER], ["train", "-e", spec, "results_dir=r", "task=third"], prog="two") == 1
        assert "'third' is not available in this version · set task to one of: one, other" in capfd.readouterr().err

    def test_default_task(self, spec, capfd):
        assert cli.main([ONE, OTHER], ["train", "-e", spec, "results_dir=r"], prog="two") == 0
        assert "task is not set in the spec: using its default, one" in capfd.readouterr().err


class TestCheck:
    def test_finds_problems_and_writes_nothing(self, spec, tmp_path, capfd):
        assert run("check", "train", "-e", spec, "train.checkpoint_interval=20", "results_dir=r") == 1
        said = capfd.readouterr()
        assert "train.checkpoint_interval · 20 is more than train.num_epochs 10 · set it to at most 10" in said.err
        assert "1 error(s), 0 warning(s)" in said.err
        assert "rows: 12" in said.out
        assert not (tmp_path / "r").exists()

    def test_missing_keys(self, spec, capfd):
        assert run("check", "evaluate", "-e", spec, "evaluate.checkpoint='???'") == 1
        assert "evaluate.checkpoint · still ???" in capfd.readouterr().err
        assert run("check", "evaluate", "--spec-only", "-e", spec, "evaluate.checkpoint='???'") == 0


class TestDefaultSpecs:
    def test_printed(self, capfd):
        import yaml

        assert run("default_specs") == 0
        assert yaml.safe_load(capfd.readouterr().out)["train"]["num_epochs"] == 10

    def test_written(self, tmp_path, capfd):
        for _ in range(2):
            assert run("default_specs", f"results_dir={tmp_path / 'd'}", "module_name=line") == 0  # TAO's command
        assert "num_epochs: 10" in (tmp_path / "d" / "experiment.yaml").read_text()
        assert "overwriting" in capfd.readouterr().err


class TestResultsDir:
    def test_not_writable(self, spec, tmp_path, capfd):
        (tmp_path / "file").touch()
        assert run("train", "-e", spec, f"results_dir={tmp_path / 'file'}") == 1
        err = capfd.readouterr().err
        assert "results_dir · cannot write to" in err
        assert "--map-path /results=./results" in err

    def test_mapped(self, spec, tmp_path, capfd):
        assert run("train", "-e", spec, "--map-path", "/results=out", "train.num_epochs=1") == 0
        assert (tmp_path / "out" / "train" / "status.json").exists()

    def test_mapped_by_environment_also_for_a_bad_spec(self, spec, tmp_path, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_MAP_PATH", f"/results={tmp_path / 'out'}")
        assert run("train", "-e", spec, "train.nonsense=1") == 1
        assert "Configuration error: train.nonsense" in (tmp_path / "out" / "train" / "status.json").read_text()

    def test_unset(self, spec, capfd):
        assert run("train", "-e", spec, "results_dir=''") == 1
        assert "neither results_dir nor train.results_dir is set" in capfd.readouterr().err

    @pytest.fixture
    def odd(self, spec, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "taken" / "train" / "experiment.yaml").mkdir(parents=True)
        (tmp_path / "taken" / "experiment.yaml").mkdir()

    @pytest.mark.parametrize(
        "name",
        [
            "file",
            "file/x",
            "x" * 300,
            f"x/{'y' * 300}",
            "loop",
            "'é" + "é" * 200 + "'",
            "/dev/null",
            "/proc/x",
            "taken",
        ],
    )
    @pytest.mark.parametrize("action", ["train", "default_specs"])
    def test_where_nothing_can_be_written(self, odd, spec, capfd, action, name):
        start = [action] if action == "default_specs" else [action, "-e", spec]
        assert run(*start, f"results_dir={name}") == 1
        err = capfd.readouterr().err
        assert "cannot" in err or "too long" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("name", ["experiment.yaml", "status.json"])
    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/full")])
    @pytest.mark.parametrize(("start", "folder"), [(["train", "-e", "spec.yaml"], "r/train"), (["default_specs"], "r")])
    def test_something_else_where_a_file_is_written(self, spec, tmp_path, capfd, start, folder, make, name):
        (tmp_path / folder).mkdir(parents=True)
        make(tmp_path / folder / name)
        assert run(*start, "results_dir=r") == 1
        err = capfd.readouterr().err
        assert f"{name}: it is there and no file · remove it" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("value", ["[a]", "{a: 1}", "true", "'a\0b'", "'${none}'", "'${results_dir}'", "'${'"])
    def test_no_name_of_a_folder(self, spec, tmp_path, capfd, value):
        for start in (["train", "-e", spec], ["default_specs"]):
            assert run(*start, f"results_dir={value}") == 1
            assert "results_dir · " in capfd.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.yaml"]

    def test_a_link_to_what_is_not_there_yet(self, spec, tmp_path):
        (tmp_path / "link").symlink_to("later")
        assert run("train", "-e", spec, "results_dir=link", "train.num_epochs=1") == 0
        assert (tmp_path / "later" / "train" / "status.json").is_file()


class TestSecrets:
    """None stands in what a run prints or writes, whatever its end."""

    def said(self, tmp_path, capfd):
        texts = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
        said = capfd.readouterr()
        return "\n".join([said.out, said.err, *texts[1:]])

    @pytest.mark.parametrize(
        "overrides",
        [
            *(["encryption_key=hunter2"], ["encryption_key=hunter2,tlt"], ["encryption_key=hunter2", "train.seed=x"]),
            *(["encryption_key=hunter2", "wandb.name='${encryption_key}'"], ["encryption_key.x=hunter2"]),
            *(["encryption_key=hunter2", "train.seed='a-${encryption_key}-b'"], ["encryption_key=[hunter2]"]),
            *(["dataset.path='https://bob:hunter2@host/x?sig=hunter2hunter2'"], ["train.seed='https://b:hunter2@h/'"]),
            *(
                ["dataset.path=https://bob:hunter2@host/x?sig=y"],
                ["clearml={api_key: hunter2, deep: [{token: hunter2}]}"],
            ),
            *(["wandb.name='${oc.env:FIDUCIAL_SECRET}'"], ["train.seed='${oc.env:FIDUCIAL_SECRET}'"]),
            *(["wandb.name='x-${oc.env:FIDUCIAL_OTHER}-y'"], ["hunter=1", "wandb.tags=['${oc.env:FIDUCIAL_OTHER}']"]),
        ],
    )
    def test_overrides(self, spec, tmp_path, capfd, monkeypatch, overrides):
        monkeypatch.setenv("FIDUCIAL_SECRET", "hunter2")
        monkeypatch.setenv("FIDUCIAL_OTHER", "is-hunter2")
        run("train", "-e", spec, "results_dir=r", "train.num_epochs=1", *overrides)
        run("check", "train", "--spec-only", "-e", spec, *overrides)
        assert "hunter2" not in self.said(tmp_path, capfd)

    def test_file(self, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Path("a.yaml").write_text("results_dir: r\nencryption_key: [hunter2\n")
        assert run("train", "-e", "a.yaml") == 1
        Path("a.yaml").write_text("results_dir: r\nencryption_key: 5hunter2\ntrain: {seed: 5hunter2}\n")
        assert run("train", "-e", "a.yaml") == 1
        Path("a.yaml").unlink()
        assert "hunter2" not in self.said(tmp_path, capfd)


class TestConsole:
    def test_what_differs_from_the_defaults(self, spec, capfd):
        assert run("train", "-e", spec, "results_dir=r", "train.num_epochs=1") == 0
        err, whole = capfd.readouterr().err, Path("r/train/experiment.yaml").read_text()
        assert "train:\n  num_epochs: 1\n" in err
        assert "validation_interval" not in err
        assert "validation_interval: 1" in whole


class TestHelp:
    @pytest.mark.parametrize(
        ("action", "has", "has_not"),
        [
            (
                "classify_train",
                [
                    "dataset.classify.train_dataset.csv_path",
                    "train.optim.lr",
                    "dataset.classify.batch_size",
                    "results_dir",
                ],
                ["segment", "test_dataset", "quantize", "gen_trt_engine", "evaluate.", "export."],
            ),
            (
                "segment_evaluate",
                ["dataset.segment.root_dir", "evaluate.checkpoint"],
                ["classify.", "train.", "train_split"],
            ),
            ("export", ["export.checkpoint", "export.onnx_file"], ["batch_size [8]", "csv_path", "gen_trt_engine"]),
            ("check", ["those of the action that is checked"], ["train.num_epochs"]),
        ],
    )
    def test_of_an_action(self, capfd, action, has, has_not):
        from changenet.__main__ import TASKS

        with pytest.raises(SystemExit):
            cli.main(TASKS, [action, "--help"], prog="x")
        shown = capfd.readouterr().out.partition("spec keys")[2]
        keys = [line for line in shown.splitlines() if not line.startswith("      ")]
        assert [text for text in has if text not in "\n".join(keys)] == []
        assert [text for text in has_not if text in "\n".join(keys)] == []

    def test_a_wrong_argument_shows_the_usage_alone(self, capfd):
        with pytest.raises(SystemExit):
            run("check", "bogus")
        assert len(capfd.readouterr().err.splitlines()) == 2


class TestLastLine:
    def test_at_any_level(self, spec, monkeypatch, capfd):
        monkeypatch.setenv("TAO_LOGGING_LEVEL", "ERROR")
        assert run("check", "train", "--spec-only", "-e", spec) == 0
        assert last(capfd) == "Execution status: PASS"

    @pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(3), 1), (MemoryError(), 1)])
    def test_whatever_ends_the_action(self, spec, monkeypatch, capfd, error, code):
        def fail(task, run):
            raise error

        monkeypatch.setattr("fiducial.actions.train.train", fail)
        assert run("train", "-e", spec, "results_dir=r") == code
        assert last(capfd) == "Execution status: FAIL"
        assert '"status": "FAILURE"' in Path("r/train/status.json").read_text().splitlines()[-1]

    def test_advice(self, spec, monkeypatch, capfd):
        def fail(task, run):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error.")

        monkeypatch.setattr("fiducial.actions.train.train", fail)
        assert run("train", "-e", spec, "results_dir=r") == 1
        assert "docker run --shm-size" in capfd.readouterr().err


PROBE = """
import sys, runpy
sys.argv = ["changenet", *{argv}]
try:
    runpy.run_module("changenet", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "pytorch_lightning", "hydra", "scipy", "fsspec", "onnx") if name in sys.modules]
assert not heavy, heavy
"""


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )


class TestLight:
    @pytest.mark.parametrize(
        ("argv", "text"),
        [
            (["--help"], "usage: changenet"),
            (["train", "--help"], "usage: changenet train"),
            (["check", "train", "--spec-only", "--config", "changenet/demo"], "fan_tiny_8_p4_hybrid"),
        ],
    )
    def test_answers_without_torch(self, argv, text):
        done = python(PROBE.format(argv=argv))
        assert done.returncode == 0, done.stderr
        assert text in done.stdout

    def test_imports_are_silent(self):
        done = python("import fiducial, changenet, sys; assert 'torch' not in sys.modules")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
