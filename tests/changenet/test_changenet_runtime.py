"""What the heavy halves of both tasks decide alike."""

import pytest

from changenet.classify.task import CLASSIFY
from changenet.config import ExperimentSpec
from changenet.segment.task import SEGMENT
from fiducial.deploy.card import ModelCard


def spec_of(task, **tree):
    return ExperimentSpec.model_validate({"task": task.name, **tree})


class TestFormulation:
    @pytest.mark.parametrize(
        ("compat", "export", "expected"),
        [
            ("off", {}, "gather"),
            ("off", {"deformable_attention": "grid_sample"}, "grid_sample"),
            ("tao", {}, "plugin"),
            ("tao", {"deformable_attention": "gather"}, "gather"),
        ],
    )
    def test_of_the_spec(self, compat, export, expected):
        given = frozenset(f"export.{name}" for name in export)
        runtime = SEGMENT.runtime(spec_of(SEGMENT, compat=compat, export=export))
        assert runtime.formulation(given) == expected


class TestPreprocessing:
    """One rule: what the model was trained with counts, whatever the spec says."""

    @pytest.mark.parametrize("task", [CLASSIFY, SEGMENT], ids=lambda task: task.name)
    def test_follows_the_card(self, task):
        runtime = task.runtime(spec_of(task))
        mine, trained = runtime.normalization.mean, (0.1, 0.2, 0.3)
        assert mine != trained
        runtime.adopt(ModelCard(mean=trained, std=(0.5, 0.6, 0.7)))
        assert (runtime.normalization.mean, runtime.normalization.std) == (trained, (0.5, 0.6, 0.7))
        assert runtime.card().mean == trained

    @pytest.mark.parametrize("task", [CLASSIFY, SEGMENT], ids=lambda task: task.name)
    def test_without_a_card_the_spec_counts(self, task):
        runtime = task.runtime(spec_of(task))
        before = runtime.normalization
        runtime.adopt(ModelCard())
        assert runtime.normalization == before
