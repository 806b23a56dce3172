"""Where trainings run side by side."""

import pytest
from quick_search import spec_of

from fiducial.automl.places import places_of


@pytest.fixture
def gpus(monkeypatch):
    def has(*names):
        monkeypatch.delenv("TAO_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))

    return has


def shown(places):
    return [(place.env.get("CUDA_VISIBLE_DEVICES"), place.gpus) for place in places]


def test_one_at_a_time_uses_the_specs_devices(gpus):
    gpus("0", "1", "2")
    assert shown(places_of(spec_of({}), 1)) == [(None, None)]


def test_each_has_gpus_of_its_own(gpus):
    gpus("4", "5", "6", "7", "8")
    assert shown(places_of(spec_of({}), None)) == [("4", 1), ("5", 1), ("6", 1), ("7", 1)]
    two = spec_of({"train": {"num_gpus": 2, "gpu_ids": [0, 1]}})
    assert shown(places_of(two, None)) == [("4,5", 2), ("6,7", 2)]
    assert shown(places_of(two, 3)) == [("4,5", 2), ("6,7", 2), ("4,5", 2)]


def test_without_gpus_the_cores_are_shared(gpus, monkeypatch):
    gpus()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert len(places_of(spec_of({}), None)) == 1
    assert [dict(place.env) for place in places_of(spec_of({}), 4)] == [{"OMP_NUM_THREADS": "2"}] * 4


def test_the_listing_counts_where_nothing_is_said(monkeypatch, tmp_path):
    from fiducial.automl.places import visible_gpus

    for name in ("TAO_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: a)'\necho 'GPU 1: H200 (UUID: b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == []
