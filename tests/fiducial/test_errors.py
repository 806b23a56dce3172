"""What users are told: one line for each problem, whatever is quoted in it."""

import pytest

from fiducial.errors import Problem, one_line
from fiducial.redact import STARS


class TestProblem:
    def test_three_parts(self):
        assert str(Problem("a.b", "found 3", "must be 4")) == "a.b · found 3 · must be 4"

    @pytest.mark.parametrize(
        ("quoted", "shown"),
        [
            ("a\nb", r"a\nb"),
            ("\r\x1b[31m", r"\r\x1b[31m"),
            ("\u2028", r"\u2028"),
            ("\x85", r"\x85"),
            ("ä\ud800", r"ä\ud800"),
        ],
    )
    def test_one_printable_line(self, quoted, shown):
        assert str(Problem(quoted, quoted, "mend it")) == f"{shown} · {shown} · mend it"


class TestOneLine:
    def test_long(self):
        assert one_line("ab\n\tc" * 100, 20) == "ab cab cab cab cab …"

    def test_a_secret_is_starred_before_the_text_is_cut(self, secret):
        secret("s" * 90 + "t" * 90)
        assert one_line("key " + "s" * 90 + "t" * 90, 50) == f"key {STARS}"
