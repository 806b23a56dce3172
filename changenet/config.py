"""Every spec key of Visual ChangeNet. Both tasks share one spec; ``task`` says which half of it is used."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field

from changenet.classify.config import ClassifyDataset, ClassifyModel, ClassifyTrain
from changenet.segment.config import SegmentDataset, SegmentTrain
from fiducial.backbones.names import BACKBONES
from fiducial.spec import common
from fiducial.spec.common import OptionalText
from fiducial.spec.knob import Section, knob, section


class BackboneSection(Section):
    """``model.backbone``: the network that turns each image into feature maps."""

    type: str = knob("fan_small_12_p4_hybrid", "Architecture of the backbone.", options=tuple(BACKBONES))
    feat_downsample: bool = knob(False, "Halve the last feature map once more (FAN only).")
    pretrained_backbone_path: OptionalText = knob(
        None, "File with backbone weights to start from (.pth, .ckpt, .pt or .safetensors).", template=""
    )
    freeze_backbone: bool = knob(False, "Keep the backbone as it is while training; needs pretrained_backbone_path.")
    activation_checkpointing: bool = knob(
        False, "Recompute activations in the backward pass: less memory, slower steps.", schema=False
    )


class DecoderParams(Section):
    """``model.decode_head.decoder_params``."""

    embed_dim: int = knob(256, "Channels of the decoder at every scale.", ge=1, aliases=("embed_dims",))


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


class OptimSection(Section):
    """``train.optim``: optimiser and learning rate."""

    monitor_name: str = knob(
        "val_loss", "Metric that chooses the best checkpoint where train.checkpointer.monitor does not say another."
    )
    optim: Literal["adamw", "adam", "sgd"] = knob("adamw", "Optimiser.")
    lr: float = knob(1e-4, "Learning rate of the first epoch.", ge=0, schema_range=(0, inf), automl=True)
    policy: Literal["linear", "step"] = knob(
        "linear", "linear lowers the rate evenly towards zero; step divides it by 10 after each third of the epochs."
    )
    momentum: float = knob(
        0.9, "Momentum of sgd; the others do not use it.", ge=0, usual=(0, 1), automl=True, math_cond="> 0.0"
    )
    weight_decay: float = knob(
        0.01, "How strongly weights are pulled towards zero.", ge=0, usual=(0, 1), automl=True, math_cond="> 0.0"
    )
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] | None = knob(
        None, "Averaging factors of adam and adamw; null takes 0.9 and 0.999.", schema=False
    )


class TensorboardSection(Section):
    """``train.tensorboard``: pictures and histograms. Scalars are always written."""

    enabled: bool = knob(False, "Write input pictures and histograms of the weights.", aliases=("enable",))
    infrequent_logging_frequency: int = knob(
        2, "Write them every this many epochs; 0 never.", ge=0, schema_range=(0, inf)
    )


class TrainSection(common.TrainSection):
    """``train``: the training loop."""

    classify: ClassifyTrain = section(ClassifyTrain, "Loss of task classify.")
    segment: SegmentTrain = section(SegmentTrain, "Loss of task segment.")
    optim: OptimSection = section(OptimSection, "Optimiser and learning rate.")
    tensorboard: TensorboardSection = section(TensorboardSection, "Pictures and histograms for TensorBoard.")
    precision: str = knob(
        "32-true",
        "Number format of training, in Lightning's words.",
        options=("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"),
        value_type="string",
    )
    pretrained_model_path: OptionalText = knob(
        None, "Checkpoint of a whole ChangeNet to start from; its optimiser state is not used.", template=""
    )
    sync_batchnorm: bool = knob(False, "Compute batch statistics over all GPUs.")
    use_distributed_sampler: bool = knob(
        False, "Let Lightning split the data between GPUs. Either way no two GPUs see the same rows in an epoch."
    )


class RunModelSection(common.RunModelSection):
    """What ``evaluate`` and ``inference`` have in common."""

    batch_size: int = knob(
        -1, "Pairs per batch; -1 takes the batch size of the dataset.", template=8, ge=-1, schema_range=(1, inf)
    )
    vis_after_n_batches: int = knob(
        16, "Task segment: write pictures of every n-th batch; 1 writes all.", template=1, ge=1, schema_range=(1, inf)
    )
    is_quantized: bool = knob(False, "The checkpoint is a result of the quantize action.", schema=False)
    golden_cache_mb: int = knob(
        1024, "Memory for encoded goldens that several rows share, in MB; 0 encodes each anew.", ge=0, schema=False
    )


class EvaluateSection(RunModelSection):
    """``evaluate``: metrics on the test data."""

    bootstrap: int = knob(
        1000,
        "Resamples of the test rows for the confidence intervals in the report; 0 leaves them out.",
        ge=0,
        schema=False,
    )
    random_goldens: bool = knob(
        False, "With num_golden above 1: draw the goldens of a row at random, not the first ones by name.", schema=False
    )


class InferenceSection(RunModelSection):
    """``inference``: scores or masks for data without labels."""


class ExportSection(common.ExportSection):
    """``export``: checkpoint to ONNX."""

    input_width: int = knob(224, "Width of the composed input, in pixels.", ge=1)
    input_height: int = knob(
        224, "Height of the composed input, in pixels: with concat_type linear, image_height times num_input.", ge=1
    )
    serialize_nvdsinfer: bool = knob(False, "Also write the configuration files that DeepStream needs.")
    is_quantized: bool = knob(False, "The checkpoint is a result of the quantize action.", schema=False)
    deformable_attention: Literal["gather", "grid_sample", "plugin"] = knob(
        "gather",
        "How deformable attention (ViT backbones) is written: gather runs everywhere, grid_sample makes smaller "
        "graphs, plugin is the node of TensorRT's own plugin.",
        schema=False,
    )


class TensorRTSection(common.TensorRTSection):
    """``gen_trt_engine.tensorrt``: how the engine is built."""

    max_batch_size: int = knob(8, "Largest batch that the engine accepts.", ge=1)


class GenTrtEngineSection(common.GenTrtEngineSection):
    """``gen_trt_engine``: ONNX to a TensorRT engine."""

    tensorrt: TensorRTSection = section(TensorRTSection, "How the engine is built.")


class ExperimentSpec(common.ExperimentBase):
    """The spec of Visual ChangeNet."""

    task: Literal["segment", "classify"] = knob(
        "segment", "classify scores a part against its golden reference; segment marks which pixels changed."
    )
    model: ModelSection = section(ModelSection, "The architecture.")
    dataset: DatasetSection = section(DatasetSection, "Where the data is and how it is read.")
    train: TrainSection = section(TrainSection, "The training loop.")
    evaluate: EvaluateSection = section(EvaluateSection, "Metrics on the test data.")
    inference: InferenceSection = section(InferenceSection, "Scores or masks for data without labels.")
    export: ExportSection = section(ExportSection, "Checkpoint to ONNX.")
    quantize: common.QuantizeSection = section(common.QuantizeSection, "Post-training quantization.")
    gen_trt_engine: GenTrtEngineSection = section(GenTrtEngineSection, "ONNX to a TensorRT engine.")
