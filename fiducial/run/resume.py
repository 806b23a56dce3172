"""Where a checkpoint stands in its training, told to Lightning in one form whatever hook saved the file.

Lightning's own account, ``loops``, differs with the moment of saving: the end of a batch, of a validation, of an epoch,
or an exception. Continuing from each is its own case there, and some skip a batch or a validation. Here the place is
read from the counters, and they are rewritten as if training had stopped cleanly before the next thing to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fiducial.checkpoints.finite import not_finite
from fiducial.checkpoints.writing import AtomicCheckpointIO
from fiducial.errors import CheckpointError, TrainingError

_COUNTERS = ("ready", "started", "processed", "completed")


@dataclass(frozen=True)
class Place:
    """What comes next: batch ``batch`` of epoch ``epoch`` (both from 0), or the validation after its last batch."""

    epoch: int
    batch: int = 0
    validate: bool = False


class ResumingCheckpointIO(AtomicCheckpointIO):
    """Hands Lightning every checkpoint with its place made plain, and to the callback ``Position``.

    Writes none that could not be continued from: whatever is on the disk is from before a divergence.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises: TrainingError when the weights are no longer finite; otherwise as the class it extends."""
        check_finite(checkpoint, f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}")
        super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises: CheckpointError for a file that does not say where its training stands."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        place = place_of(checkpoint, path)
        _rewrite(checkpoint["loops"]["fit_loop"], place)
        checkpoint.setdefault("callbacks", {})["Position"] = asdict(place)
        return checkpoint


def check_finite(checkpoint: Mapping[str, Any], when: str) -> None:
    """Raises: TrainingError when there is nothing in a checkpoint's content that training could go on with."""
    if name := not_finite(checkpoint):
        fix = (
            "give the same command with a lower learning rate: it goes on from the last file that was written, or anew"
        )
        raise TrainingError("training", f"diverged: {name} is no longer finite in {when}, and is not saved", fix)


def place_of(checkpoint: Any, path: str | Path) -> Place:
    """Where training continues from a Lightning checkpoint. Raises: CheckpointError when it does not say."""
    try:
        fit = checkpoint["loops"]["fit_loop"]
        epoch, batch = fit["epoch_progress"]["current"], fit["epoch_loop.batch_progress"]
        done = int(epoch["completed"])
        if epoch["processed"] > done:  # the hooks at the end of an epoch
            return Place(done + 1)
        if epoch["ready"] == done:
            return Place(done)
        trained = int(batch["current"]["processed"])
        if trained < batch["current"]["ready"] or not batch["is_last_batch"]:
            return Place(done, trained)
        return Place(done + 1) if _validated(fit) else Place(done, trained, validate=True)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        found = "holds weights, but not where its training stood"
        raise CheckpointError(str(path), found, "start a new training from it: train.pretrained_model_path") from None


def _validated(fit: Mapping[str, Any]) -> bool:
    progress = fit["epoch_loop.val_loop.batch_progress"]
    total = progress["total"]
    return bool(progress["is_last_batch"] and 0 < total["ready"] == total["completed"])


def _rewrite(fit: dict[str, Any], place: Place) -> None:
    epoch, batch = fit["epoch_progress"], fit["epoch_loop.batch_progress"]
    validation = fit["epoch_loop.val_loop.batch_progress"]
    in_batch_hook = batch["total"]["completed"] < batch["total"]["processed"] == batch["total"]["ready"]
    in_validation_hook = epoch["current"]["processed"] == epoch["current"]["completed"] == place.epoch - 1
    if (in_batch_hook or in_validation_hook) and not place.validate:
        fit["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # the step axis of logged scalars
    begun = int(place.batch > 0)
    for counted in (epoch["current"], epoch["total"]):
        counted.update(ready=place.epoch + begun, started=place.epoch + begun)
        counted.update(processed=place.epoch, completed=place.epoch)
    batch["current"].update(dict.fromkeys(_COUNTERS, place.batch))
    batch["total"].update(dict.fromkeys(_COUNTERS, batch["total"]["processed"]))
    batch["is_last_batch"] = place.validate
    # a validation that had begun its first batch is what Lightning runs again, from its first batch
    for counted in (validation["current"], validation["total"]):
        counted.update(dict.fromkeys(_COUNTERS, 0), ready=int(place.validate), started=int(place.validate))
    validation["is_last_batch"] = False
