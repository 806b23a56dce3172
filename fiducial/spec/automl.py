"""``automl``: what a search of spec values is told, by TAO's names."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from fiducial.spec.knob import Section, knob

__all__ = ["Algorithm", "AutomlSection", "ObjectiveSection"]

Algorithm = Literal["bayesian", "bfbo", "hyperband", "asha", "bohb", "dehb", "hyperband_es", "pbt", "random"]
SHORT = {"b": "bayesian", "h": "hyperband", "hes": "hyperband_es"}
REFUSED = ("llm", "hybrid", "autoresearch")
"""Algorithms of TAO's that ask a service elsewhere."""
_REFUSED_KEYS = ("llm_", "research_program")
_Blank = BeforeValidator(lambda value: None if value == "" else value)
_Text = Annotated[str | None, _Blank]


def _known_algorithm(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = SHORT.get(value.lower(), value.lower())
    names = get_args(Algorithm)
    if name in REFUSED:
        raise ValueError(f"it asks a language model elsewhere, which is not done here: use one of {', '.join(names)}")
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        raise ValueError(f"{f'did you mean {close[0]}? ' if close else ''}use one of {', '.join(names)}")
    return name


class ObjectiveSection(Section):
    """One entry of ``automl.objectives``."""

    metric: str = knob(
        "", "A validation metric, latency (milliseconds per item) or size (millions of parameters).", required=True
    )
    direction: Literal["minimize", "maximize"] | None = knob(
        None, "Which way it is better; null takes the metric's own, which it must not contradict."
    )
    weight: float = knob(1.0, "How much it counts.", gt=0)
    scale: float | None = knob(
        None, "What counts as 1 of it; null is 1, 100 for percent. Must be given for latency and size.", gt=0
    )


class AutomlSection(Section):
    """``automl``: a search for better spec values."""

    results_dir: _Text = knob(None, "Folder of the search; empty means <results_dir>/automl.")
    automl_algorithm: Annotated[Algorithm, BeforeValidator(_known_algorithm)] = knob(
        "bayesian",
        "How values are chosen and which trainings end early. docs/automl.md says what each is.",
        aliases=("algorithm",),
        shown=True,
    )
    metric: str = knob(
        "kpi",
        "The validation metric that is to get better; kpi: the one that chooses the best checkpoint; loss: val_loss.",
        shown=True,
    )
    direction: Literal["minimize", "maximize"] | None = knob(
        None, "Which way the metric is better; null takes the metric's own, which it must not contradict."
    )
    automl_max_recommendations: int | None = knob(
        None,
        "Trainings that are tried; null: 20, or what the brackets of hyperband come to.",
        ge=1,
        aliases=("num_recommendations", "n_trials"),
        shown=True,
    )
    automl_max_trials: int | None = knob(
        None, "The same, for asha; both set, the smaller one counts.", ge=1, aliases=("max_trials",)
    )
    automl_min_top_configs: int = knob(
        5,
        "asha without a number of trainings ends when so many were trained to the end.",
        ge=1,
        aliases=("min_top_configs",),
    )
    automl_max_epochs: int | None = knob(
        None,
        "Epochs of a training that is not ended early, in units of epoch_multiplier, of the hyperband family and asha; "
        "null: train.num_epochs.",
        ge=2,
    )
    automl_min_epochs: int = knob(1, "Least epochs of a training, in units of epoch_multiplier.", ge=1)
    automl_reduction_factor: int = knob(3, "One of so many trainings goes on from each rung.", ge=2)
    epoch_multiplier: int = knob(1, "Epochs of one unit of automl_max_epochs and automl_min_epochs.", ge=1)
    automl_max_concurrent: int | None = knob(
        None,
        "Trainings at a time, of this process; null: one, and for asha and bfbo one on each GPU, up to four.",
        ge=1,
        le=1024,
        shown=True,
    )
    automl_kde_samples: int = knob(64, "Candidates that bohb draws from its model.", ge=1, aliases=("kde_samples",))
    automl_top_n_percent: float = knob(
        15.0, "Share of the trainings that bohb takes as good, in percent.", gt=0, le=100, aliases=("top_n_percent",)
    )
    automl_min_points_in_model: int = knob(
        10, "Trainings after which bohb uses its model.", ge=1, aliases=("min_points_in_model",)
    )
    automl_mutation_factor: float = knob(
        0.5, "How far dehb goes along the difference of two trainings.", gt=0, le=2, aliases=("mutation_factor",)
    )
    automl_crossover_prob: float = knob(
        0.5, "Share of the values that dehb takes from the mutant.", ge=0, le=1, aliases=("crossover_prob",)
    )
    automl_early_stop_threshold: float = knob(
        0.1,
        "hyperband_es ends a training by its extrapolated curve where the fit explains more than this (R²).",
        ge=0,
        lt=1,
        aliases=("early_stop_threshold",),
    )
    automl_min_early_stop_epochs: int = knob(
        3, "Validations that hyperband_es waits for before it extrapolates.", ge=3, aliases=("min_early_stop_epochs",)
    )
    automl_population_size: int = knob(10, "Trainings of a generation of pbt.", ge=2, aliases=("population_size",))
    automl_max_generations: int = knob(20, "Generations of pbt.", ge=1, aliases=("max_generations",))
    automl_eval_interval: int = knob(10, "Epochs of a generation of pbt.", ge=1, aliases=("eval_interval",))
    automl_perturbation_factor: float = knob(
        1.2, "What pbt multiplies or divides numbers by.", gt=1, aliases=("perturbation_factor",)
    )
    automl_hyperparameters: list[str] | None = knob(
        None, "Keys to search; null: those that the key reference marks as searched.", shown=True
    )
    pinned: list[str] = knob([], "Keys, or beginnings of keys, that keep the spec's value.")
    custom_param_ranges: dict[str, Any] | None = knob(
        None,
        "Where to look, by key: valid_min, valid_max, valid_options, option_weights, math_cond, depends_on.",
        aliases=("automl_range_override",),
        shown=True,
    )
    override_automl_disabled_params: bool = knob(
        False, "Also search keys of automl_hyperparameters that are marked as not to be searched."
    )
    automl_delete_intermediate_ckpt: bool = knob(True, "Remove the checkpoints of all trainings but the best one.")
    automl_checkpoint_retention_strategy: Literal["auto", "best", "terminal"] = knob(
        "auto",
        "best: a training counts by its best epoch, whose checkpoint is kept; terminal: by its last one. auto is best.",
    )
    objectives: list[ObjectiveSection] = knob(
        [], "Other things that are to get better too, each with its weight: the sum of all decides."
    )
    metric_weight: float = knob(1.0, "Weight of metric beside the objectives.", gt=0)
    metric_scale: float | None = knob(
        None, "What counts as 1 of metric beside the objectives; null is 1, 100 for percent.", gt=0
    )
    include_latency: bool = knob(False, "Add the objective latency, with latency_weight and latency_scale.")
    latency_weight: float = knob(1.0, "Weight of the latency.", gt=0)
    latency_scale: float = knob(10.0, "Milliseconds per item that count as 1.", gt=0)
    multi_objective: bool = knob(False, "Has no effect.", ignored="objectives says what counts")
    run_baseline: bool = knob(True, "Begin with the values of the spec.")
    baseline_metric: _Text = knob(None, "Has no effect.", ignored="the first training measures metric itself")
    run_final_evaluation: bool | None = knob(
        None, "Evaluate the best model at the end, on the data that evaluate reads; null: where they are there."
    )
    final_evaluation_metric: _Text = knob(None, "Test metric to show at the end; null: that of the same name.")
    reuse_best_metric_for_final_evaluation: bool = knob(
        False, "Take the validation's number in place of an evaluation on the test set."
    )
    storage: _Text = knob(
        None,
        "Where the search is kept: a database URL (postgresql+psycopg://user@host/name, mysql+…, sqlite:///file), or a "
        "journal file; null: journal.log in the folder of the search.",
    )
    study_name: _Text = knob(None, "Name of the search in its storage; null: network and task.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = knob(
        None, "Seed of the choice of values and of every training's own seed; null: train.seed."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_service(cls, values: Any) -> Any:
        asked = sorted(key for key in values if str(key).startswith(_REFUSED_KEYS)) if isinstance(values, dict) else []
        if asked:
            raise ValueError(f"{', '.join(asked)}: language models elsewhere are not asked; remove it")
        return values
