"""The benchmark of runtimes: what it calls met and missed, and what it says without a trained demo."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import deploy


def row(metric=0.9, one=1.0):
    return {"metric": metric, "one": one}


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        ({"eager": row(), "onnx": row(one=0.6)}, []),
        ({"eager": row(), "onnx": row(one=0.7)}, ["the fastest runtime is 1.43 times as fast as torch (target 1.5)"]),
        ({"eager": row(), "onnx": row(0.9002, 0.5)}, ["onnx: the metric moved by +0.0002"]),
        ({"eager": row(), "onnx": row(one=0.5), "onnx int8": row(0.895, 0.38)}, []),
        ({"eager": row(), "onnx": row(one=0.5), "onnx int8": row(0.95, 0.3)}, []),
        (
            {"eager": row(), "onnx": row(one=0.5), "onnx int8": row(0.88, 0.4)},
            ["onnx int8: the metric moved by -0.0200", "int8 is at most 1.25 times as fast as float32 (target 1.3)"],
        ),
        ({"onnx": row()}, []),
    ],
)
def test_targets(found, missed, capsys):
    assert deploy._met(found) == (missed == [])
    assert [line.strip().removeprefix("MISSED ") for line in capsys.readouterr().out.splitlines()] == missed


def test_without_a_trained_demo(tmp_path):
    model = deploy.Model("mal", tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="no training of the mal demo"):
        deploy.prepare(model, ["eager"])


def test_the_spec_is_the_curated_one_in_another_folder(tmp_path):
    text = deploy.Model("classify", Path("elsewhere"), tmp_path).spec.read_text("utf-8")
    assert "results_dir: elsewhere/results" in text
    assert "demo/" not in text
