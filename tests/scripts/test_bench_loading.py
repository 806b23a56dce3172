"""The benchmark of loading runs, on equal batches."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import loading


@pytest.mark.parametrize("network", list(loading.CASES))
def test_every_network_runs(network, capsys, monkeypatch):
    monkeypatch.setattr(loading.kept, "SETTLED_NS", 0)
    assert loading.main(["--quick", "--cpu", "--only", network]) == 0
    assert capsys.readouterr().out.count("x") >= 2


def test_other_batches_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(loading.kept, "SETTLED_NS", 0)
    case = loading.CASES["mlrecog"](tmp_path, 4)

    def spoiled(shared):
        data = case.dataset(shared)
        return list(reversed([data[row] for row in range(4)])) if shared else data

    with pytest.raises(AssertionError, match="other batches"):
        loading.run(replace(case, dataset=spoiled), workers=0, turns=1, meter=loading.measure)
