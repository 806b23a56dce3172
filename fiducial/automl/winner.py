"""What a search leaves: the best training's spec and place, and no checkpoints of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fiducial.automl.trial import folder_of
from fiducial.checkpoints.atomic import save_atomically
from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES, WINNER
from fiducial.redact import STARS
from fiducial.spec.compose import to_yaml

__all__ = ["BEST_SPEC", "remove_checkpoints", "write_winner"]

BEST_SPEC = "best_spec.yaml"


def write_winner(folder: Path, number: int, tree: Mapping[str, Any], facts: Mapping[str, Any], remark: str) -> None:
    """Write ``best_spec.yaml`` and ``best.json``, and make ``best`` point to the training's folder."""
    spec = to_yaml(tree)
    lines = [f"# Training {number} of a search: {remark}"]
    if STARS in spec:
        lines.append(f"# Fill in what is {STARS}: passwords and keys are not kept.")
    save_atomically(folder / BEST_SPEC, partial(_write, "\n".join([*lines, spec])))
    save_atomically(folder / WINNER, partial(_write, json.dumps({**facts, "folder": folder_of(number)}, indent=1)))
    link = folder / "best"
    if link.is_symlink() or not link.exists():
        with suppress(OSError):  # a disk without links: best.json says it too
            part = folder / ".best.part"
            part.unlink(missing_ok=True)
            part.symlink_to(folder_of(number), target_is_directory=True)
            part.replace(link)


def remove_checkpoints(folder: Path, keep: Collection[int]) -> int:
    """Remove the checkpoints of all trainings but these; returns how many files."""
    kept = {folder_of(number) for number in keep}
    count = 0
    for trial in folder.glob("trial_*"):
        if trial.name in kept or not trial.is_dir():
            continue
        for path in (trial / "train").glob("*"):
            if path.name.endswith(CHECKPOINT_SUFFIXES):
                path.unlink(missing_ok=True)
                count += 1
    return count


def copy_checkpoint(source: Path, target: Path, epoch: int) -> Path | None:
    """Give a training the checkpoint that another one wrote after an epoch (from 1); None when there is none."""
    found = sorted(source.glob(f"model_epoch_{epoch - 1:03d}_step_*.pth"))
    if not found:
        return None
    target.mkdir(parents=True, exist_ok=True)
    copied = target / found[-1].name
    if not copied.exists():
        part = target / f".{copied.name}.part"
        shutil.copyfile(found[-1], part)
        part.replace(copied)
    return copied


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())
