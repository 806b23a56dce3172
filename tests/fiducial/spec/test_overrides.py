"""Overrides: every form is applied or is one line, and none takes long or shows a secret."""

import pytest

from fiducial.spec.overrides import apply_overrides


def applied(*overrides, tree=None):
    tree = {} if tree is None else tree
    problems = apply_overrides(tree, overrides, rename=str, set_item=lambda *_: "an item")
    return tree, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        *(("a.b=1", {"a": {"b": 1}}), ("+a=x", {"a": "x"}), ("++a=null", {"a": None}), ("a=", {"a": ""})),
        *(("a={b: [1, {c: d}]}", {"a": {"b": [1, {"c": "d"}]}}), ("a='x=y, z'", {"a": "x=y, z"})),
        *(("a={null: 2, true: 3, 4: 5}", {"a": {"null": 2, "true": 3, "4": 5}}), ("~x", {}), ("~x.y", {})),
        *(("a='${'", {"a": "${"}), ("a=${b}", {"a": "${b}"}), ("a=int(3)", {"a": 3}), ("a/b=c", {"a/b": "c"})),
    ],
)
def test_applied(text, tree):
    assert applied(text) == (tree, [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(
            (text, "does not parse")
            for text in ("", "+", "++", "~~a", "a", "+a", "a..b=1", ".a=1", "a=[", "a={", "a=b=c")
        ),
        *((text, "does not parse") for text in ("a='", 'a="x', "a={[1]: 2}", "a=\0", "a=\ud800", "a=é", "a=int(x)")),
        *((text, "names no key") for text in ("=", "~", "=x")),
        *((f"a={text}", "a sweep") for text in ("1,2", "choice(1,2)", "range(1,9)", "glob(*)", "interval(0,1)")),
        *(("a=" + "9" * 300, "64 bits"), ("a=" + "9" * 5000, "does not parse"), ("a='\0'", r"U+0000")),
        *(
            ("a=" + "[" * 300 + "]" * 300, "nested"),
            ("a=" + "{a:" * 30 + "1" + "}" * 30, "nested"),
            ("a=" + "{a:" * 999 + "1" + "}" * 999, "parse"),
        ),
        *(
            ("a[" + "9" * 5000 + "]=1", "does not parse"),
            ("a[3]=1", "an item"),
            ("a='" + "x" * 9000 + "'", "characters"),
        ),
        *(("b.c=1", "b is 5, not a section"), ("l.c=1", "l is a list, not a section")),
    ],
)
def test_refused_in_one_line(text, found):
    tree, (problem,) = applied(text, tree={"b": 5, "l": [1]})
    assert tree == {"b": 5, "l": [1]}
    assert found in problem
    assert problem.startswith(("override ", "a"))
    assert "\n" not in problem
    assert len(problem) < 700


@pytest.mark.parametrize(
    "text",
    [
        *(
            "encryption_key=hunter2,tlt",
            "encryption_key=[hunter2",
            "+encryption_key=hunter2=x",
            "encryption_key='hunter2",
        ),
        *("clearml={encryption_key: hunter2", "clearml.api_key=hunter2,b", "a=https://bob:hunter2@host/x?b=c"),
        *("a=https://host/x?sig=hunter2=", "encryption_key=a://hunter2,b", "clearml.password={hunter2"),
    ],
)
def test_what_does_not_parse_shows_no_secret(text):
    _, (problem,) = applied(text)
    assert "hunter2" not in problem


def test_all_are_tried():
    tree, problems = applied("a=[", "b=1", "c=1,2")
    assert tree == {"b": 1}
    assert len(problems) == 2
