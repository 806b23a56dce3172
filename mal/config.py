"""Every spec key of MAL."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field

from fiducial.spec import common, engine
from fiducial.spec.common import OptionalText, Text
from fiducial.spec.knob import Section, knob, section
from fiducial.training.sections import cache_knob, cache_mb_knob

__all__ = ["ExperimentSpec"]

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
Thresholds = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=3)]

ARCHITECTURES = (
    "vit-deit-tiny/16",
    "vit-deit-small/16",
    "vit-mae-base/16",
    "vit-mae-large/16",
    "vit-mae-huge/14",
    "fan_tiny_8_p4_hybrid",
    "fan_small_12_p4_hybrid",
    "fan_base_16_p4_hybrid",
    "fan_large_16_p4_hybrid",
)


class DatasetSection(Section):
    """``dataset``: annotated pictures."""

    type: Literal["coco", "yolo", "voc"] = knob(
        "coco",
        "Format of the annotations: coco is one JSON file; yolo and voc are folders with a .txt or .xml file for each "
        "picture. A folder is recognised by what lies in it.",
        options=("coco", "yolo", "voc"),
    )
    train_ann_path: Text = knob(
        "", "Annotations to train on; only their boxes are used.", shown=True, actions=("train",)
    )
    train_img_dir: Text = knob(
        "", "Folder, archive or URL of the pictures to train on.", shown=True, actions=("train",)
    )
    val_ann_path: Text = knob(
        "",
        "Annotations for validation and evaluate; empty trains without validation.",
        shown=True,
        actions=("train", "evaluate"),
    )
    val_img_dir: Text = knob(
        "",
        "Folder, archive or URL of the pictures for validation and evaluate.",
        shown=True,
        actions=("train", "evaluate"),
    )
    min_obj_size: float = knob(
        2048,
        "Boxes to train on are larger than this, in square pixels: 2048 is about 45 x 45.",
        ge=0,
        schema_range=(None, None),
    )
    max_obj_size: float = knob(
        1e10, "Boxes to train on are smaller than this, in square pixels.", gt=0, schema_range=(None, None)
    )
    num_workers_per_gpu: int = knob(
        2,
        "Processes that load data for each GPU; 0 loads in the main process.",
        ge=0,
        schema_range=(None, None),
        le=common.MAX_WORKERS,
    )
    load_mask: bool = knob(True, "Read the masks of validation and evaluate, which mIoU needs.")
    crop_size: int = knob(
        512,
        "Side of the crops that the network sees, in pixels.",
        ge=16,
        usual=(256, None),
        schema_range=(256, inf),
        le=common.MAX_SIDE,
        shown=True,
    )
    point_size: float | None = knob(
        None,
        "Side of the box that a point or keypoint annotation without box stands for, in pixels; null takes a fifth of "
        "the picture's shorter side.",
        gt=0,
        schema=False,
    )
    image_cache_mb: int = knob(512, "Memory of each loader process for decoded pictures, in MiB.", ge=0, schema=False)
    cache: common.CacheKind = cache_knob()
    cache_mb: int = cache_mb_knob()
    shuffle_pool: int = knob(
        64,
        "Pictures whose boxes are shuffled among each other: more is more random, fewer decodes each picture once.",
        ge=1,
        schema=False,
    )


class ModelSection(Section):
    """``model``: student and teacher."""

    arch: str = knob("vit-mae-base/16", "Architecture of the backbone.", options=ARCHITECTURES, shown=True)
    frozen_stages: list[int] = knob(
        [-1],
        "Parts of the backbone that are not trained: 0 is the patch embedding, 1 and up are the blocks.",
        value_type="list_1_backbone",
    )
    mask_head_num_convs: int = knob(4, "Convolutions of the mask head.", ge=4, schema_range=(1, inf))
    mask_head_hidden_channel: int = knob(256, "Width of the mask head.", ge=1, schema_range=(1, inf))
    mask_head_out_channel: int = knob(256, "Width of the last layer of both heads.", ge=1, schema_range=(1, inf))
    teacher_momentum: float = knob(0.996, "How much of itself the teacher keeps in each step.", ge=0, le=1)
    not_adjust_scale: bool = knob(False, "Look at the features of small and large boxes alike.")
    mask_scale_ratio_pre: int = knob(
        1,
        "How much the features are enlarged before the mask head; with not_adjust_scale only.",
        ge=1,
        schema_range=(None, None),
    )
    mask_scale_ratio: float = knob(
        2.0, "How much the mask head enlarges; 2 unless not_adjust_scale is set.", gt=0, schema_range=(None, None)
    )
    vit_dpr: float = knob(0, "Stochastic depth: rate of the last block.", ge=0, lt=1, schema_range=(None, None))
    teacher_init: Literal["random", "student"] = knob(
        "random",
        "How the teacher begins where no weights are given: by itself, as in TAO, or as a copy of the student.",
        schema=False,
    )
    activation_checkpointing: bool = knob(
        False, "Recompute activations in the backward pass: less memory, slower steps.", schema=False
    )


class TrainSection(common.TrainSection):
    """``train``: the training loop, the losses, and how masks are made of logits."""

    batch_size: int = knob(
        3,
        "Boxes per batch and GPU. The learning rate grows with it.",
        template=1,
        ge=1,
        schema_range=(1, inf),
        le=common.MAX_BATCH,
        shown=True,
    )
    accum_grad_batches: int = knob(1, "Batches whose gradients make one step.", ge=1, schema_range=(1, inf))
    use_amp: bool = knob(
        True, "Train in 16 bits, the format being amp_dtype; with float16 training on a CPU stays in 32 bits."
    )
    amp_dtype: Literal["float16", "bfloat16"] = knob(
        "float16", "Format of use_amp; bfloat16 does not overflow and also runs on a CPU.", schema=False
    )
    pretrained_model_path: OptionalText = knob(
        None,
        "Weights to begin with: a ViT-MAE, DeiT or timm file, or a MAL checkpoint; file, URL or hub id. Ignored when a "
        "run is continued.",
        template="",
        shown=True,
        weights=True,
    )
    pretrained_strict: bool = knob(
        True, "Refuse weights that fill less than nine tenths of the backbone.", schema=False
    )
    optim_type: Literal["adamw"] = knob("adamw", "Optimiser.")
    optim_momentum: float = knob(0.9, "Has no effect.", ge=0, le=1, ignored="adamw has optim_betas")
    lr: float = knob(
        1e-6,
        "Learning rate per sample: multiplied by batch_size and the GPUs of a node.",
        ge=0,
        usual=(1e-7, 1e-5),
        elsewhere=(0, inf),
        automl=True,
        shown=True,
    )
    min_lr: float = knob(
        0, "Has no effect.", ge=0, ignored="the floor is min_lr_rate times the highest rate", schema_range=(None, None)
    )
    min_lr_rate: float = knob(0.2, "Lowest learning rate, as a share of the highest.", template=0.02, ge=0, le=1)
    num_wave: float = knob(1, "Half waves of the cosine after the warm-up.", gt=0, schema_range=(None, None))
    wd: float = knob(
        5e-4,
        "How strongly weights are pulled towards zero.",
        ge=0,
        usual=(1e-5, 1e-2),
        elsewhere=(None, None),
        automl=True,
    )
    optim_eps: float = knob(1e-8, "Added to the optimiser's denominator.", gt=0, schema_range=(None, None))
    optim_betas: Betas = knob([0.9, 0.9], "Averaging factors of adamw.")
    warmup_epochs: int = knob(1, "Epochs over which the learning rate grows from 0.", ge=0, schema_range=(0, inf))
    margin_rate: Pair = knob([0, 1.2], "Least and most that a training crop reaches beyond half its box.")
    test_margin_rate: Pair = knob([0.6, 0.6], "How far other crops reach beyond their box; the first number counts.")
    mask_thres: Thresholds = knob(
        [0.1], "Probability from which a pixel is mask: one, or three for small to large boxes."
    )
    loss_mil_weight: float = knob(4, "Weight of the box projection loss.", ge=0, schema_range=(None, None))
    loss_crf_weight: float = knob(
        0.5, "Weight of the loss against the mean field's mask.", ge=0, schema_range=(None, None)
    )
    crf_zeta: float = knob(0.1, "How unlike colours may be and still belong together.", gt=0, schema_range=(None, None))
    crf_kernel_size: int = knob(3, "Side of the mean field's neighbourhood; odd.", ge=1, schema_range=(None, None))
    crf_num_iter: int = knob(100, "Iterations of the mean field.", ge=0, schema_range=(None, None))
    loss_crf_step: int = knob(
        4000, "Steps of the first epoch in which loss_crf_weight is reached.", gt=0, schema_range=(None, None)
    )
    loss_mil_step: int = knob(
        1000, "Steps of the first epoch in which loss_mil_weight is reached.", gt=0, schema_range=(None, None)
    )
    crf_size_ratio: int = knob(
        1, "How much finer than the logits the mean field works.", ge=1, schema_range=(None, None)
    )
    crf_value_high_thres: float = knob(
        0.9, "The mean field holds probabilities below this.", gt=0, lt=1, schema_range=(None, None)
    )
    crf_value_low_thres: float = knob(
        0.1, "The mean field holds probabilities above this.", gt=0, lt=1, schema_range=(None, None)
    )
    crf_image: Literal["student", "clean"] = knob(
        "student",
        "Colours that the mean field follows: those that the student sees, as in TAO, or the picture's own.",
        schema=False,
    )


class RunSection(common.RunModelSection):
    """What ``evaluate`` and ``inference`` have in common."""

    batch_size: int = knob(3, "Boxes per batch and GPU.", ge=1, schema_range=(1, inf), le=common.MAX_BATCH, shown=True)


class EvaluateSection(RunSection):
    """``evaluate``: masks against ground truth. Its model keys also steer the validation of training."""

    use_mixed_model_test: bool = knob(False, "Average the logits of student and teacher.")
    use_teacher_test: bool = knob(False, "Take the teacher in place of the student.")
    use_flip_test: bool = knob(False, "Average the logits with those of the mirrored crop.")
    comp_clustering: bool = knob(
        False, "Also measure how far the backbone's features tell objects from background: val_cluster_score."
    )
    compute_ap: bool = knob(True, "Also compute mask AP and AR with COCO's own code.", schema=False)


class InferenceSection(RunSection, common.ClusterSection):
    """``inference``: masks for boxes."""

    ann_path: Text = knob("", "Annotations with the boxes to find masks for.", shown=True)
    img_dir: Text = knob("", "Folder, archive or URL of the pictures.", shown=True)
    label_dump_path: str = knob(
        "instances_val2017_mal.json", "File to write, in the results folder unless it is an absolute path.", shown=True
    )
    load_mask: bool = knob(False, "The annotations have masks: write how well each is met.")
    use_mixed_model: bool = knob(False, "Average the logits of student and teacher.", schema=False)
    use_teacher: bool = knob(False, "Take the teacher in place of the student.", schema=False)
    use_flip: bool = knob(False, "Average the logits with those of the mirrored crop.", schema=False)
    area: Literal["box", "mask"] = knob("box", "What the field area holds; TAO writes the box's.", schema=False)
    clip_to_box: bool = knob(False, "Cut masks to their boxes, which they may leave by a pixel.", schema=False)
    formats: list[Literal["coco", "coco_polygons", "yolo", "png", "cvat", "label_studio"]] = knob(
        ["coco"], "Files to write beside TAO's JSON.", schema=False
    )
    label_studio_images: str = knob(
        "",
        "What stands before the pictures' names in label_studio.json: where Label Studio finds them, such as "
        "/data/local-files/?d=images/.",
        schema=False,
    )
    quality: bool = knob(
        True, "Judge each mask without ground truth, and write a report, worst first. Doubles the time.", schema=False
    )


class ExportSection(common.ExportSection):
    """``export``: checkpoint to ONNX."""

    use_teacher: bool = knob(False, "Export the teacher in place of the student.", schema=False)


class QuantizeSection(common.QuantizeSection):
    """``quantize``: post-training quantization."""

    use_teacher: bool = knob(False, "Quantize the teacher in place of the student.", schema=False)


class ExperimentSpec(common.ExperimentBase):
    """A whole spec."""

    dataset: DatasetSection = section(DatasetSection, "Annotated pictures.")
    model: ModelSection = section(ModelSection, "Student and teacher.")
    train: TrainSection = section(TrainSection, "The training loop.")
    evaluate: EvaluateSection = section(EvaluateSection, "Masks against ground truth.")
    inference: InferenceSection = section(InferenceSection, "Masks for boxes.")
    export: ExportSection = section(ExportSection, "Checkpoint to ONNX.")
    gen_trt_engine: engine.GenTrtEngineSection = section(engine.GenTrtEngineSection, "ONNX to a TensorRT engine.")
    quantize: QuantizeSection = section(QuantizeSection, "Post-training quantization.", schema=False)
