"""``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiducial.actions.models import find_resume, with_start_weights
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError, DatasetError, SpecError
from fiducial.run.callbacks import Reporter
from fiducial.run.changes import compare, first_usable
from fiducial.run.console import LOGGER
from fiducial.run.devices import Devices, resolve_devices
from fiducial.run.resume import place_of
from fiducial.run.run import Run
from fiducial.run.seeds import seed_run
from fiducial.run.trainer import plain_interrupts, training_trainer
from fiducial.task import Task
from fiducial.training.module import TrainingModule


def train(task: Task[Any], run: Run) -> Result:
    """Train to ``train.num_epochs``, continuing from the latest checkpoint of the results folder when there is one."""
    preflight(task, run)
    settings = run.spec.train
    resume = _continued(task, run)
    rate = 1.0
    if resume is not None:
        if _finished(resume, run):
            return Result(run.action.name, run.folder, files=_files(task, run.folder))
        rate = compare(task.resume, resume, run.spec)
    devices = resolve_devices(settings, "train")
    seed_run(settings)
    runtime = task.runtime(run.spec if resume else with_start_weights(task, run.composed, run.note))
    datamodule = runtime.datamodule()
    module = runtime.module(pretrained=resume is None)
    module.policy = task.policy(run.spec)
    if settings.compile:
        module.compile_networks(settings.compile)
    if module.plan.weights:
        run.status.write(module.plan.weights)
    reporter = Reporter(run.status, task.metrics)
    trainer = training_trainer(task, run, devices, reporter, num_batches=datamodule.num_batches, rate=rate)
    _announce(settings, module)
    if module.policy.precision == "32-true" and _has_bf16(devices):
        LOGGER.info("this GPU computes faster in bfloat16, with nearly the same result: %s", task.bf16)
    try:
        with plain_interrupts(trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume.path) if resume else None)
    except (RuntimeError, ValueError) as error:
        if resume is not None and any(part in str(error) for part in ("state_dict", "parameter group")):
            fix = "use the spec of that run, or another results_dir (or delete the checkpoint) to start anew"
            found = f"the architecture has changed: {_first_lines(error)}"
            raise CheckpointError(str(resume.path), found, fix) from error
        if "within local rank has zero length" in str(error):
            found = f"fewer batches than the {devices.num_processes} devices"
            raise DatasetError("validation data", found, "lower the batch size, or use fewer devices") from error
        raise
    history = tuple(reporter.history)
    return Result(run.action.name, run.folder, {**reporter.latest}, _files(task, run.folder), history)


def _files(task: Task[Any], folder: Path) -> tuple[Path, ...]:
    """The best and the latest checkpoint, as far as they are there."""
    links = (folder / f"{task.prefix}_{name}.pth" for name in ("best", "latest"))
    return tuple(link for link in links if link.exists())


def _continued(task: Task[Any], run: Run) -> Checkpoint | None:
    """The checkpoint that training is continued from: the newest that is whole and finite; None to begin."""
    files = find_resume(task, run.composed)
    if not files:
        return None
    if not run.spec.train.resume_training_checkpoint_path:
        LOGGER.warning("%s holds an unfinished or finished run: continuing it (delete it to start anew)", run.folder)
    found = first_usable(files, key=run.spec.encryption_key)
    run.note(f"Resuming training from checkpoint: {found.path}")
    return found


def _finished(resume: Checkpoint, run: Run) -> bool:
    """Whether the run to continue has already all its epochs. Raises: SpecError when it has more."""
    place = place_of(resume.raw, resume.path)
    wanted: int = run.spec.train.num_epochs
    if place.epoch > wanted:
        fix = f"set train.num_epochs to {place.epoch} or more, or use another results_dir"
        found = f"{wanted}, but {resume.path.name} is already trained to epoch {place.epoch}"
        raise SpecError("train.num_epochs", found, fix)
    if place.epoch == wanted:
        run.note(f"Already trained to epoch {wanted}: nothing to do. Raise train.num_epochs to train on.")
    return place.epoch == wanted


def _has_bf16(devices: Devices) -> bool:
    """Whether the run is on a GPU that has bfloat16 in hardware."""
    import torch

    return devices.accelerator in ("gpu", "cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def _announce(settings: Any, module: TrainingModule) -> None:
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    LOGGER.info(
        "%d epochs, validation every %d, checkpoint every %d %s(s); %.1f M parameters, %.1f M of them trained",
        settings.num_epochs,
        settings.validation_interval,
        settings.checkpoint_interval,
        settings.checkpoint_interval_unit,
        total / 1e6,
        trainable / 1e6,
    )


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
