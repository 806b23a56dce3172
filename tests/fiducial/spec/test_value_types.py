"""TAO's words for kinds of values, from type annotations."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fiducial.spec.knob import Section
from fiducial.spec.value_types import choices_of, item_type_of, value_type_of


@pytest.mark.parametrize(
    ("annotation", "choices", "word"),
    [
        *((str, (), "string"), (int, (), "int"), (float, (), "float"), (bool, (), "bool")),
        *((int | None, (), "int"), (Annotated[str | None, Field(min_length=1)], (), "string")),
        *((list[int], (), "list"), (list[str] | None, (), "list"), (list, (), "list")),
        *((dict[str, int] | None, (), "collection"), (Section, (), "collection"), (Section | None, (), "collection")),
        *((str, ("a", "b"), "categorical"), (int, (1, 2), "ordered_int"), (bool, (True,), "bool")),
        *((Literal["a", "b"] | None, (), "categorical"), (Literal[1, 2], (1, 2), "ordered_int")),
        *((int | str, (), "union"), (list[int] | int | None, (), "union")),
    ],
)
def test_word(annotation, choices, word):
    assert value_type_of(annotation, choices or choices_of(annotation)) == word


def test_no_word():
    with pytest.raises(TypeError, match="give the knob its value_type"):
        value_type_of(Any, ())


def test_choices():
    assert choices_of(Annotated[Literal["a", "b"] | None, Field()]) == ("a", "b")
    assert choices_of(str) == choices_of(Literal["a"] | int) == ()


def test_item_type():
    assert item_type_of(list[int] | None) is int
    assert item_type_of(int) is None
