"""Training compiled: the same gradients and names; what cannot be compiled trains as it is."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
import torch._dynamo
from torch import nn

from fiducial.training.compiled import compile_training


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))


def gradients(network):
    network.zero_grad()
    x = torch.linspace(-1, 1, 12).view(4, 3)
    network(x).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_same_gradients_and_names(network):
    wanted, names = gradients(network), list(network.state_dict())
    compile_training(network, "forward")
    for ours, eager in zip(gradients(network), wanted, strict=True):
        torch.testing.assert_close(ours, eager)
    assert type(network.forward._call).__name__ == "function", "it is the compiled one that runs"
    assert list(network.state_dict()) == names
    network.load_state_dict(network.state_dict())


def test_what_cannot_be_compiled_trains_as_it_is(network, monkeypatch, caplog):
    def broken(function, **options):
        def run(*arguments):
            raise RuntimeError("no compiler\nhere")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    wanted = gradients(network)
    compile_training(network, "forward", "max-autotune")
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(gradients(network), wanted, strict=True))
    assert caplog.messages == ["the network trains uncompiled: it cannot be compiled (RuntimeError: no compiler here)"]


def test_the_networks_own_error_is_its_own(network, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compile_training(network, "forward")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.ones(2, 5))


def test_after_it_has_worked_an_error_is_not_hidden(network, monkeypatch):
    calls = []

    def once(function, **options):
        def run(*arguments):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("out of memory")
            return function(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", once)
    compile_training(network, "forward")
    network(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="out of memory"):
        network(torch.ones(2, 3))


def test_one_size_too_many_trains_as_it_is(network, monkeypatch, caplog):
    """Torch compiles a method anew only so many times; the training that runs for hours goes on."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compile_training(network, "forward")
    for count in (2, 3, 4):
        assert network(torch.ones(count, 3)).shape == (count, 2)
    told = [record.getMessage() for record in caplog.records if record.name == "fiducial"]
    assert len(told) == 1
    assert told[0].startswith("the network trains uncompiled: it cannot be compiled (FailOnRecompileLimitHit")
