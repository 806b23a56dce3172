"""Where scalars go: TensorBoard always, Weights & Biases only where the spec asks for it and the user is logged in."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from fiducial.errors import MissingDependencyError, optional
from fiducial.run.console import LOGGER


def build_loggers(spec: Any, folder: Path) -> list[Logger]:
    """The loggers of a training run. Nothing is sent anywhere unless the spec says so."""
    # TAO-compat: always version_1, so that a resumed run continues the same event folder
    loggers: list[Logger] = [TensorBoardLogger(str(folder), name="lightning_logs", version="version_1")]
    if spec.wandb.enable and _logged_in():
        try:
            loggers.append(_wandb(spec.wandb, folder))
        except MissingDependencyError:
            LOGGER.info("wandb is enabled and you are logged in, but not installed: pip install 'fiducial[wandb]'")
        except Exception as error:  # whatever their service answers must not stop a training
            LOGGER.warning("Weights & Biases is not used: %s", error)
    return loggers


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _wandb(section: Any, folder: Path) -> Logger:
    optional("wandb", extra="wandb")
    from pytorch_lightning.loggers import WandbLogger

    stamp = datetime.now().strftime("%m:%d:%y_%H:%M:%S")
    settings: dict[str, Any] = {"reinit": section.reinit, "sync_tensorboard": section.sync_tensorboard}
    return WandbLogger(
        name=f"{section.name}_{stamp}",
        save_dir=str(folder),
        id=section.run_id or None,
        project=section.project,
        entity=section.entity or None,
        group=section.group or None,
        tags=list(section.tags),
        log_model=False,
        save_code=section.save_code,
        **settings,
    )
