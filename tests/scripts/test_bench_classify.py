"""The classify benchmark runs, and both ways of every comparison give the same."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import classify
import plain
from measure import Ratio, Way, compare, measure, measure_program, megabytes_of_tensors


@pytest.fixture(autouse=True)
def one_thread():
    """The benchmark sets the number of threads for its whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_compare_takes_turns_and_reports_the_median_ratio(capsys):
    order = []
    turns = iter([classify.Turn(seconds, 0.0) for seconds in (4.0, 1.0, 6.0, 2.0, 9.0, 9.0)])

    def meter(run):
        run()
        return next(turns)

    ratio = compare(
        Way("slow", lambda: order.append("slow")),
        Way("fast", lambda: order.append("fast")),
        turns=3,
        target=2.5,
        meter=meter,
    )
    assert order == ["slow", "fast"] * 3
    assert ratio.value == 3.0  # of 4, 3 and 1
    assert ratio.met
    assert "3.00x  (target 2.5: met)" in capsys.readouterr().out
    assert not Ratio(2.4, 2.5).met
    assert Ratio(0.1, None).met


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read on Linux only")
def test_memory_is_the_peak_beyond_what_was_there():
    def take():
        block = bytearray(60_000_000)
        block[::4096] = b"x" * len(block[::4096])
        del block
        time.sleep(0.01)

    turn = measure(take)
    assert 50 < turn.megabytes < 80
    assert turn.seconds >= 0.01
    program = measure_program([sys.executable, "-c", "block = b'x' * 100_000_000; import time; time.sleep(0.1)"])
    assert 95 < program.megabytes < 160


def test_memory_of_tensors_is_the_peak_beyond_what_was_there():
    held = torch.zeros(1000, 1000)

    def run():
        parts = [held + 1, held + 2]  # 4 MB each
        del parts[0]
        return parts[0] * 2

    assert megabytes_of_tensors(run) == pytest.approx(8, abs=0.01)


def test_a_program_that_fails_is_not_measured():
    with pytest.raises(RuntimeError, match="no such thing"):
        measure_program([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_explicit_attention_is_attention():
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        plain.explicit_attention(query, key, value), F.scaled_dot_product_attention(query, key, value)
    )


@pytest.mark.slow
def test_every_part_but_start_up_runs(capsys):
    before = F.scaled_dot_product_attention
    assert classify.main(["--quick", "--only", "abcd", "--threads", "1", "--workers", "0"]) == 0
    assert F.scaled_dot_product_attention is before
    printed = capsys.readouterr().out
    assert len(re.findall(r"\d\.\d\dx", printed)) == 4
    # 2 goldens under 4 lights are read once for 6 rows
    assert "golden cache: 16 of 24 pictures were there (67%)" in printed
    assert "largest difference" in printed


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="starts programs")
def test_start_up_runs(capsys):
    assert classify.main(["--quick", "--only", "e"]) == 0
    assert "up to its first batch" in capsys.readouterr().out


@pytest.mark.slow
def test_radio_runs(capsys):
    assert classify.main(["--quick", "--only", "f", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("evaluate:") == 2
