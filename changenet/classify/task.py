"""What the classify task gives to the shared actions. Light: the parts are loaded when used."""

from __future__ import annotations

from fiducial.task import Task

CLASSIFY = Task(
    network="visual_changenet",
    name="classify",
    title="Visual ChangeNet",
    prefix="changenet_model_classify",
    spec="changenet.config:ExperimentSpec",
    check_spec="changenet.classify.checks:check_spec",
    check_data="changenet.classify.inspect:check_data",
    runtime="changenet.classify.runtime:ClassifyRuntime",
    monitors="changenet.classify.metric_names:direction",
    check_weights="changenet.checks:check_weights",
    export_extras="changenet.deepstream:write_deepstream",
)
