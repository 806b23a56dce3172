"""What the segment task gives to the shared actions. Light: the parts are loaded when used."""

from __future__ import annotations

from fiducial.task import Task

SEGMENT = Task(
    network="visual_changenet",
    name="segment",
    title="Visual ChangeNet",
    prefix="changenet_model_segment",
    spec="changenet.config:ExperimentSpec",
    check_spec="changenet.segment.checks:check_spec",
    check_data="changenet.segment.inspect:check_data",
    runtime="changenet.segment.runtime:SegmentRuntime",
    monitors="changenet.segment.metric_names:direction",
    check_weights="changenet.checks:check_weights",
    export_extras="changenet.deepstream:write_deepstream",
)
