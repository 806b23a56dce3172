"""What batches of P classes with K pictures need. No torch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_batches", "check_shape"]

Wrong = tuple[str, str, str]
"""A key, what was found, what to do."""


def check_shape(batch_size: int, per_class: int) -> Wrong | None:
    """Why a batch of ``batch_size`` pictures, ``per_class`` of each class, teaches nothing; None when it can.

    P = ``batch_size`` / ``per_class``; P and K must be 2 or more: without a second class, or a second picture of one,
    there is nothing to compare, and the loss is 0.
    """
    key, found = "train.batch_size", f"{batch_size} / dataset.num_instance {per_class}"
    if per_class < 2:
        return "dataset.num_instance", f"{per_class}: no picture has another of its class", "use 2 or more, such as 4"
    if batch_size % per_class:
        low = max(2, batch_size // per_class) * per_class
        return key, f"{found} is no whole number of classes", f"use {low} or {low + per_class}"
    if batch_size == per_class:
        found += " = 1 class in a batch: nothing to tell it from, the loss would be 0"
        return key, found, f"use {2 * per_class} or more, or a smaller dataset.num_instance"
    return None


def check_batches(labels: Sequence[int], *, batch_size: int, per_class: int) -> Wrong | None:
    """The same for a data set with these classes: also why it has too few of them, or too few pictures."""
    if wrong := check_shape(batch_size, per_class):
        return wrong
    key, classes, wanted = "train.batch_size", len(set(labels)), batch_size // per_class
    if classes < 2:
        return "dataset.train_dataset", f"{classes} class with pictures", "train on two classes or more"
    if wanted > classes:
        found = f"{batch_size} / dataset.num_instance {per_class} = {wanted} classes in a batch"
        fix = f"use at most {classes * per_class}, or a larger dataset.num_instance"
        return key, f"{found}, and {classes} have pictures", fix
    if len(labels) < batch_size:
        return key, f"{batch_size}, and there are {len(labels)} pictures", "use a smaller batch, or more pictures"
    return None
