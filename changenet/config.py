"""Every spec key of Visual ChangeNet. Both tasks share one spec; ``task`` says which half of it is used."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from changenet.classify.config import ClassifyDataset, ClassifyModel, ClassifyTrain
from changenet.segment.config import SegmentDataset, SegmentTrain
from fiducial.spec import common, engine
from fiducial.spec.common import Lowercase, OptionalText
from fiducial.spec.knob import Section, knob, section
from fiducial.training.sections import (
    BackboneSection,
    OptimSection,
    TensorboardSection,
    precision_knob,
    sync_batchnorm_knob,
)


class DecoderParams(Section):
    """``model.decode_head.decoder_params``."""

    embed_dim: int = knob(
        256,
        "Channels of the decoder at every scale.",
        ge=1,
        le=common.MAX_SIDE,
        schema_range=(1, None),
        aliases=("embed_dims",),
    )


class DecodeHeadSection(Section):
    """``model.decode_head``: the decoder that compares the feature maps of the two images."""

    in_channels: list[int] = knob(
        [128, 256, 384, 384],
        "Channels of the backbone's maps.",
        ignored="the backbone decides how many channels it gives",
    )
    in_index: list[int] = knob([0, 1, 2, 3], "Which maps of the backbone the decoder takes, fine to coarse.")
    feature_strides: list[int] = knob(
        [4, 8, 16, 16],
        "Input pixels per cell of each map, fine to coarse: [4, 8, 16, 16] for FAN, [4, 8, 16, 32] for ViT backbones.",
    )
    align_corners: bool = knob(
        False,
        "Align corner pixels when maps are resized.",
        aliases=("align_corner",),
        ignored="maps are always resized without aligning corners",
    )
    decoder_params: DecoderParams = section(DecoderParams, "Size of the decoder.")
    use_summary_token: bool = knob(False, "Add the summary token of C-RADIO and DINOv3 backbones to every map.")


class ModelSection(Section):
    """``model``: the architecture."""

    backbone: BackboneSection = section(BackboneSection, "Turns each image into feature maps.")
    decode_head: DecodeHeadSection = section(DecodeHeadSection, "Compares the feature maps of the two images.")
    classify: ClassifyModel = section(ClassifyModel, "How a pair becomes one defect score (task classify).")
    precise_msda: bool = knob(
        False,
        "Compute deformable attention in a fixed order: repeatable to the last bit on a GPU, slower.",
        schema=False,
    )


class DatasetSection(Section):
    """``dataset``: where the data is and how it is read."""

    segment: SegmentDataset = section(SegmentDataset, "Data of task segment.")
    classify: ClassifyDataset = section(ClassifyDataset, "Data of task classify.")


class TrainSection(common.TrainSection):
    """``train``: the training loop."""

    classify: ClassifyTrain = section(ClassifyTrain, "Loss of task classify.")
    segment: SegmentTrain = section(SegmentTrain, "Loss of task segment.")
    optim: OptimSection = section(OptimSection, "Optimiser and learning rate.")
    tensorboard: TensorboardSection = section(TensorboardSection, "Pictures and histograms for TensorBoard.")
    precision: str = precision_knob()
    pretrained_model_path: OptionalText = knob(
        None,
        "Checkpoint of a whole ChangeNet to start from, or a run's folder; its optimiser state is not used.",
        template="",
        shown=True,
        weights=True,
    )
    sync_batchnorm: bool = sync_batchnorm_knob()
    feature_cache: common.CacheKind = knob(
        "off",
        "Keep what a frozen backbone makes of each picture, in memory or in the cache folder ($FIDUCIAL_CACHE), where "
        "later runs find it: epochs after the first cost what the trained part costs.",
        schema=False,
    )
    feature_cache_mb: int = knob(
        4096,
        "Memory (of each process) or disk space for them, in MB; when it is full no more are kept.",
        ge=0,
        schema=False,
    )
    use_distributed_sampler: bool = knob(
        False, "Let Lightning split the data between GPUs. Either way no two GPUs see the same rows in an epoch."
    )


class RunModelSection(common.RunModelSection):
    """What ``evaluate`` and ``inference`` have in common."""

    batch_size: int = knob(
        -1,
        "Pairs per batch; -1 takes the batch size of the dataset.",
        template=8,
        ge=-1,
        le=common.MAX_BATCH,
        schema_range=(1, inf),
        shown=True,
    )
    vis_after_n_batches: int = knob(
        16, "Task segment: write pictures of every n-th batch; 1 writes all.", template=1, ge=1, schema_range=(1, inf)
    )
    golden_cache_mb: int = knob(
        1024, "Memory for encoded goldens that several rows share, in MB; 0 encodes each anew.", ge=0, schema=False
    )


class EvaluateSection(RunModelSection):
    """``evaluate``: metrics on the test data."""

    bootstrap: int = knob(
        1000,
        "Resamples of the test rows for the confidence intervals in the report; 0 leaves them out.",
        ge=0,
        le=10**6,
        schema=False,
    )
    random_goldens: bool = knob(
        False, "With num_golden above 1: draw the goldens of a row at random, not the first ones by name.", schema=False
    )


class InferenceSection(RunModelSection, common.ClusterSection):
    """``inference``: scores or masks for data without labels."""


class ExportSection(common.ExportSection):
    """``export``: checkpoint to ONNX."""

    input_width: int = knob(
        224, "Width of the composed input, in pixels.", ge=1, le=common.MAX_SIDE, schema_range=(1, None)
    )
    input_height: int = knob(
        224,
        "Height of the composed input, in pixels: with concat_type linear, image_height times num_input.",
        ge=1,
        le=common.MAX_SIDE,
        schema_range=(1, None),
    )
    input_channel: int = knob(3, "Channels of the exported model's input; the network takes colour images.", ge=1)
    format: Annotated[Literal["onnx", "xdl"], Lowercase] = knob("onnx", "File format. Only onnx can be written.")
    serialize_nvdsinfer: bool = knob(False, "Also write the configuration files that DeepStream needs.")
    deformable_attention: Literal["gather", "grid_sample", "plugin"] = knob(
        "gather",
        "How deformable attention (ViT backbones) is written: gather runs everywhere, grid_sample makes smaller "
        "graphs, plugin is the node of TensorRT's own plugin.",
        schema=False,
    )


class TensorRTSection(engine.TensorRTSection):
    """``gen_trt_engine.tensorrt``: how the engine is built."""

    max_batch_size: int = knob(8, "Largest batch that the engine accepts.", ge=1)


def _unused_size(what: str) -> int | None:
    """A key of TAO 5."""
    made: int | None = knob(
        None, f"{what} of the input, in TAO 5.", ge=1, schema=False, ignored="the ONNX file says what its inputs are"
    )
    return made


class GenTrtEngineSection(engine.GenTrtEngineSection):
    """``gen_trt_engine``: ONNX to a TensorRT engine."""

    input_channel: int | None = _unused_size("Channels")
    input_width: int | None = _unused_size("Width")
    input_height: int | None = _unused_size("Height")
    tensorrt: TensorRTSection = section(TensorRTSection, "How the engine is built.")


class ExperimentSpec(common.ExperimentBase):
    """The spec of Visual ChangeNet."""

    task: Literal["segment", "classify"] = knob(
        "segment",
        "classify scores a part against its golden reference; segment marks which pixels changed.",
        shown=True,
    )
    model: ModelSection = section(ModelSection, "The architecture.")
    dataset: DatasetSection = section(DatasetSection, "Where the data is and how it is read.")
    train: TrainSection = section(TrainSection, "The training loop.")
    evaluate: EvaluateSection = section(EvaluateSection, "Metrics on the test data.")
    inference: InferenceSection = section(InferenceSection, "Scores or masks for data without labels.")
    export: ExportSection = section(ExportSection, "Checkpoint to ONNX.")
    quantize: common.QuantizeSection = section(common.QuantizeSection, "Post-training quantization.")
    gen_trt_engine: GenTrtEngineSection = section(GenTrtEngineSection, "ONNX to a TensorRT engine.")
