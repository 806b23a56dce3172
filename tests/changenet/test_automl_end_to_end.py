"""A search of a real network: its trainings, what is measured on their models, the best one on the test set."""

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import small_runs

from changenet.classify.task import CLASSIFY
from fiducial.actions.perform import perform
from fiducial.automl.measure import measure
from fiducial.automl.record import read_record


def test_a_training_that_kept_no_checkpoint_is_not_measured(tmp_path):
    small_runs.composed("classify", tmp_path)
    measure(CLASSIFY, str(tmp_path / "classify.yaml"))
    assert not list(tmp_path.rglob("measured.json"))


@pytest.mark.slow
def test_classify(tmp_path):
    tasks, _, _, _, changes = small_runs.RUNS["classify"]
    small_runs.draw("classify", tmp_path)
    small_runs.composed("classify", tmp_path)  # writes the spec
    settings = {
        "algorithm": "random",
        "n_trials": 2,
        "metric": "val_loss",
        "objectives": [{"metric": "latency", "weight": 1e-6, "scale": 1}, {"metric": "size", "scale": 1e6}],
        "automl_hyperparameters": ["train.optim.lr", "dataset.classify.augmentation_config.augment"],
    }
    tree = yaml.safe_load((tmp_path / "classify.yaml").read_text())
    tree |= {"automl": settings, "automl_policy": "on"}
    done = perform(tasks, "train", tree, [*changes, "train.num_epochs=2", f"results_dir={tmp_path / 'out'}"])
    folder = tmp_path / "out" / "automl"
    assert done.folder == folder
    record = read_record(folder)
    assert [row.state for row in record.rows] == ["finished", "finished"], [row.failure for row in record.rows]
    assert all(row.epochs == 2 for row in record.rows)
    for row in record.rows:
        assert row.kpis["latency_ms"] > 0
        assert row.kpis["parameters_m"] == pytest.approx(record.rows[0].kpis["parameters_m"])
        gain = -row.kpis["val_loss"] - 1e-6 * row.kpis["latency_ms"] - 1e-6 * row.kpis["parameters_m"]
        assert row.value == pytest.approx(gain)
    kept = list(folder.glob("trial_*/train/model_best_*.pth"))
    assert [path.parent.parent.name for path in kept] == [json.loads((folder / "best.json").read_text())["folder"]]
    assert "test_auroc" in record.evaluation or "test_acc" in record.evaluation
    assert (folder / "report.html").is_file()
    found = perform(tasks, "evaluate", tree, [*changes, f"results_dir={tmp_path / 'again'}",
                                              f"evaluate.checkpoint={tmp_path / 'out'}"])  # fmt: skip
    assert found.kpis["test_acc"] == record.evaluation.get("test_acc", found.kpis["test_acc"])
