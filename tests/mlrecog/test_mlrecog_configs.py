"""The specs in ``configs/mlrecog``."""

from pathlib import Path

import pytest

from fiducial.spec.compose import compose
from fiducial.spec.source import read_source
from mlrecog.checks import check_spec
from mlrecog.config import ExperimentSpec

SPECS = sorted((Path(__file__).parents[2] / "configs" / "mlrecog").glob("*.yaml"))


def test_the_specs_that_are_told_of_are_there():
    assert {"demo.yaml", "packs.yaml", "retail.yaml"} <= {path.name for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
@pytest.mark.parametrize("action", ["train", "evaluate", "inference", "export", "gallery"])
def test_no_problem_and_no_warning(path, action):
    composed = compose(ExperimentSpec, read_source(ExperimentSpec, path, []), action=action)
    assert list(check_spec(composed.spec, action)) == []
