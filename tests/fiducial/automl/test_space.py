"""Which keys are searched, and where."""

import math

import pytest
from quick_search import prepared, spec_of
from quick_task import QUICK

from fiducial.automl.dimension import Relation
from fiducial.automl.space import search_space, value_at, with_values
from fiducial.errors import SpecError
from fiducial.spec.knob import plain


def space(train=None, **settings):
    return search_space(QUICK, spec_of({"train": train or {}, "automl": settings}))


def ranges(found):
    return {d.path.removeprefix("train."): d.range_text() for d in found.dimensions}


def problems(train=None, **settings):
    with pytest.raises(SpecError) as caught:
        space(train, **settings)
    return [str(problem) for problem in caught.value.problems]


class TestChosen:
    def test_by_the_knobs_without_what_has_no_effect(self):
        found = space()
        assert ranges(found) == {
            "lr": "0.01 … 1, by orders of magnitude",
            "width": "1 … 64",
            "flip": "false, true",
        }
        assert found.left_out == {"train.unused": "kind is b"}
        assert "unused" in ranges(space({"kind": "a"}))

    def test_by_name(self):
        assert list(ranges(space(automl_hyperparameters=["train.kind", "train.lr"]))) == ["kind", "lr"]
        assert ranges(space(automl_hyperparameters=["train.weights[1]"])) == {
            "weights[1]": "1 … 100, by orders of magnitude"
        }

    def test_pins_pin(self):
        assert list(ranges(space(pinned=["train.lr"]))) == ["width", "flip"]
        assert space(pinned=["train.lr"]).left_out["train.lr"] == "pinned"

    def test_a_key_that_is_marked_needs_to_be_meant(self):
        (problem,) = problems(automl_hyperparameters=["train.closed"])
        assert "override_automl_disabled_params" in problem
        wanted = space(automl_hyperparameters=["train.closed"], override_automl_disabled_params=True)
        assert ranges(wanted) == {"closed": "0 … 9"}

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"automl_hyperparameters": ["train.lrr"]}, "unknown key train.lrr · name a key (did you mean train.lr?)"),
            ({"automl_hyperparameters": ["lr"]}, "did you mean train.lr?"),
            ({"automl_hyperparameters": ["num_gpus"]}, "unknown key num_gpus · write train.num_gpus in full"),
            (
                {"custom_param_ranges": {"seed": {"valid_min": 1}}},
                "custom_param_ranges.seed · unknown key · write train.seed in full",
            ),
            ({"pinned": ["seed"]}, "automl.pinned · unknown key seed · write train.seed in full"),
            ({"automl_hyperparameters": ["train.unused"]}, "train.unused is not searched: kind is b"),
            ({"automl_hyperparameters": ["train.num_epochs"]}, "train.num_epochs is set by the search"),
            ({"automl_hyperparameters": ["train.checkpointer.save_top_k"]}, "save_top_k is set by the search"),
            ({"automl_hyperparameters": ["train.validation_interval"]}, "validation_interval is set by the search"),
            ({"automl_hyperparameters": ["encryption_key"]}, "encryption_key is set by the search, or no matter of"),
            ({"automl_hyperparameters": ["evaluate.batch_size"]}, "evaluate.batch_size is of another action"),
            ({"automl_hyperparameters": []}, "nothing to search"),
            ({"pinned": ["train"]}, "nothing to search (train.lr: pinned"),
            ({"pinned": ["train.wdth"]}, "did you mean train.width?"),
            ({"automl_hyperparameters": ["dataset.path"]}, "a string, which has no range to search"),
        ],
    )
    def test_what_cannot_be(self, settings, told):
        assert any(told in problem for problem in problems(**settings)), problems(**settings)


class TestRanges:
    def custom(self, key="train.lr", train=None, **entry):
        found = space(train, automl_hyperparameters=[key], custom_param_ranges={key: entry})
        return next(d for d in found.dimensions if d.path == key)

    def wrong(self, key="train.lr", **entry):
        return problems(custom_param_ranges={key: entry})

    def test_the_specs_value_is_inside(self):
        found = space({"lr": 3.0, "width": 64, "momentum": 0.5}, automl_hyperparameters=["train.lr", "train.momentum"])
        assert ranges(found) == {"lr": "0.3 … 30, by orders of magnitude", "momentum": "0.5 … 0.99"}

    def test_ends_and_options(self):
        assert self.custom(valid_min=0.001, valid_max=0.1).range_text() == "0.001 … 0.1, by orders of magnitude"
        assert self.custom(valid_max=0.5).range_text() == "0.01 … 0.5, by orders of magnitude"
        assert self.custom(valid_options=[0.1, 0.3]).options == (0.1, 0.3)
        assert self.custom("train.kind", valid_options=["a", "c"]).options == ("a", "c")
        lists = self.custom("train.weights", valid_options=[[1, 2], [1, 5]])
        assert lists.value(lists.param([1, 5])) == [1, 5]

    def test_nested_as_overrides_write_it(self):
        spec = spec_of({}, "automl.custom_param_ranges.train.lr.valid_max=0.2")
        assert ranges(search_space(QUICK, spec))["lr"] == "0.01 … 0.2, by orders of magnitude"

    def test_weights(self):
        found = self.custom("train.kind", valid_options=["a", "b", "c"], option_weights=[1, 2, 5])
        drawn = [found.value(found.at(place / 800)) for place in range(800)]
        assert [drawn.count(kind) for kind in "abc"] == [100, 200, 500]
        assert [found.value(found.param(kind)) for kind in "abc"] == ["a", "b", "c"]

    def test_conditions(self):
        multiple = self.custom("train.width", math_cond="/ 8")
        assert (multiple.low, multiple.high, multiple.step) == (8, 64, 8)
        assert self.custom("train.width", math_cond="^ 2", valid_max=40).options == (1, 2, 4, 8, 16, 32)
        assert self.custom("train.width", math_cond="^ 1e300").options == (1,)
        assert self.custom("train.width", math_cond="> 4").low == 5
        assert 0 < self.custom("train.unused", {"kind": "a"}, math_cond="> 0.0").low < 0.01
        assert not self.custom("train.unused", {"kind": "a"}, math_cond="> 0.0").log

    @pytest.mark.parametrize(
        ("condition", "depends", "value"),
        [
            ("> depends_on", "train.closed", 6),
            (">= depends_on", "train.closed", 5),
            (None, "> train.closed", 6),
            ("< depends_on", "train.closed", 2),
            ("/ 2", "train.closed", 2),
        ],
    )
    def test_what_depends_on_another(self, condition, depends, value):
        entry = {"depends_on": depends, **({"math_cond": condition} if condition else {})}
        keys = ["train.width", "train.closed"]
        found = space(
            automl_hyperparameters=keys,
            override_automl_disabled_params=True,
            custom_param_ranges={"train.width": {"valid_max": 64, **entry}, "train.closed": {"valid_min": 2}},
        )
        assert [d.path for d in found.dimensions] == ["train.closed", "train.width"]
        sampled = 2 if ">" in (condition or depends) else 40
        other = 5 if value > 2 or condition == "/ 2" else 3
        assert found.values({"train.width": sampled, "train.closed": other})["train.width"] == value

    def test_of_a_key_that_is_not_searched_the_specs_value_counts(self):
        found = space(
            automl_hyperparameters=["train.width"],
            custom_param_ranges={"train.width": {"depends_on": "> train.closed"}},
        )
        assert found.values({"train.width": 1}) == {"train.width": 4}

    @pytest.mark.parametrize("keys", [["momentum", "unused", "lr"], ["lr", "unused", "momentum"]])
    def test_a_chain_follows_the_values_that_were_chosen(self, keys):
        found = space(
            {"kind": "a"},
            automl_hyperparameters=[f"train.{key}" for key in keys],
            custom_param_ranges={
                "train.lr": {"depends_on": "> train.unused", "valid_max": 2},
                "train.unused": {"depends_on": "== train.momentum"},
                "train.momentum": {"valid_min": 0.0},
            },
        )
        assert [d.path for d in found.dimensions] == ["train.momentum", "train.unused", "train.lr"]
        values = found.values({"train.momentum": 0.9, "train.unused": 0.1, "train.lr": 0.2})
        assert values == {"train.momentum": 0.9, "train.unused": 0.9, "train.lr": pytest.approx(0.9, abs=1e-5)}

    @pytest.mark.parametrize(("condition", "value"), [(">", 4), (">=", 4), ("<", 3), ("<=", 3)])
    def test_whole_numbers_stay_whole(self, condition, value):
        relation = Relation(condition, ("train.lr",))
        assert relation.applied(64 if "<" in condition else 1, {"train.lr": 3.5}, whole=True) == value

    @pytest.mark.parametrize(
        ("key", "entry", "told"),
        [
            (
                "train.lr",
                {"min": 0.1},
                "automl.custom_param_ranges.train.lr.min · unknown key · did you mean valid_min?",
            ),
            ("train.lr", {"values": [1]}, "did you mean valid_options?"),
            ("train.lr", {"valid_mn": 1}, "did you mean valid_min?"),
            ("train.lr", {"valid_min": 0}, "input should be greater than 0"),
            ("train.lr", {"valid_min": "inf"}, "no finite number"),
            ("train.lr", {"valid_min": 1, "valid_max": 0.1}, "ends before it begins: 1 … 0.1 · swap them"),
            ("train.lr", {"valid_min": 2}, "ends before it begins: 2 … 1 · give valid_min and valid_max"),
            ("train.width", {"valid_max": 100}, "input should be less than or equal to 64"),
            ("train.width", {"valid_min": 1.5}, "valid_min · 1.5"),
            ("train.width", {"math_cond": "/ 100"}, "nothing is left"),
            ("train.width", {"math_cond": "around 3"}, "found 'around 3'"),
            ("train.width", {"depends_on": "> train.cloesd"}, "did you mean train.closed?"),
            ("train.kind", {"valid_options": ["a", "z"]}, "input should be 'a', 'b' or 'c'"),
            ("train.width", {"depends_on": "train.closed"}, "'train.closed' does not say how"),
            ("train.width", {"depends_on": "train.closed", "math_cond": "^ 2"}, "'^' beside depends_on"),
            ("train.width", {"depends_on": "> train.closed", "math_cond": "/ 2"}, "'/' beside depends_on"),
            ("train.width", {"math_cond": "> depends_on"}, "depends_on · not set, but math_cond names it"),
            ("train.width", {"depends_on": "> train.kind"}, "train.kind is no number"),
            ("train.width", {"depends_on": "> train.width"}, "a circle: train.width on train.width"),
            ("train.width", {"depends_on": "train.closed", "math_cond": "/ 4"}, "0, with train.closed 3"),
            ("train.width", {"math_cond": "/ 0"}, "found '/ 0'"),
            ("train.width", {"math_cond": "/ 2.5"}, "found '/ 2.5'"),
            ("train.lr", {"math_cond": "/ 2"}, "write a condition such as '> 0', '^ 2'"),
            ("train.lr", {"option_weights": [1, 2]}, "no effect where numbers are chosen among"),
            ("train.lr", {"valid_options": [1, 2], "valid_min": 1}, "no effect where options are chosen among"),
            ("train.kind", {"math_cond": "^ 2"}, "no effect where options are chosen among"),
            ("train.kind", {"option_weights": [1, 2, math.inf]}, "write 3 numbers above 0"),
            ("train.lr", {"disable_list": True}, "a list is searched by its valid_options"),
            ("train.lr", {"valid_options": ["1e-3", 0.01]}, "valid_options · '1e-3': a text is no number"),
            ("train.kind", {"valid_options": []}, "found an empty list · write a list of values"),
            ("train.kind", {"option_weights": [1, 2]}, "write 3 numbers above 0"),
            ("train.rate", {"valid_min": 1}, "unknown key"),
            ("train.lr", 3, "found 3 · write a mapping"),
        ],
    )
    def test_what_cannot_be(self, key, entry, told):
        found = problems(custom_param_ranges={key: entry})
        assert any(told in problem for problem in found), found

    def test_all_problems_at_once(self):
        found = problems(
            custom_param_ranges={"train.lr": {"min": 1, "valid_max": -1}, "train.x": {}}, automl_hyperparameters=["y"]
        )
        assert len(found) >= 4


class TestValues:
    def test_go_into_the_spec(self):
        spec = spec_of({})
        tree = with_values(type(spec), plain(spec), {"train.lr": 0.5, "train.weights[1]": 9.0})
        made = type(spec).model_validate(tree)
        assert (made.train.lr, made.train.weights) == (0.5, [1.0, 9.0])
        assert value_at(made, "train.weights[1]") == 9.0

    def test_own_values_are_kept_though_outside_a_range(self):
        ready = prepared({"custom_param_ranges": {"train.lr": {"valid_min": 0.5, "valid_max": 1.0}}})
        assert ready.space.own_values()["train.lr"] == 0.1
        assert ready.space.own_params()["train.lr"] == 0.5

    @pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
    def test_places_of_the_unit_cube(self, place):
        for dimension in prepared(
            {"automl_hyperparameters": ["train.lr", "train.width", "train.kind"]}
        ).space.dimensions:
            param = dimension.at(place)
            assert dimension.distribution()._contains(dimension.distribution().to_internal_repr(param))
            assert abs(dimension.unit(param) - place) <= (0.0 if dimension.path == "train.lr" else 0.34) + 1e-9
