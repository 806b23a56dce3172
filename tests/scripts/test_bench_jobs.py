"""The benchmark of whole jobs runs, and its scripts give what the project's commands give."""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import jobs


class TestAssertEqual:
    def test_numbers(self, tmp_path):
        (tmp_path / "numbers.json").write_text(json.dumps({"test_acc": 75.0}))
        for found, same in ((75.01, True), (76, False)):
            lines = [{"status": "STARTED"}, {"status": "SUCCESS", "kpi": {"test_acc": found, "other": 1}}]
            (tmp_path / "status.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
            with nullcontext() if same else pytest.raises(AssertionError, match="Mismatched elements: 1 / 1"):
                jobs.assert_equal("segment", "evaluate", tmp_path, tmp_path)

    def write_scores(self, folder, scores):
        folder.mkdir()
        (folder / "inference.csv").write_text("siamese_score\n" + "\n".join(map(str, scores)) + "\n")
        return folder

    def test_scores(self, tmp_path):
        ours = self.write_scores(tmp_path / "a", [0.1, 0.9])
        jobs.assert_equal("classify", "inference", self.write_scores(tmp_path / "b", [0.1, 0.90001]), ours)
        with pytest.raises(AssertionError, match="Mismatched elements: 1 / 2"):
            jobs.assert_equal("classify", "inference", self.write_scores(tmp_path / "c", [0.1, 0.91]), ours)

    @pytest.mark.parametrize(("pixels", "same"), [(0, True), (20, False)])
    def test_masks(self, tmp_path, pixels, same):
        for folder, changed in (("plain", 0), ("ours/masks", pixels)):
            (tmp_path / folder).mkdir(parents=True)
            mask = np.zeros(10_000, np.uint8)
            mask[: 100 + changed] = 255
            Image.fromarray(mask.reshape(100, 100)).save(tmp_path / folder / "scene.png")
        if same:
            jobs.assert_equal("segment", "inference", tmp_path / "plain", tmp_path / "ours")
        else:
            with pytest.raises(AssertionError, match=r"scene.png: 0\.2% of the pixels differ"):
                jobs.assert_equal("segment", "inference", tmp_path / "plain", tmp_path / "ours")

    @pytest.mark.parametrize(("distance", "same"), [(0.5, True), (0.6, False)])
    def test_neighbours(self, tmp_path, distance, same):
        for folder, far in (("plain", 0.5), ("ours", distance)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "result.csv").write_text(f"a.jpg,\"['x', 'y']\",\"[0.25, {far}]\"\n")
        if same:
            jobs.assert_equal("mlrecog", "inference", tmp_path / "plain", tmp_path / "ours")
        else:
            with pytest.raises(AssertionError, match="Mismatched elements: 1 / 2"):
                jobs.assert_equal("mlrecog", "inference", tmp_path / "plain", tmp_path / "ours")


def test_a_job_that_fails_is_not_measured(tmp_path):
    with pytest.raises(RuntimeError, match="plain evaluate failed"):
        jobs.seconds("plain", "segment", "evaluate", tmp_path / "missing.yaml", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", jobs.CASES)
def test_it_runs(capsys, monkeypatch, name):
    """In this process: what is measured is the same, and torch is imported already."""

    def seconds(way, name, action, spec, threads):
        assert jobs.run(way, name, action, str(spec)) == 0
        return 1.0

    monkeypatch.setattr(jobs, "seconds", seconds)
    assert jobs.main(["--quick", "--threads", "1", "--only", name]) == 0
    said = capsys.readouterr().out
    assert re.findall(rf"^{name}, (\w+)$", said, re.MULTILINE) == ["train", "evaluate", "inference"]
    assert len(re.findall(r"1\.00x", said)) == 3
