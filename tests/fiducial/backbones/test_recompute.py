"""What is computed again changes nothing but what is kept."""

import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from fiducial.backbones import recompute
from fiducial.backbones.recompute import gelu_again, norm_again, swiglu_again


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


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make", [partial(nn.BatchNorm2d, 4), partial(nn.LayerNorm, 6), partial(nn.InstanceNorm2d, 4, affine=True)]
)
def test_a_norm_changes_nothing_and_counts_once(make, training, relu):
    torch.manual_seed(0)
    then, x = nn.Conv2d(4, 3, 3), torch.randn(2, 4, 5, 6)

    def plain(norm, x, then, *, relu):
        return then(F.relu(norm(x)) if relu else norm(x))

    found = []
    for way in (norm_again, plain):
        norm = make().train(training)
        inner = x.clone().requires_grad_()
        out = way(norm, 2 * inner, then, relu=relu)
        out.square().sum().backward()
        found.append([out, inner.grad, then.weight.grad, norm.weight.grad, *norm.buffers()])
        then.zero_grad()
    for again, want in zip(*found, strict=True):
        torch.testing.assert_close(again, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", ["gelu", "gates", "layer norm", "batch norm"])
def test_half_precision_is_the_same_bits(way, dtype):
    """Whatever autocast makes of the types: it is over when the backward pass runs."""
    torch.manual_seed(0)
    x, then = torch.randn(2, 4, 6, 8, dtype=dtype), nn.Conv2d(4, 3, 3)
    norm = nn.LayerNorm(8) if way == "layer norm" else nn.BatchNorm2d(4)
    ways = {
        "gelu": (lambda x: gelu_again(x, then), lambda x: then(F.gelu(x))),
        "gates": (lambda x: swiglu_again(x, then), lambda x: then(plain_gates(x))),
    }
    found = []
    for call in ways.get(way, (lambda x: norm_again(norm, x, then, relu=True), lambda x: then(F.relu(norm(x))))):
        inner = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = call(2 * inner)
        out.float().square().sum().backward()
        found.append([out, inner.grad, then.weight.grad.clone()])
        then.zero_grad()
    for again, want in zip(*found, strict=True):
        torch.testing.assert_close(again, want, rtol=0, atol=0)


def test_what_autocast_made_of_another_type_is_kept():
    """As a layer norm of half precision on a GPU: outside of autocast it would be made in half precision."""
    x = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)
    recompute._again(x, x.float(), torch.zeros_like, torch.square).sum().backward()
    assert torch.equal(x.grad, 2 * x)


def test_a_norm_is_made_once_in_the_backward_pass_and_again_in_another(monkeypatch):
    norm, then, x = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), torch.randn(2, 4, 5, 6, requires_grad=True)
    made, plain = [], F.batch_norm

    def batch_norm(*arguments):
        made.append(1)
        return plain(*arguments)

    loss = norm_again(norm, x * 1, then, relu=True).sum()
    monkeypatch.setattr(F, "batch_norm", batch_norm)
    loss.backward(retain_graph=True)  # the convolution and the ReLU both need it
    assert len(made) == 1
    loss.backward()
    assert len(made) == 2


def test_gates_change_nothing():
    first, then, x = nn.Linear(8, 12), nn.Linear(6, 8), torch.randn(4, 6, 8)

    wanted = gradients(first, then, x, lambda hidden, then: then(plain_gates(hidden)))
    for found, want in zip(gradients(first, then, x, swiglu_again), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=0)


NORM, CONV = nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)


def plain_gates(x):
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda x: norm_again(NORM, x, CONV, relu=True), 0),
        (lambda x: CONV(F.relu(NORM(x))), 1),
        (lambda x: norm_again(nn.LayerNorm(100), x, CONV), 0),
        (lambda x: swiglu_again(x, lambda made: made.square().sum()), 0),
        (lambda x: plain_gates(x).square().sum(), 1),
    ],
)
def test_what_is_kept_for_the_backward_pass(way, expected):
    """In tensors as large as the input, which is kept in any case."""
    x = torch.randn(8, 8, 50, 100, requires_grad=True) * 1
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        out = way(x)
    kept = sum(event.nbytes() for event in found.profiler.kineto_results.events() if event.name() == "[memory]")
    assert out.requires_grad
    assert kept / x.nbytes == pytest.approx(expected, abs=0.15)


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
