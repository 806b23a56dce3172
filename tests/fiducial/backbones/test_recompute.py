"""A GELU that is computed again changes nothing but what is kept."""

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fiducial.backbones import recompute
from fiducial.backbones.recompute import gelu_again


def layers(kind):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(8, 16), nn.Linear(16, 8), torch.randn(4, 6, 8)
    if kind == "strided":  # what the next layer saves is a view of the activation
        return nn.Linear(8, 16), lambda x: x.transpose(1, 2)[:, 1:].square(), torch.randn(4, 6, 8)
    wide = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16) if kind == "norm" else nn.Conv2d(16, 8, 1)
    return *wide, torch.randn(2, 8, 5, 3).contiguous(memory_format=torch.channels_last)


def gradients(first, then, x, call):
    x = x.clone().requires_grad_()
    call(first(x), then).square().sum().backward()
    parts = [part for part in (first, then) if isinstance(part, nn.Module)]
    found = [x.grad, *(p.grad for part in parts for p in part.parameters())]
    for part in parts:
        part.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["linear", "strided", "conv", "norm"])
def test_values_and_gradients_are_the_same_bits(kind):
    first, then, x = layers(kind)
    torch.testing.assert_close(gelu_again(first(x), then), then(F.gelu(first(x))), rtol=0, atol=0)
    wanted = gradients(first, then, x, lambda h, then: then(F.gelu(h)))
    for found, want in zip(gradients(first, then, x, gelu_again), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["linear", "conv", "norm"])
def test_the_activation_is_not_kept(kind, monkeypatch):
    first, then, x = layers(kind)
    made = []

    def gelu(x):
        active = F.gelu(x)
        made.append(weakref.ref(active))
        return active

    monkeypatch.setattr(recompute, "F", SimpleNamespace(gelu=gelu))
    loss = gelu_again(first(x), then).sum()
    assert made[0]() is None
    loss.backward()
    assert len(made) == 2


def test_second_derivatives():
    first, then, x = (part.double() for part in layers("linear"))
    assert torch.autograd.gradgradcheck(lambda x: gelu_again(first(x), then), x[:1, :2].clone().requires_grad_())


@pytest.mark.parametrize("way", ["frozen", "no_grad", "hooks", "checkpoint", "vmap"])
def test_where_others_decide_it_is_a_plain_gelu(way, monkeypatch):
    first, then, x = layers("linear")

    def refuse(keep, give):
        raise AssertionError("kept by its own rule")

    def run(x):
        return gelu_again(first(x), then)

    monkeypatch.setattr(recompute, "saved_tensors_hooks", refuse)
    wanted = then(F.gelu(first(x)))
    if way == "frozen":
        first.requires_grad_(False)
        found = run(x)
    elif way == "no_grad":
        with torch.no_grad():
            found = run(x)
    elif way == "hooks":
        with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            found = run(x)
    elif way == "checkpoint":
        found = checkpoint(run, x, use_reentrant=False)
        found.sum().backward()
    else:
        found = torch.func.vmap(run)(x)
    torch.testing.assert_close(found, wanted)


def test_beside_what_is_transformed():
    first, then, x = layers("linear")
    found = torch.func.grad(lambda scale: (scale * gelu_again(first(x), then)).sum())(torch.tensor(2.0))
    torch.testing.assert_close(found, then(F.gelu(first(x))).sum())


def test_it_compiles():
    first, then, x = layers("linear")
    compiled = torch.compile(lambda x: gelu_again(first(x), then), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), then(F.gelu(first(x))))
