"""Training in 16 bits: what runs in them, what must not, and what comes of it."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from fiducial.run.trainer import _precision
from fiducial.spec.compose import Source, compose
from mal import lightning
from mal.config import ExperimentSpec
from mal.task import MAL


def module_of(tree):
    """A module that is ready to be trained, and its data."""
    torch.manual_seed(0)
    runtime = MAL.runtime(compose(ExperimentSpec, Source(tree)).spec)
    module = runtime.module(pretrained=False)
    module.policy = MAL.policy(runtime.spec)
    return module, runtime.datamodule()


def fit(tree, **options):
    """Train; returns the module and its losses, one for each batch."""
    module, data = module_of(tree)
    losses = []
    track = module.track
    module.track = lambda loss, **rest: (losses.append(loss.detach()), track(loss, **rest))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = pl.Trainer(
        accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, enable_model_summary=False, **quiet | options
    )
    trainer.fit(module, data)
    return module, losses


def half(scale=256.0):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.fixture
def tree(make_tree, tmp_path):
    return make_tree(tmp_path, train__loss_mil_step=1, train__loss_crf_step=1, train__lr=1e-4)


@pytest.mark.parametrize(
    ("keys", "on_gpu", "on_cpu"),
    [
        ({}, "16-mixed", "32-true"),
        ({"train__amp_dtype": "bfloat16"}, "bf16-mixed", "bf16-mixed"),
        ({"train__use_amp": False}, "32-true", "32-true"),
    ],
)
def test_what_the_spec_asks_for(make_tree, tmp_path, keys, on_gpu, on_cpu):
    spec = compose(ExperimentSpec, Source(make_tree(tmp_path, **{"train__use_amp": True, **keys}))).spec
    policy = MAL.policy(spec)
    found = [
        _precision(policy.precision, SimpleNamespace(accelerator=name), policy.half_on_cpu) for name in ("gpu", "cpu")
    ]
    assert found == [on_gpu, on_cpu]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_network_is_in_16_bits_and_its_products_and_losses_are_not(tree, precision):
    narrow = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    module, data = module_of(tree)
    seen = {}
    module.student.backbone.blocks[3].mlp.register_forward_hook(lambda *a: seen.update(block=a[2].dtype))
    module.student.mask_head.register_forward_hook(lambda *a: seen.update(value=a[2].dtype))
    module.teacher.backbone.blocks[3].mlp.register_forward_hook(lambda *a: seen.update(taught=a[2].dtype))
    objective = module.objective

    def watched(student, teacher, *rest, **options):
        parts = objective(student, teacher, *rest, **options)
        seen.update(logits=student.dtype, teacher=teacher.dtype, mil=parts.mil.dtype, crf=parts.crf.dtype)
        return parts

    module.objective = watched
    plugins = [half()] if precision == "16-mixed" else []
    pl.Trainer(
        accelerator="cpu",
        precision=None if plugins else precision,
        plugins=plugins,
        logger=False,
        max_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(module, data)
    assert {name: seen.pop(name) for name in ("block", "value", "taught")} == dict.fromkeys(
        ("block", "value", "taught"), narrow
    )
    assert set(seen.values()) == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_products_that_overflow_half_precision_are_right(tree):
    """256 products of 32 x 32: 262144, where float16 ends at 65504."""
    network = module_of(tree)[0].student
    network.roi_head.forward = lambda feature: torch.full((len(feature), 256), 32.0, dtype=torch.float16)
    network.mask_head.forward = lambda x: torch.full((len(x), 256, *x.shape[2:]), 32.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = network(torch.zeros(1, 3, 32, 32), torch.tensor([5000.0]))
    assert logits.unique().tolist() == [32.0 * 32.0 * 256]


@pytest.mark.parametrize(
    ("precision", "accumulate"), [("bf16-mixed", 1), ("bf16-mixed", 3), ("16-mixed", 1), ("16-mixed", 3)]
)
def test_training_is_near_that_in_32_bits(tree, precision, accumulate):
    tree["train"]["accum_grad_batches"] = accumulate
    whole, losses = fit(tree)
    options = {"plugins": [half()]} if precision == "16-mixed" else {"precision": precision}
    narrow, near = fit(tree, **options)
    assert [loss.item() for loss in near] == pytest.approx([loss.item() for loss in losses], rel=0.03)
    assert all(loss.dtype == torch.float32 for loss in near)
    before = module_of(tree)[0]
    moved, apart = 0.0, 0.0
    for start, ours, theirs in zip(before.parameters(), whole.parameters(), narrow.parameters(), strict=True):
        moved += (ours - start).square().sum().item()
        apart += (ours - theirs).square().sum().item()
    assert 0 < apart < 0.5 * moved


def test_teacher_and_rate_wait_for_a_real_step(tree, monkeypatch):
    """A scale of 2^120 makes infinite gradients in every batch but the first, whose losses have no weight yet."""
    calls = []
    monkeypatch.setattr(lightning, "ema_update", lambda *_, **__: calls.append("teacher"))
    monkeypatch.setattr(lightning.MalModule, "_set_rate", lambda self, rate: calls.append(rate))
    plugin = half(2.0**120)
    _, losses = fit(tree, plugins=[plugin])
    assert len(losses) == 4
    assert plugin.scaler.get_scale() == 2.0**117
    assert calls == [0.0, "teacher"]


def test_a_loss_that_is_no_number_is_left_out(tree, caplog):
    module, data = module_of(tree)
    objective, batches = module.objective, []

    def sometimes(*arguments, **options):
        parts = objective(*arguments, **options)
        batches.append(len(batches))
        return parts._replace(mil=parts.mil * float("nan")) if batches[-1] == 1 else parts

    module.objective = sometimes
    pl.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    ).fit(module, data)
    assert len(batches) == 4
    assert all(p.isfinite().all() for p in module.parameters())
    assert "epoch 0, batch 1: gradients are not finite, no step" in caplog.text
