"""The parts that every package's ``load`` is made of."""

import pytest
import torch

from fiducial.errors import CheckpointError
from fiducial.library import model_file


def test_quantized_checkpoints_are_not_run_unquantized(tmp_path):
    torch.save({"modelopt_state": {}, "model_state_dict": {"a": torch.ones(1)}}, tmp_path / "q.pth")
    with pytest.raises(CheckpointError, match="a quantized checkpoint"):
        model_file(tmp_path / "q.pth", "x")
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    assert model_file(tmp_path / "m.pth", "x") == tmp_path / "m.pth"
