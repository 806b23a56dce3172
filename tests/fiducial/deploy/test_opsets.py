"""Which operator sets are refused, in which words."""

import pytest

from fiducial.deploy.opsets import check_opset, opsets


@pytest.mark.parametrize(
    ("written_as", "oldest", "newest"), [("gather", 12, 25), ("grid_sample", 16, 20), ("plugin", 12, 20)]
)
class TestRange:
    def test_ends(self, written_as, oldest, newest):
        assert opsets(written_as) == range(oldest, newest + 1)

    def test_outside_is_a_problem_that_names_the_nearest(self, written_as, oldest, newest):
        for requested in (oldest, 17, newest):
            assert not list(check_opset(requested, written_as))
        for requested, near in (
            (-1, oldest),
            (oldest - 1, oldest),
            (newest + 1, newest),
            (99, newest),
            (10**9, newest),
        ):
            (problem,) = check_opset(requested, written_as)
            assert problem.where == "export.opset_version"
            assert f"operator set {oldest} to {newest}" in problem.found
            assert problem.fix.startswith(f"set {near},")


def test_an_older_onnx_package_knows_fewer(monkeypatch):
    monkeypatch.setattr("onnx.defs.onnx_opset_version", lambda: 22)
    assert opsets()[-1] == 22
    assert opsets("plugin")[-1] == 20
