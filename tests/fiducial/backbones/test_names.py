import subprocess
import sys

import pytest

from fiducial.backbones.names import BACKBONES, backbone_info
from fiducial.errors import SpecError


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(SpecError, match=r"use one of: fan_tiny_8_p4_hybrid, .*vit_large_nvdinov2"):
        backbone_info("resnet_50")


@pytest.mark.parametrize("name", [name for name, info in BACKBONES.items() if info.family != "FAN"])
def test_transformers(name):
    info = BACKBONES[name]
    assert info.strides == (4, 8, 16, 32)
    assert len(set(info.channels)) == 1
    assert info.multiple == 32
    assert info.embedding_multiple == (14 if info.family == "NVDINOv2" else 16)
    assert info.embedding_width(224, 448) == info.embedding_width(448, 448) == info.embedding_dim


def test_facts_need_no_torch():
    code = "import sys, fiducial.backbones.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
