"""Devices from the spec, torchrun, TAO's variables: with an environment and GPUs made up by the test."""

import os
import socket
import tracemalloc
from types import SimpleNamespace

import pytest

from fiducial.errors import SpecError
from fiducial.run.devices import Devices, resolve_devices, single
from fiducial.run.ranks import global_rank, under_torchrun


def section(num=1, ids=(0,), nodes=1):
    return SimpleNamespace(num_gpus=num, gpu_ids=list(ids), num_nodes=nodes)


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    pretend(4)
    return pretend


@pytest.fixture
def environ(monkeypatch):
    """Sets variables; whatever the code changes is undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return lambda **values: os.environ.update({name: str(value) for name, value in values.items()})


class TestSpec:
    @pytest.mark.parametrize(
        ("num", "ids", "used"), [(1, [0], [0]), (2, [1, 3], [1, 3]), (3, [0], [0, 1, 2]), (1, [2, 3], [2, 3])]
    )
    def test_larger_wins(self, gpus, num, ids, used):
        assert resolve_devices(section(num, ids), "train") == Devices("gpu", used, 1)

    def test_cpu(self, gpus, caplog):
        gpus(0)
        assert resolve_devices(section(2, [0, 1]), "train") == Devices("cpu", 1, 1)

    def test_id_too_high(self, gpus):
        with pytest.raises(SpecError, match=r"train\.gpu_ids · asks for GPU 4, but there are 4"):
            resolve_devices(section(1, [4]), "train")

    @pytest.mark.parametrize("count", [0, 4])
    def test_absurd_counts_take_no_memory(self, gpus, count):
        gpus(count)
        tracemalloc.start()
        try:
            if count:
                with pytest.raises(SpecError, match="asks for GPU 1999999"):
                    resolve_devices(section(2_000_000), "train")
            else:
                resolve_devices(section(20_000_000), "train")
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_single(self):
        assert single(Devices("gpu", [3, 4], 2)) == Devices("gpu", [3], 1)
        assert single(Devices("cpu", 4, 2)) == Devices("cpu", 1, 1)
        assert Devices("gpu", [3, 4], 2).num_processes == 4


class TestVisible:
    def test_wins(self, gpus, environ):
        environ(TAO_VISIBLE_DEVICES="1, 2")
        assert resolve_devices(section(), "train").devices == [1, 2]

    def test_nonsense(self, gpus, environ):
        environ(TAO_VISIBLE_DEVICES="all")
        with pytest.raises(SpecError, match="TAO_VISIBLE_DEVICES · found 'all'"):
            resolve_devices(section(), "train")


class TestTorchrun:
    def test_its_processes(self, gpus, environ):
        environ(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE=2, WORLD_SIZE=4, RANK=3, LOCAL_RANK=1, GROUP_RANK=1)
        assert under_torchrun()
        assert global_rank() == 3
        assert resolve_devices(section(1), "train") == Devices("gpu", 2, 2)
        gpus(0)
        assert resolve_devices(section(1), "train") == Devices("cpu", 2, 2)
        gpus(1)
        with pytest.raises(SpecError, match=r"2 processes for 1 GPU"):
            resolve_devices(section(1), "train")


class TestNodes:
    def test_counts_nodes(self, gpus, environ):
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        environ(WORLD_SIZE=2, RANK=0, MASTER_ADDR="localhost", MASTER_PORT=port, NUM_GPU_PER_NODE=3)
        assert resolve_devices(section(), "train") == Devices("gpu", [0, 1, 2], 2)
        assert "WORLD_SIZE" not in os.environ
        assert os.environ["NODE_RANK"] == "0"
        environ(WORLD_SIZE=6, LOCAL_RANK=1)  # a process that Lightning starts
        assert resolve_devices(section(), "train") == Devices("gpu", [0, 1, 2], 2)

    def test_one_node_takes_all_its_gpus(self, gpus, environ):
        environ(WORLD_SIZE=1)
        assert resolve_devices(section(), "train") == Devices("gpu", [0, 1, 2, 3], 1)

    def test_everything_wrong_at_once(self, gpus, environ):
        environ(WORLD_SIZE=2, NODE_RANK=2, MASTER_PORT=80, NUM_GPU_PER_NODE=5)
        with pytest.raises(SpecError) as caught:
            resolve_devices(section(), "train")
        where = [problem.where for problem in caught.value.problems]
        assert where == ["NUM_GPU_PER_NODE", "NODE_RANK", "MASTER_PORT", "MASTER_ADDR"]

    def test_port_in_use(self, gpus, environ):
        with socket.socket() as busy:
            busy.bind(("", 0))
            busy.listen()
            environ(WORLD_SIZE=2, NODE_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=busy.getsockname()[1])
            with pytest.raises(SpecError, match=r"MASTER_PORT · .* cannot be used"):
                resolve_devices(section(), "train")

    def test_processes_of_lightning_alone(self, gpus, environ):
        environ(WORLD_SIZE=2, LOCAL_RANK=1, NODE_RANK=0)
        assert resolve_devices(section(2, [0, 1]), "train") == Devices("gpu", [0, 1], 1)


class TestRank:
    @pytest.mark.parametrize(
        ("variables", "rank"),
        [
            ({}, 0),
            ({"LOCAL_RANK": 1}, 1),
            ({"WORLD_SIZE": 2, "RANK": 1}, 1),
            ({"NODE_RANK": 1, "LOCAL_RANK": 0}, 1),
            ({"SLURM_PROCID": 5}, 5),
        ],
    )
    def test_from_the_environment(self, environ, variables, rank):
        os.environ.pop("SLURM_PROCID", None)
        environ(**variables)
        assert global_rank() == rank
