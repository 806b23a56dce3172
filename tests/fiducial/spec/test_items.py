"""Keys of list items, in overrides and in YAML."""

import pytest

from fiducial.errors import SpecError
from fiducial.spec.compose import compose, read_source
from fiducial.spec.knob import Section, item, knob, section


class Inner(Section):
    sizes: list[int] = knob(
        [1, 2, 3],
        "Sizes.",
        aliases=("size",),
        items={1: item("The middle.", ge=0, lt=10, usual=(1, 5)), 2: item("The last.", gt=0)},
    )
    tags: list[str] = knob([], "Tags.")
    factors: list[float] | None = knob(None, "Factors.", items={})
    count: int = knob(3, "Count.")


class Spec(Section):
    inner: Inner = section(Inner, "Inner.")
    colours: dict[str, list[int]] | None = knob(None, "Colours.")


@pytest.fixture
def composed(tmp_path):
    def build(text="", *overrides):
        path = tmp_path / "spec.yaml"
        path.write_text(text or "{}")
        return compose(Spec, read_source(Spec, path, overrides))

    return build


@pytest.fixture
def problems(composed):
    def build(*arguments):
        with pytest.raises(SpecError) as caught:
            composed(*arguments)
        return [str(problem) for problem in caught.value.problems]

    return build


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "sizes"),
        [
            ("", [1, 7, 3]),
            ("inner:", [1, 7, 3]),
            ("inner: {sizes: ''}", [1, 7, 3]),
            ("inner: {sizes: '???'}", [1, 7, 3]),
            ("inner: {sizes: [4, 5]}", [4, 7]),
            ("inner: {size: [4, 5]}", [4, 7]),
            ("inner: {'sizes[1]': 6}", [1, 7, 3]),
        ],
    )
    @pytest.mark.parametrize("key", ["inner.sizes", "inner.size", "+inner.sizes", "++inner.size"])
    def test_one_item(self, composed, text, sizes, key):
        assert composed(text, f"{key}[1]=7").spec.inner.sizes == sizes

    def test_in_their_order(self, composed):
        assert composed("", "inner.sizes[0]=7", "inner.sizes=[4,5]", "inner.sizes[1]=6").spec.inner.sizes == [4, 6]

    def test_defaults_are_not_changed(self, composed):
        composed("", "inner.sizes[0]=7")
        assert Spec().inner.sizes == [1, 2, 3]

    def test_the_list_counts_as_given(self, composed):
        assert composed("", "inner.sizes[0]=7").given == {"inner", "inner.sizes"}

    def test_interpolation(self, composed):
        assert composed("", "inner.sizes[0]=${inner.count}").spec.inner.sizes == [3, 2, 3]

    def test_list_in_a_mapping(self, composed):
        assert composed("colours: {a: [1, 2]}", "colours.a[1]=3").spec.colours == {"a": [1, 3]}

    @pytest.mark.parametrize(
        ("text", "override", "found"),
        [
            ("", "inner.sizes[3]=7", "inner.sizes has no element 3: its length is 3; set the whole list"),
            ("", "inner.tags[0]=a", "inner.tags has no element 0: its length is 0; set the whole list"),
            ("", "inner.factors[0]=1", "inner.factors is not set and has no element 0; set the whole list"),
            ("", "inner.count[0]=1", "inner.count is not a list"),
            ("inner: {count: 2}", "inner.count[0]=1", "inner.count is 2, not a list with elements"),
            ("inner: {sizes: '${x}'}", "inner.sizes[0]=1", "inner.sizes is '${x}', not a list with elements"),
        ],
    )
    def test_no_such_item(self, problems, text, override, found):
        assert problems(text, override)[0] == f"override {override!r} · {found} · check the key"

    def test_unknown_key(self, problems):
        assert problems("", "inner.szies[0]=1") == ["inner.szies[0] · unknown key · did you mean inner.sizes?"]


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "sizes"),
        [
            ("inner: {'sizes[1]': 7}", [1, 7, 3]),
            ("inner: {'size[1]': 7}", [1, 7, 3]),
            ("inner:\n  sizes[0]: 7\n  sizes[2]: 8", [7, 2, 8]),
            ("inner: {'sizes[0]': 7, sizes: [4, 5]}", [7, 5]),
        ],
    )
    def test_goes_into_the_list(self, composed, text, sizes):
        assert composed(text).spec.inner.sizes == sizes

    def test_an_override_of_the_list_wins(self, composed):
        assert composed("inner: {'sizes[1]': 7}", "inner.sizes=[4,5]").spec.inner.sizes == [4, 5]

    def test_no_such_item(self, problems):
        assert problems("inner: {'sizes[3]': 7, 'count[0]': 1, 'szies[0]': 1}") == [
            "inner.sizes[3] · sizes has no element 3: its length is 3; set the whole list · check the key",
            "inner.count[0] · count is not a list · check the key",
            "inner.szies[0] · unknown key · did you mean inner.sizes?",
        ]


class TestBounds:
    @pytest.mark.parametrize(
        "arguments", [("inner: {sizes: [1, -1, 0]}",), ("", "inner.sizes[1]=-1", "inner.sizes[2]=0")]
    )
    def test_hard(self, problems, arguments):
        assert problems(*arguments) == [
            "inner.sizes[1] · found -1 · must be at least 0",
            "inner.sizes[2] · found 0 · must be more than 0",
        ]

    def test_other_end(self, composed, problems):
        assert composed("", "inner.sizes[1]=9").spec.inner.sizes == [1, 9, 3]
        assert problems("", "inner.sizes[1]=10") == ["inner.sizes[1] · found 10 · must be less than 10"]

    def test_shorter_list_has_no_such_item(self, composed):
        assert composed("inner: {sizes: [-4]}").spec.inner.sizes == [-4]

    def test_type(self, problems):
        assert problems("", "inner.sizes[1]=a")[0].startswith(
            "inner.sizes[1] · found 'a' · input should be a valid integer"
        )

    def test_unusual_is_a_warning(self, composed):
        (warning,) = composed("inner: {sizes: [9, 6, 9]}").warnings
        assert str(warning) == "inner.sizes[1] · found 6 · usual values are 1 … 5"
