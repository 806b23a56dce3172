"""``train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiducial.actions.models import find_resume
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.errors import SHOWN, CheckpointError, DatasetError, SpecError
from fiducial.redact import redact
from fiducial.run.callbacks import Reporter
from fiducial.run.console import LOGGER
from fiducial.run.devices import resolve_devices
from fiducial.run.resume import place_of
from fiducial.run.run import Run
from fiducial.run.seeds import seed_run
from fiducial.run.trainer import plain_interrupts, training_trainer
from fiducial.spec.knob import plain
from fiducial.task import ResumeRules, Task
from fiducial.training.module import TrainingModule


def train(task: Task[Any], run: Run) -> Result:
    """Train to ``train.num_epochs``, continuing from the latest checkpoint of the results folder when there is one."""
    preflight(task, run)
    settings = run.spec.train
    resume = _resume_file(task, run)
    if resume is not None:
        continued = read(resume, key=run.spec.encryption_key)
        if _finished(continued, run):
            return Result(run.action.name, run.folder, files=_files(task, run.folder))
        _warn_of_changes(task.resume, continued, run)
    devices = resolve_devices(settings, "train")
    seed_run(settings)
    runtime = task.runtime(run.spec)
    datamodule = runtime.datamodule()
    module = runtime.module(pretrained=resume is None)
    module.policy = task.policy(run.spec)
    if module.plan.weights:
        run.status.write(module.plan.weights)
    reporter = Reporter(run.status, task.metrics)
    trainer = training_trainer(task, run, devices, reporter, num_batches=datamodule.num_batches)
    _announce(settings, module)
    try:
        with plain_interrupts(trainer):
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume) if resume else None)
    except (RuntimeError, ValueError) as error:
        if resume is not None and any(part in str(error) for part in ("state_dict", "parameter group")):
            fix = "use the spec of that run, or another results_dir (or delete the checkpoint) to start anew"
            raise CheckpointError(str(resume), f"the architecture has changed: {_first_lines(error)}", fix) from error
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


def _resume_file(task: Task[Any], run: Run) -> Path | None:
    found = find_resume(task, run.spec)
    if found and not run.spec.train.resume_training_checkpoint_path:
        LOGGER.warning("%s holds an unfinished or finished run: continuing it (delete it to start anew)", run.folder)
    if found:
        run.note(f"Resuming training from checkpoint: {found}")
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


def _warn_of_changes(rules: ResumeRules, resume: Checkpoint, run: Run) -> None:
    """Say which keys have other values than when the checkpoint was written: in silence they would surprise."""
    before, now = (_flat(tree) for tree in (resume.meta.get("hyper_parameters"), redact(plain(run.spec))))
    changed = [key for key in now if before.get(key, now[key]) != now[key]]
    changed = [key for key in changed if not rules.is_free(key)]
    for key in changed[:SHOWN]:
        stays = "; continuing with the checkpoint's" if key in rules.kept else ""
        LOGGER.warning("%s: %s when %s was written, now %s%s", key, before[key], resume.path.name, now[key], stays)
    if len(changed) > SHOWN:
        LOGGER.warning("… and %d more keys differ", len(changed) - SHOWN)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a plain tree."""
    if not isinstance(tree, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


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
