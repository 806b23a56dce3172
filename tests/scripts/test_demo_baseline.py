"""The difference after registration: blind to a stage shift, not to a defect; and its AUROC."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import demo_baseline


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(path)
    return path


@pytest.fixture
def picture() -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal((48, 48, 3)), (1, 1, 0))
    return 0.5 + smooth * (0.15 / smooth.std())


class TestRegisteredDifferenceScore:
    def test_hand_computed(self, tmp_path, picture):
        """Two lights: 0.1 brighter under one, the same under the other."""
        picture = picture.clip(0.05, 0.85)
        same, brighter = save(tmp_path / "same.png", picture), save(tmp_path / "brighter.png", picture + 0.1)
        assert demo_baseline.registered_difference_score([same, brighter], [same, same]) == pytest.approx(
            0.05, abs=1e-3
        )

    def test_a_stage_shift_is_taken_out(self, tmp_path, picture):
        golden, moved = (
            save(tmp_path / "golden.png", picture),
            save(tmp_path / "moved.png", np.roll(picture, (1, -2), (0, 1))),
        )
        assert demo_baseline.registered_difference_score([moved], [golden]) == pytest.approx(0, abs=1e-6)

    def test_a_far_shift_is_not_believed(self, tmp_path, picture):
        moved = np.roll(picture, 9, 0)
        paths = save(tmp_path / "golden.png", picture), save(tmp_path / "moved.png", moved)
        plain = np.abs(moved - picture)[4:-4, 4:-4].mean()
        assert demo_baseline.registered_difference_score(paths[1:], paths[:1]) == pytest.approx(plain, abs=0.01)

    def test_one_golden_per_light(self, tmp_path, picture):
        path = save(tmp_path / "a.png", picture)
        with pytest.raises(ValueError, match="shorter"):
            demo_baseline.registered_difference_score([path, path], [path])


class TestAuroc:
    def test_hand_computed(self):  # defects 0.9 and 0.4 against good 0.1, 0.4, 0.5: 3 wins, then a win, a tie, a loss
        scores, labels = np.array([0.1, 0.9, 0.4, 0.4, 0.5]), np.array([0, 1, 0, 1, 0])
        assert demo_baseline.auroc(scores, labels) == pytest.approx(4.5 / 6)


def test_prints_the_auroc_of_a_csv(tmp_path, monkeypatch, capsys, picture):
    rows = [("good", "PASS", picture + 0.02), ("bad", "NO_PASS", 1 - picture)]
    save(tmp_path / "golden" / "R1_White.png", picture)
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input_path", "golden_path", "label", "object_name"])
        for name, label, image in rows:
            save(tmp_path / name / "R1_White.png", image)
            writer.writerow([name, "golden", label, "R1"])
    monkeypatch.setattr("sys.argv", ["demo_baseline", str(tmp_path / "test.csv"), str(tmp_path), "--lights", "White"])
    demo_baseline.main()
    assert "AUROC 1.000 over 2 rows, 1 defects" in capsys.readouterr().out
