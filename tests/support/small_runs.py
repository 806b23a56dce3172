"""A small run of each network on drawn data: its task and its spec, from the curated specs of the demos."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

import make_demo_data  # noqa: E402

from changenet.classify.task import CLASSIFY  # noqa: E402
from changenet.segment.task import SEGMENT  # noqa: E402
from fiducial.actions.perform import compose_for, known_action, read_spec  # noqa: E402
from mal.task import MAL  # noqa: E402
from mlrecog.task import ML_RECOG  # noqa: E402

RUNS = {
    "classify": (
        [CLASSIFY, SEGMENT],
        "changenet/demo",
        "data",
        ["--boards", "4", "--parts", "6"],
        ["dataset.classify.batch_size=4", "dataset.classify.workers=0"],
    ),
    "segment": (
        [CLASSIFY, SEGMENT],
        "changenet/demo-segment",
        "data-segment",
        ["--scenes", "12", "--size", "64"],
        ["dataset.segment.batch_size=2", "dataset.segment.workers=0", "train.segment.class_weights=[1.0,2.0]"],
    ),
    "mal": (
        [MAL],
        "mal/demo",
        "data-mal",
        ["--pictures", "8", "--size", "96"],
        ["dataset.num_workers_per_gpu=0", "inference.batch_size=4", "evaluate.batch_size=4"],
    ),
    "mlrecog": ([ML_RECOG], "mlrecog/demo", "data-mlrecog", [], ["dataset.workers=0", "train.batch_size=12"]),
}
"""Tasks, curated spec, folder of its data, arguments of ``make_demo_data.py``, and what differs from the demo."""


def draw(name, folder):
    """The data of a run, below ``folder``."""
    _, _, data, arguments, _ = RUNS[name]
    make_demo_data.main([name, str(Path(folder) / data), *arguments])


def composed(name, folder, *overrides, action="train"):
    """The task and the composed spec of a run whose data were drawn."""
    tasks, config, _, _, changes = RUNS[name]
    text = (ROOT / "configs" / f"{config}.yaml").read_text("utf-8").replace("demo/", f"{folder}/")
    spec = Path(folder) / f"{name}.yaml"
    spec.write_text(text, encoding="utf-8")
    source = read_spec(tasks, spec, [*changes, *overrides])
    return compose_for(tasks, known_action(tasks, action), source, {})
