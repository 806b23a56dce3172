"""The keys that ``--help`` shows for an action."""

import pytest

from fiducial.spec.knob import Section, knob, section
from fiducial.spec.shown import help_lines, shown_keys


class Split(Section):
    path: str = knob("", "Where it is. More.", shown=True)
    seldom: str = knob("", "Seldom set.")


class Data(Section):
    train: Split = section(Split, "To train on.", actions=("train",))
    test: Split = section(Split, "To test on.", actions=("evaluate",))
    one: Split = section(Split, "Of task one.")
    batch: int = knob(4, "Rows.", shown=True, actions=("train", "evaluate"))


class Run(Section):
    checkpoint: str | None = knob(None, "Model.", shown=True)


class Spec(Section):
    data: Data = section(Data, "Data.")
    evaluate: Run = section(Run, "Evaluation.")
    export: Run = section(Run, "Export.")


@pytest.mark.parametrize(
    ("action", "hidden", "keys"),
    [
        ("train", {"evaluate", "export"}, ["data.train.path", "data.one.path", "data.batch"]),
        ("evaluate", {"export", "one"}, ["data.test.path", "data.batch", "evaluate.checkpoint"]),
        ("export", {"evaluate", "one"}, ["export.checkpoint"]),
    ],
)
def test_keys(action, hidden, keys):
    assert [key.path for key in shown_keys(Spec, action, hidden=hidden)] == keys


def test_lines():
    lines = help_lines(Spec, "train", hidden={"evaluate", "export", "one"}).splitlines()
    assert lines[2:] == ["  data.train.path", "      Where it is", "  data.batch [4]", "      Rows"]
