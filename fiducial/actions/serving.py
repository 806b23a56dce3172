"""Adding what an action wrote to a server's model repository, where its spec names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiducial.deploy.card import ModelCard
from fiducial.deploy.triton import add_to_repository
from fiducial.run.console import LOGGER
from fiducial.run.run import writable_folder

__all__ = ["prepare", "publish"]


def prepare(section: Any, key: str) -> None:
    """Raises: SpecError when the folder that the section names cannot be written to."""
    if section.repository:
        folder = Path(section.repository).expanduser()
        writable_folder(folder, f"{key}.repository", "name a folder that can be written to")


def publish(section: Any, model: Path, *, batch_size: int, most: int | None = None) -> tuple[Path, ...]:
    """:func:`add_to_repository` as a spec's ``triton`` section says, which may be to do nothing.

    ``most``: how many items the model itself takes at a time, where it is not any number.
    """
    if not section.repository:
        return ()
    written = add_to_repository(
        Path(section.repository).expanduser(),
        section.name or model.stem,
        model,
        ModelCard.read(model),
        batch_size=batch_size,
        max_batch_size=min(section.max_batch_size, most or section.max_batch_size),
    )
    LOGGER.info("Triton Inference Server: %s", written[0])
    return written
