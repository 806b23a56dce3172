"""``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiducial.actions.preflight import preflight
from fiducial.checkpoints.reading import read
from fiducial.checkpoints.resolving import real_file
from fiducial.errors import CheckpointError, DatasetError, SpecError
from fiducial.run.console import LOGGER
from fiducial.run.devices import resolve_devices
from fiducial.run.resume import place_of
from fiducial.run.run import Run
from fiducial.run.seeds import seed_run
from fiducial.run.trainer import plain_interrupts, training_trainer
from fiducial.task import Task, load


def train(task: Task, run: Run) -> None:
    """Train to ``train.num_epochs``, continuing from the latest checkpoint of the results folder when there is one."""
    preflight(task, run)
    settings = run.spec.train
    resume = _resume_file(task, run)
    if resume is not None and _finished(resume, run):
        return
    devices = resolve_devices(settings, "train")
    seed_run(settings)
    runtime = load(task.runtime)(run.spec)
    datamodule = runtime.datamodule()
    module = runtime.module(pretrained=resume is None)
    loaded = getattr(module, "record", {}).get("weights")
    if loaded:
        run.note(loaded)
    trainer = training_trainer(task, run, devices, num_batches=datamodule.num_batches)
    _announce(settings, module)
    try:
        with plain_interrupts(trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume) if resume else None)
    except (RuntimeError, ValueError) as error:
        if resume is not None and any(part in str(error) for part in ("state_dict", "parameter group")):
            fix = "use the spec of that run, or another results_dir (or delete the checkpoint) to start anew"
            raise CheckpointError(str(resume), f"the architecture has changed: {_first_lines(error)}", fix) from error
        if "within local rank has zero length" in str(error):
            found = f"fewer batches than the {devices.num_processes} processes"
            raise DatasetError("validation data", found, "lower the batch size, or use fewer processes") from error
        raise


def _resume_file(task: Task, run: Run) -> Path | None:
    """The checkpoint to continue from: the one the spec names, else this network's latest in the results folder."""
    named = run.spec.train.resume_training_checkpoint_path
    if named:
        found = real_file(named, where="train.resume_training_checkpoint_path")
    else:
        latest = run.folder / f"{task.prefix}_latest.pth"
        if not (latest.exists() or latest.is_symlink()):
            return None
        found = real_file(latest)
        LOGGER.warning("%s holds an unfinished or finished run: continuing it (delete it to start anew)", run.folder)
    run.note(f"Resuming training from checkpoint: {found.resolve()}")
    return found.resolve()


def _finished(resume: Path, run: Run) -> bool:
    """Whether the run to continue has already all its epochs. Raises: SpecError when it has more."""
    place = place_of(read(resume, key=run.spec.encryption_key).raw, resume)
    wanted: int = run.spec.train.num_epochs
    if place.epoch > wanted:
        fix = f"set train.num_epochs to {place.epoch} or more, or use another results_dir"
        found = f"{wanted}, but {resume.name} is already trained to epoch {place.epoch}"
        raise SpecError("train.num_epochs", found, fix)
    if place.epoch == wanted:
        run.note(f"Already trained to epoch {wanted}: nothing to do. Raise train.num_epochs to train on.")
    return place.epoch == wanted


def _announce(settings: Any, module: Any) -> None:
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
