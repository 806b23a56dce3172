"""What ``export`` decides by itself."""

from types import SimpleNamespace

import pytest
from torch import nn

from fiducial.actions.export import formulation
from fiducial.backbones.deformable import MSDeformAttn


def run_of(compat="off", **given):
    export = SimpleNamespace(deformable_attention=given.get("deformable_attention", "gather"))
    composed = SimpleNamespace(given=frozenset(f"export.{name}" for name in given))
    return SimpleNamespace(spec=SimpleNamespace(compat=compat, export=export), composed=composed)


class TestFormulation:
    @pytest.mark.parametrize(
        ("run", "expected"),
        [
            (run_of(), "gather"),
            (run_of(deformable_attention="grid_sample"), "grid_sample"),
            (run_of("tao"), "plugin"),
            (run_of("tao", deformable_attention="gather"), "gather"),
        ],
    )
    def test_of_deformable_networks(self, run, expected):
        assert formulation(run, nn.Sequential(MSDeformAttn(8))) == expected

    def test_others_have_none(self):
        assert formulation(run_of("tao", deformable_attention="plugin"), nn.Linear(1, 1)) == "gather"
