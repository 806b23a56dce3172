"""Declarations of spec keys: what they say, and which of them are refused."""

from math import inf
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from fiducial.spec.knob import Key, Section, item, knob, section, walk


def key_of(annotation: Any, declared: Any) -> Key:
    """The key of a section that has one."""
    made = type("Made", (Section,), {"__annotations__": {"key": annotation}, "key": declared, "__module__": __name__})
    return next(walk(made))


class TestMetadata:
    def test_names_it_does_not_know(self):
        with pytest.raises(TypeError, match="usaul"):
            knob(1, "Help.", usaul=(0, 1))
        with pytest.raises(TypeError, match="usaul"):
            item("Help.", usaul=(0, 1))
        with pytest.raises(TypeError, match="usaul"):
            section(Section, "Help.", usaul=(0, 1))

    @pytest.mark.parametrize(
        ("meta", "found"),
        [
            ({"value_type": "number"}, "'number' is none of"),
            ({"usual": (2, 1)}, "usual ends before it begins: 2 … 1"),
            ({"schema_range": (inf, 1)}, "schema_range ends before it begins: inf … 1"),
            ({"depends_on": "a b"}, "does not name keys"),
        ],
    )
    def test_values_that_cannot_be(self, meta, found):
        with pytest.raises(ValueError, match=found):
            knob(1, "Help.", **meta)

    @pytest.mark.parametrize(
        ("annotation", "declared", "found"),
        [
            (Any, knob(1, "Help."), "give the knob its value_type"),
            (Literal["a", "b"], knob("a", "Help.", option_weights=(1,)), "1 option_weights for 2 options"),
            (int, knob(1, "Help.", items={0: item("One.")}), "items of a int; only lists have items"),
            (list[int], knob([1], "Help.", items={1: item("One.")}), "the default has no item 1"),
            (list[int] | None, knob(None, "Help.", items={0: item("One.")}), "the default has no item 0"),
            (int, 3, r"declared with knob\(\)"),
        ],
    )
    def test_declarations_that_do_not_fit_the_type(self, annotation, declared, found):
        with pytest.raises(TypeError, match=found):
            key_of(annotation, declared)

    def test_pattern(self):
        made = type(
            "Made",
            (Section,),
            {
                "__annotations__": {"key": str | None},
                "key": knob(None, "Help.", pattern="^a+$"),
                "__module__": __name__,
            },
        )
        assert made(key="aa").key == "aa"
        assert made(key=None).key is None
        with pytest.raises(ValidationError, match="pattern"):
            made(key="ab")

    def test_search(self):
        meta = {"depends_on": "> a", "parent_param": True, "option_weights": (1, 2), "options": ("x", "y")}
        key = key_of(str, knob("x", "Help.", **meta))
        assert {name: getattr(key.meta, name) for name in meta} == meta


class TestKey:
    @pytest.mark.parametrize(
        ("declared", "shown"),
        [
            (knob(1, "Help."), (None, None)),
            (knob(1, "Help.", ge=0, lt=5), (0, 5)),
            (knob(1, "Help.", gt=0, usual=(1, None)), (1, None)),
            (knob(1, "Help.", ge=0, le=9, usual=(None, 5)), (0, 5)),
            (knob(1, "Help.", ge=0, usual=(1, 2), schema_range=(0, inf)), (0, inf)),
            (knob(1, "Help.", ge=0, schema_range=(None, None)), (None, None)),
        ],
    )
    def test_range_of_the_schema(self, declared, shown):
        assert key_of(int, declared).schema_range == shown

    @pytest.mark.parametrize(
        ("annotation", "declared", "flag"),
        [
            (int, knob(1, "Help."), None),
            (int, knob(1, "Help.", automl=True), True),
            (list[int], knob([1], "Help."), False),
            (list[int], knob([1], "Help.", automl=True), True),
            (dict[str, int], knob({}, "Help."), False),
            (str, knob("", "Help.", value_type="list_2"), False),
        ],
    )
    def test_flag_of_the_search(self, annotation, declared, flag):
        assert key_of(annotation, declared).automl is flag

    def test_options(self):
        assert key_of(Literal["a", "b"], knob("a", "Help.")).options == ("a", "b")
        assert key_of(Literal["a", "b"], knob("a", "Help.", options=("a",))).options == ("a",)
        assert key_of(str, knob("a", "Help.", options=("a",), value_type="string")).value_type == "string"

    def test_items(self):
        declared = knob([1, 2], "Help.", template=[3, 4], items={1: item("Second.", ge=0, le=9, automl=True)})
        key = key_of(list[int], declared)
        (second,) = key.items()
        assert (second.path, second.default, second.meta.template, second.meta.help) == ("key[1]", 2, 4, "Second.")
        assert (second.value_type, second.schema_range, second.automl) == ("int", (0, 9), True)
