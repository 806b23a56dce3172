"""How the shared Trainer runs a task's module. No torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrainerPolicy"]


@dataclass(frozen=True)
class TrainerPolicy:
    """How the shared Trainer runs a task's module: what the spec says about it, in the Trainer's words."""

    precision: str = "32-true"
    """Number format of training, in Lightning's words."""
    half_on_cpu: str = "bf16-mixed"
    """What a CPU does where ``16-mixed`` is wanted, which needs a GPU."""
    evaluation_precision: str = "32-true"
    """The same of ``evaluate`` and ``inference``."""
    manual: bool = False
    """Whether the module optimises by hand, through ``TrainingModule.optimize``."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    gradient_clip: float | None = None
    """Largest norm of the gradient."""
    sync_batchnorm: bool = False
    find_unused_parameters: bool = False
    """Whether some parameters may get no gradient in a step (several devices then search for them)."""
    sanity_batches: int = 2
    """Validation batches that are tried before training; 0 where a few of them mean nothing."""
    pictures_every: int = 0
    """Epochs between two sets of pictures and histograms in TensorBoard; 0 writes none."""
