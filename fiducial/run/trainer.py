"""The Lightning Trainer of each action, configured by the spec."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.strategies import DDPStrategy

from fiducial.run.callbacks import Interrupt, Pictures, Reporter, SharedMemory, on_terminal, progress
from fiducial.run.console import LOGGER
from fiducial.run.devices import Devices
from fiducial.run.keep import BestCheckpoint, PeriodicCheckpoint
from fiducial.run.loggers import build_loggers
from fiducial.run.optimizers import NewRates, SameOptimizer, StopDiverged
from fiducial.run.resume import ResumingCheckpointIO
from fiducial.run.run import Run
from fiducial.run.seeds import Position, StepSeed
from fiducial.task import Task
from fiducial.training.policy import TrainerPolicy

MAX_LOG_INTERVAL = 50
"""Training steps between two values of a logged scalar, at most."""


def training_trainer(
    task: Task[Any], run: Run, devices: Devices, reporter: Reporter, *, num_batches: int, rate: float = 1.0
) -> pl.Trainer:
    """The Trainer of ``train``, with every callback a run needs; ``rate``: a changed learning rate, new to old."""
    train, policy = run.spec.train, task.policy(run.spec)
    _quiet()
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        num_nodes=devices.num_nodes,
        strategy=_strategy(devices, policy),
        precision=_precision(policy.precision, devices, policy.half_on_cpu),
        # by hand, accumulating and clipping are the module's: Lightning refuses its own
        accumulate_grad_batches=1 if policy.manual else policy.accumulate,
        gradient_clip_val=None if policy.manual else policy.gradient_clip,
        num_sanity_val_steps=policy.sanity_batches,
        max_epochs=train.num_epochs,
        check_val_every_n_epoch=train.validation_interval,
        sync_batchnorm=_sync_batchnorm(policy, devices),
        use_distributed_sampler=False,  # the sampler itself gives every rank its own positions
        deterministic=None,
        default_root_dir=str(run.folder),
        logger=build_loggers(run.spec, run.folder),
        log_every_n_steps=max(1, min(MAX_LOG_INTERVAL, num_batches // 10)),
        callbacks=[*_callbacks(task, run, policy, reporter), *([NewRates(rate)] if rate != 1 else [])],
        enable_checkpointing=True,
        enable_model_summary=False,
        enable_progress_bar=on_terminal(),
        plugins=[ResumingCheckpointIO(run.spec.encryption_key)],
    )


def evaluation_trainer(run: Run, devices: Devices, policy: TrainerPolicy) -> pl.Trainer:
    """The Trainer of ``evaluate`` and ``inference``: nothing logged, nothing saved."""
    _quiet()
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        num_nodes=devices.num_nodes,
        strategy=_strategy(devices, policy),
        precision=_precision(policy.evaluation_precision, devices, policy.half_on_cpu),
        use_distributed_sampler=False,
        default_root_dir=str(run.folder),
        logger=False,
        callbacks=[progress()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=on_terminal(),
    )


@contextmanager
def plain_interrupts(trainer: pl.Trainer) -> Iterator[None]:
    """An interrupt as KeyboardInterrupt again: Lightning turns it into ``exit(1)``."""
    try:
        yield
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise


def _strategy(devices: Devices, policy: TrainerPolicy) -> Any:
    if devices.num_processes == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=policy.find_unused_parameters)


def _precision(wanted: str, devices: Devices, on_cpu: str) -> Any:
    if devices.accelerator == "cpu" and wanted in ("16-mixed", "16"):
        LOGGER.warning("precision %s needs a GPU: using %s on the CPU", wanted, on_cpu)
        return on_cpu
    return wanted


def _sync_batchnorm(policy: TrainerPolicy, devices: Devices) -> bool:
    wanted = policy.sync_batchnorm and devices.num_processes > 1
    if wanted and devices.accelerator == "cpu":
        LOGGER.warning("batch statistics over all devices work on GPUs only: every process keeps its own")
        return False
    return wanted


def _callbacks(task: Task[Any], run: Run, policy: TrainerPolicy, reporter: Reporter) -> list[Callback]:
    train = run.spec.train
    kept = train.checkpointer
    monitor, mode = task.monitor(train)
    replaces = kept.enable_topk and kept.replace_periodic
    callbacks: list[Callback] = [reporter, progress(), Position(), Interrupt(), SharedMemory()]
    callbacks += [SameOptimizer(), StopDiverged()]
    if train.seed >= 0:
        callbacks.append(StepSeed(train.seed))
    if policy.pictures_every:
        callbacks.append(Pictures(policy.pictures_every))
    if train.enable_lr_monitor:
        callbacks.append(LearningRateMonitor("step"))
    if kept.enable_topk:
        callbacks.append(
            BestCheckpoint(
                Path(kept.dirpath).expanduser() if kept.dirpath else run.folder,
                monitor=monitor,
                mode=mode,
                top_k=1 if replaces else kept.save_top_k,
                template=kept.filename,
                insert_names=kept.auto_insert_metric_name,
                latest=run.folder / f"{task.prefix}_latest.pth" if replaces else None,
            )
        )
    callbacks.append(  # the last, so that its files hold the rank of the best ones
        PeriodicCheckpoint(
            run.folder,
            task.prefix,
            every=train.checkpoint_interval,
            unit=train.checkpoint_interval_unit,
            monitor=monitor,
            mode=mode,
            keep=train.keep_checkpoints,
            periodic=not replaces,
        )
    )
    return callbacks


def _quiet() -> None:
    """Lightning's advice that does not fit: our loaders are sized by the spec and continue where they stopped."""
    for pattern in (
        ".*does not have many workers.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Found .* module.s. in eval mode.*",
        ".*Trying to infer the `batch_size`.*",
        ".*It is recommended to use `self.log.*",
        ".*treespec, LeafSpec.*",
        ".*You have overridden `transfer_batch_to_device`.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
