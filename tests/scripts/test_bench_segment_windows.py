"""The benchmark of windows runs, on equal batches."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import segment_windows

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def test_both_kinds_of_storage_run(capsys, monkeypatch):
    monkeypatch.setattr(segment_windows, "TARGET", 0.0)
    assert segment_windows.main(["--quick", "--cpu"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\d\.\d\dx", printed)) == 4


def test_other_batches_are_noticed(tmp_path, monkeypatch):
    def spoiled(data):
        for batch in segment_windows.WindowBatches(data, segment_windows.BATCH):
            yield batch | {"A": batch["A"] + 1}

    monkeypatch.setattr(segment_windows, "anew", spoiled)
    with pytest.raises(AssertionError, match="other batches"):
        segment_windows.run(tmp_path, "tiles", side=256, window=128, turns=1, meter=segment_windows.measure)
