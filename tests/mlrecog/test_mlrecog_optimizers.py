"""Optimizers of a part."""

import pytest
import torch
from torch import nn

from mlrecog.optimizers import PartOptimizer

PART = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_a_group_for_each_tensor():
    made = PartOptimizer(base_lr=0.1, bias_lr_factor=2, weight_decay=0.3, weight_decay_bias=0.4).build(PART)
    assert type(made) is torch.optim.Adam
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [
        (0.1, 0.3),
        (0.2, 0.4),
        (0.1, 0.3),  # of a norm, too
        (0.2, 0.4),
    ]


@pytest.mark.parametrize("name", ["SGD", "Adamax", "AdamW"])
def test_names(name):
    made = PartOptimizer(name, momentum=0.8).build(PART)
    assert type(made).__name__ == name
    assert made.param_groups[0].get("momentum", 0.8) == 0.8


def test_what_is_not_trained_has_its_group():
    part = nn.Linear(2, 2)
    part.weight.requires_grad_(False)
    assert len(PartOptimizer().build(part).param_groups) == 2
