"""A step waits for its device nowhere but where it must: training, validation and inference on a GPU that is not there.

Any question for a value of a tensor on the GPU, and any copy that is not asynchronous, is a wait
(``support/fake_gpu.py``); those that belong to the nature of a step are named here, with their number in one batch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "support"))

import small_runs

SUPPORT = Path(__file__).parent / "support"

NORM = "fiducial/training/module.py TrainingModule._clip_and_step: a value"
MINER = "mlrecog/losses.py TripletObjective.__call__: a shape"
MASKS = "changenet/segment/evaluator.py SegmentEvaluator.update: to the host"
LOOK = "changenet/segment/evaluator.py SegmentEvaluator._look: to the host"
BOXES = "mal/evaluator.py BoxEvaluator.update: to the host"
EMBEDDINGS = "mlrecog/evaluator.py RecogEvaluator.update: to the host"

EXPECTED = {
    "classify": {"train": {}, "val": {}, "infer": {}},
    # a mask of each picture is written
    "segment": {"train": {}, "val": {}, "infer": {LOOK: 1, MASKS: 1}},
    # whether the gradient is finite decides about the step; masks are made, and measured, on the CPU. In inference
    # student and teacher are compared
    "mal": {"train": {NORM: 1}, "val": {BOXES: 1}, "infer": {BOXES: 2}},
    # the triplets that are kept are those that are hard; torch: the backward pass of the mean over losses above 0
    "mlrecog": {"train": {NORM: 1, MINER: 6, "torch: a shape": 1}, "val": {}, "infer": {EMBEDDINGS: 1}},
}


@pytest.fixture(scope="module")
def waits(tmp_path_factory):
    """By network and stage, how often each place waits in a batch."""
    folder = tmp_path_factory.mktemp("data")
    for name in EXPECTED:
        small_runs.draw(name, folder)
    command = [sys.executable, str(SUPPORT / "fake_gpu.py"), *EXPECTED, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parents[1]), "FIDUCIAL_MEASURE": "off"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "val", "infer"])
@pytest.mark.parametrize("name", EXPECTED)
def test_only_these_places_wait(waits, name, stage):
    found = waits[name][stage]
    batches = found.pop("batches")
    assert {place: number / batches for place, number in found.items()} == EXPECTED[name][stage]
