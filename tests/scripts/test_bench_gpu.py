"""The GPU benchmark runs on the CPU, whole, and keeps to its minutes."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import gpu


@pytest.fixture
def no_kernels(monkeypatch):
    """Deformable attention has a program of its own, which may compile its kernels."""
    asked = []
    monkeypatch.setattr(gpu.ms_deform_attn, "main", asked.append)
    return asked


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is not quick: it compiles")
def test_every_part_runs(no_kernels, capsys):
    assert gpu.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^\((\w)\)", said, re.MULTILINE) == ["a", "d", "c", "b"]
    assert no_kernels[0][:2] == ["--device", "cpu"]
    for name in gpu.STEPS:
        rows = [line for line in said.splitlines() if line.strip().startswith(f"{name} ")]
        forms = [re.split(r" {2,}", row.strip())[1] for row in rows]
        assert forms == ["bf16", "fp32", "tf32", "bf16", "not compiled"]
    assert re.search(r"0 processes +\d+\.\d pairs/s", said)
    assert "left out" not in said


def test_nothing_begins_after_the_minutes(no_kernels, capsys):
    assert gpu.main(["--quick", "--minutes", "0"]) == 0
    assert "left out after 0 minutes: a, d, c, b" in capsys.readouterr().out
    assert not no_kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_must_be_quick(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--quick" in capsys.readouterr().err
