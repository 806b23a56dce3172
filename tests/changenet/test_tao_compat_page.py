"""The tests that docs/tao-compat.md names exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/tao-compat.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w:]+)`", PAGE)))


def test_many_are_named():
    assert len(NAMED) > 40


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_exists(file, test):
    path = TESTS.parent / file if file.startswith("tests/") else TESTS / "changenet/classify" / file
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for name in test.split("::"):
        found = next((item for item in body if getattr(item, "name", None) == name), None)
        assert found is not None, f"{path} has no {test}"
        body = found.body


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("| ")])
def test_every_row_names_a_test(line):
    last = line.strip(" |").rpartition("| ")[2]
    assert last == "Test" or "::test" in last or last == "all of them"
