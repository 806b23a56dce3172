"""A search for better spec values: many trainings, each its own process, chosen and ended early by Optuna.

``space`` and ``goal`` say what is searched and what for, ``algorithms`` how; ``study`` keeps it, ``search`` runs it,
each ``trial`` a process; ``record`` is what there is to show, in the console (``table``) and as a page (``page``).
Nothing here imports torch; Optuna's Gaussian process (bayesian, bfbo) does.
"""

__all__: list[str] = []
