"""``${...}``: what is replaced, what is refused, and how much work it may be."""

import pytest

from fiducial.spec.references import arithmetic


class TestArithmetic:
    @pytest.mark.parametrize(
        ("text", "value"), [("2 * (3 + 4)", 14), ("7 / 2", 3.5), ("7 // 2", 3), ("-7 % 4", 1), ("+.5", 0.5)]
    )
    def test_hand_computed(self, text, value):
        assert arithmetic(text) == value

    @pytest.mark.parametrize("text", ["__import__('os')", "2 ** 9", "'a'", "x", "1 / 0", "True"])
    def test_no_code(self, text):
        with pytest.raises(ValueError, match=r".+"):
            arithmetic(text)
