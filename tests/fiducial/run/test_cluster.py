"""``inference`` on a Ray cluster of this machine: the files of a local run, byte for byte, also when a worker dies."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
import torch

from fiducial.actions.perform import run_action
from fiducial.actions.preflight import check_rules
from fiducial.actions.registry import STANDARD
from fiducial.errors import MachineError, UserError
from fiducial.run import cluster

sys.path.append(str(Path(__file__).parents[2] / "support"))

import small_runs

INFERENCE = next(action for action in STANDARD if action.name == "inference")
WORKERS = 2
BATCHES = {
    "classify": ["inference.batch_size=2", "model.backbone.pretrained_backbone_path=null"],
    "segment": [
        *("inference.batch_size=3", "dataset.segment.predict_split=train", "dataset.segment.img_size=32"),
        "dataset.segment.windows.enable=true",
    ],
    "mal": ["inference.batch_size=2"],
    "mlrecog": ["inference.batch_size=16"],
}


@pytest.fixture(scope="module", autouse=True)
def local_cluster(tmp_path_factory):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=sorted(BATCHES))
def job(request, tmp_path_factory):
    """A network's name, the folder of its data, and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    small_runs.draw(request.param, folder)
    task, composed = small_runs.composed(request.param, folder, action="train")
    torch.manual_seed(0)
    module = task.runtime(composed.spec).module(pretrained=False)
    path = folder / "model.pth"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": {}}, path)
    return request.param, folder, path


def infer(job, results, *overrides):
    name, folder, checkpoint = job
    start = [f"inference.checkpoint={checkpoint}", f"results_dir={results}", *BATCHES[name], *overrides]
    task, composed = small_runs.composed(name, folder, *start, action="inference")
    run_action(task, INFERENCE, composed)
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(Path(results).rglob("*"))
        if path.is_file() and path.name not in ("experiment.yaml", "status.json", "report.html", "metrics.json")
    }


def workers():
    """The processes of Ray that hold a model."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others of Ray may end meanwhile
            found += [process] * ("Worker" in "".join(process.cmdline()[:1]))
    return found


def test_files_are_those_of_a_local_run_also_when_a_worker_is_killed(job, tmp_path, monkeypatch):
    """Of every task; classify has two workers, one of which dies on the way."""
    here = infer(job, tmp_path / "local")
    assert here
    taken, killed = [], []
    unpacked = cluster._unpacked

    def take(content):
        if job[0] == "classify" and not taken:
            killed.append(workers()[0])
            killed[0].send_signal(signal.SIGKILL)
        taken.append(content)
        return unpacked(content)

    monkeypatch.setattr(cluster, "_unpacked", take)
    number = WORKERS if job[0] == "classify" else 1
    assert infer(job, tmp_path / "ray", "inference.engine=ray", f"inference.ray_workers={number}") == here
    assert len(taken) >= 3
    if killed:
        psutil.wait_procs(killed, timeout=30)
        assert not killed[0].is_running() or killed[0].status() == psutil.STATUS_ZOMBIE


def test_workers_of_a_cluster_of_our_own_are_as_urgent_as_the_run():
    code = (
        "import os; from fiducial.run.cluster import _connected\n"
        "with _connected('local') as ray: print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split()[-1:] == ["0"], done.stderr


class TestBadInput:
    def rules(self, tmp_path, *overrides):
        task, composed = small_runs.composed(
            "classify", tmp_path, "inference.engine=ray", *overrides, action="inference"
        )
        return [str(problem) for problem in check_rules(task, composed.spec, INFERENCE)]

    def test_under_torchrun(self, tmp_path, monkeypatch):
        assert not [problem for problem in self.rules(tmp_path) if "inference.engine" in problem]
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        assert any("inference.engine · ray, under torchrun" in problem for problem in self.rules(tmp_path))

    def test_without_ray(self, tmp_path, monkeypatch):
        monkeypatch.setattr("fiducial.actions.preflight.find_spec", lambda name: None)
        assert any("pip install 'fiducial[ray]'" in problem for problem in self.rules(tmp_path))

    def test_no_cluster(self, monkeypatch):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)

        def refuse(**_):
            raise ConnectionError("Could not find any running Ray instance.")

        monkeypatch.setattr(ray, "init", refuse)
        said = r"no cluster at 'auto': Could not .* `ray start --head`"
        with pytest.raises(MachineError, match=said), cluster._connected("auto"):
            pass

    def test_what_a_worker_cannot_do_is_said(self, tmp_path):
        small_runs.draw("classify", tmp_path)
        start = (*BATCHES["classify"], "inference.ray_workers=1")
        task, composed = small_runs.composed("classify", tmp_path, *start, action="inference")
        runtime = task.runtime(composed.spec)
        missing = cluster.ClusterJob.of(task, composed.spec, tmp_path / "none.pth")
        with pytest.raises(UserError, match=r"none\.pth"):
            cluster.run_on_cluster(missing, runtime.loaders("infer"), runtime.evaluator("infer"))
