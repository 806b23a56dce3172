"""``${...}``: what is replaced, what is refused, and how much work it may be."""

import time

import pytest

from fiducial.redact import STARS, redact_text
from fiducial.spec.references import References, arithmetic, key_of


class TestArithmetic:
    @pytest.mark.parametrize(
        ("text", "value"), [("2 * (3 + 4)", 14), ("7 / 2", 3.5), ("7 // 2", 3), ("-7 % 4", 1), ("+.5", 0.5)]
    )
    def test_hand_computed(self, text, value):
        assert arithmetic(text) == value

    @pytest.mark.parametrize(
        "text",
        ["__import__('os')", "2 ** 9", "'a'", "x", "1 / 0", "True", "", "(" * 900, "-" * 9999],
    )
    def test_no_code(self, text):
        with pytest.raises(ValueError, match=r".+"):
            arithmetic(text)


class TestValue:
    TREE = {"a": "x", "n": 3, "l": [1, "${a}"], "s": {"t": "${.u}", "u": "${..a}y", "v": "${l[1]}${n}"}, "m": "???"}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            *(("${a}", "x"), ("${n}", 3), ("p${n}q", "p3q"), ("${s.t}", "xy"), ("${s.v}", "x3"), ("${l}", [1, "x"])),
            *(("${s}", {"t": "xy", "u": "xy", "v": "x3"}), ("${s[t]}", "xy"), ("${eval:'${n} * 2'}", 6)),
            *(("${oc.env:FIDUCIAL_NONE,d}", "d"), ("${oc.env:FIDUCIAL_NONE,null}", None), ("\\${a}", "${a}")),
            *(("${oc.select:none,7}", 7), ("${oc.select:a}", "x"), ("${oc.decode:'[1, 2]'}", [1, 2])),
            ("no reference", "no reference"),
        ],
    )
    def test_of_a_key(self, text, value):
        assert References({**self.TREE, "it": text}).value(("it",)) == value

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            *(("${none}", "there is no none"), ("${l[9]}", r"there is no l\.?\[?9"), ("${m}", r"still \?\?\?")),
            *(("${it}", "refers to itself"), ("${other}", "refers to itself"), ("${", "not understood")),
            *(("${}", "not understood"), ("${a", "not understood"), ("${oc.env:FIDUCIAL_NONE}", "no variable")),
            *(("${none:1}", "no resolver 'none'"), ("${oc.create:{}}", "no resolver"), ("${eval:1,2}", "no resolver")),
            *(("${eval:'import os'}", "only numbers|invalid syntax"), ("${oc.decode:'{'}", "not understood")),
            *(
                ("${" * 900, "not understood"),
                ("${a}" + "x" * 5000, "characters"),
                ("${oc.decode:'" + "[" * 900, "not"),
            ),
        ],
    )
    def test_what_does_not_resolve(self, text, reason):
        references = References({**self.TREE, "it": text, "other": "${it}"})
        for _ in range(2):  # the second time it is remembered
            with pytest.raises(ValueError, match=reason) as caught:
                references.value(("it",))
            assert "\n" not in str(caught.value)

    def test_no_such_key(self):
        assert References({"a": 1}).value(("b", "c")) is None

    def test_resolvers_of_programs_are_not_called(self):
        from omegaconf import OmegaConf

        OmegaConf.register_new_resolver("fiducial_test", lambda: pytest.fail("called"), replace=True)
        with pytest.raises(ValueError, match="no resolver"):
            References({"a": "${fiducial_test:}"}).value(("a",))


def all_values(references, tree):
    return [references.value((key,)) for key in tree]


class TestBounds:
    @pytest.mark.parametrize("form", ["${{a{}}}${{a{}}}", "[${{a{}}}]${{a{}}}"])
    def test_doubling(self, form):
        tree = {"a0": "x" * 16} | {f"a{i}": form.format(i - 1, i - 1) for i in range(1, 40)}
        start, references = time.monotonic(), References(tree)
        with pytest.raises(ValueError, match=r"MiB|in a row"):
            all_values(references, tree)
        assert time.monotonic() - start < 5

    def test_doubling_lists(self):
        tree = {"a0": ["x"]} | {f"a{i}": [f"${{a{i - 1}}}"] * 2 for i in range(1, 40)}
        references = References(tree)
        with pytest.raises(ValueError, match=r"MiB|in a row|nested"):
            all_values(references, tree)

    def test_a_tree_in_itself(self):
        tree = {f"a{i}": "${all}" for i in range(50)}
        with pytest.raises(ValueError, match=r"itself|in a row"):
            References({"all": tree}).value(("all",))

    def test_a_long_chain_is_short_work(self):
        tree = {"a999": "x"} | {f"a{i}": f"${{a{i + 1}}}" for i in range(999)}
        references, failed = References(tree), 0
        for key in tree:
            try:
                references.value((key,))
            except ValueError:
                failed += 1
        assert 0 < failed < 999


class TestSecrets:
    def test_of_the_environment(self, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_TEST_TOKEN", "tok-5521")
        found = References({"a": "${oc.env:FIDUCIAL_TEST_TOKEN}", "b": "p${a}q", "c": {"d": "${b}"}})
        assert found.value(("c", "d")) == "ptok-5521q"
        assert redact_text("it is ptok-5521q, tok-5521") == f"it is {STARS}, {STARS}"

    def test_paths_and_numbers_are_none(self, monkeypatch):
        for value in ("/data/fiducial-set", "./fiducial-set", "4", "0.25", "true"):
            monkeypatch.setenv("FIDUCIAL_TEST_PLACE", value)
            References({"a": "${oc.env:FIDUCIAL_TEST_PLACE}"}).value(("a",))
            assert redact_text(f"in {value}") == f"in {value}"

    def test_of_secret_keys(self):
        references = References({"encryption_key": "k", "a": "begin-${encryption_key}-8841", "b": ["${a}"]})
        assert references.value(("b",)) == ["begin-k-8841"]
        assert redact_text("x begin-k-8841 y") == f"x {STARS} y"


def test_key_of():
    assert key_of(("a", "b", 0, "c")) == "a.b[0].c"
