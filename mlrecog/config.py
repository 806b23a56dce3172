"""Every spec key of ML Recog."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fiducial.spec import common, engine
from fiducial.spec.common import OptionalText, Text
from fiducial.spec.knob import MISSING, Section, knob, section
from fiducial.training.sections import cache_knob, cache_mb_knob

__all__ = ["BACKBONES", "OPTIMIZERS", "ExperimentSpec"]

BACKBONES = (
    "resnet_50",
    "resnet_101",
    "fan_small",
    "fan_base",
    "fan_large",
    "fan_tiny",
    "nvdinov2_vit_large_legacy",
)
OPTIMIZERS = ("Adam", "SGD", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "Adadelta", "Adagrad", "ASGD")
"""Classes of torch.optim that can be named; TAO documents the first three."""
_SIDE: dict[str, Any] = {"schema_range": (None, None), "parent_param": True, "shown": True}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.226, 0.226, 0.226]


def _odd(values: list[int]) -> list[int]:
    if any(value % 2 == 0 for value in values):
        raise ValueError("the sides of a blur kernel are odd, like 15")
    return values


Kernel = Annotated[
    list[Annotated[int, Field(ge=1, le=common.MAX_SIDE)]], Field(min_length=2, max_length=2), AfterValidator(_odd)
]
Sigma = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class ModelSection(Section):
    """``model``: a trunk and its embedder."""

    backbone: str = knob("resnet_50", "The trunk.", options=BACKBONES, shown=True)
    pretrained_model_path: OptionalText = knob(
        None,
        "Weights of trunk and embedder to begin with: a checkpoint; file, URL or hub id. Comes after the other two.",
        template="",
        shown=True,
        weights=True,
    )
    pretrained_trunk_path: OptionalText = knob(None, "Weights of the trunk to begin with.", template="", weights=True)
    pretrained_embedder_path: OptionalText = knob(
        None, "Weights of the embedder to begin with.", template="", weights=True
    )
    input_width: int = knob(224, "Width of what the network sees, pixels.", ge=16, le=common.MAX_SIDE, **_SIDE)
    input_height: int = knob(224, "Height of what the network sees, pixels.", ge=16, le=common.MAX_SIDE, **_SIDE)
    input_channels: int = knob(
        3, "Channels of a picture: always RGB.", ge=3, le=3, schema_range=(None, None), aliases=("input_channel",)
    )
    feat_dim: int = knob(
        256,
        "Numbers of an embedding. A checkpoint keeps its own; with compat tao only the ResNets obey it.",
        ge=1,
        le=common.MAX_SIDE,
        schema_range=(None, None),
        shown=True,
    )
    activation_checkpointing: bool = knob(
        False, "Recompute activations in the backward pass: less memory, slower steps.", schema=False
    )


_ABOVE_0: dict[str, Any] = {"math_cond": "> 0.0", "automl": True}
_DECAY: dict[str, Any] = {**_ABOVE_0, "search": (1e-5, 1e-2)}
_SHARE: dict[str, Any] = {"schema_range": (None, None), "math_cond": "> 0.0"}


class BlurSection(Section):
    """``dataset.gaussian_blur``: of every training picture."""

    enabled: bool = knob(True, "Blur training pictures.")
    kernel: Kernel = knob(
        [15, 15],
        "Width and height of the kernel, odd, in pixels.",
        value_type="list_3",
        depends_on="model.input_height,model.input_width",
    )
    sigma: Sigma = knob([0.3, 0.7], "Least and largest standard deviation, in pixels.")


class ColorSection(Section):
    """``dataset.color_augmentation``: other colours of every training picture."""

    enabled: bool = knob(True, "Change the colours of training pictures.")
    brightness: float = knob(0.5, "Brightness is multiplied by 1 - x to 1 + x.", ge=0, usual=(0, 2))
    contrast: float = knob(0.3, "Contrast is multiplied by 1 - x to 1 + x.", ge=0, usual=(0, 2))
    saturation: float = knob(0.1, "Saturation is multiplied by 1 - x to 1 + x.", ge=0, usual=(0, 2))
    hue: float = knob(0.1, "Hue is turned by -x to x of the circle.", ge=0, le=0.5)


class ValidationSets(Section):
    """``dataset.val_dataset``: the two sides of retrieval."""

    reference: OptionalText = knob(
        None, "The gallery: a folder of class folders, archive or URL.", shown=True, template=""
    )
    query: OptionalText = knob(
        None,
        "What is looked up in it: class folders again, each of which the gallery has too.",
        shown=True,
        template="",
    )


class CalibrationPictures(Section):
    """``dataset.quant_calibration_dataset``: pictures that a static quantization observes."""

    images_dir: Text = knob(
        "", "Folder, archive or URL of pictures, also in folders of it; empty takes those to train on."
    )


class DatasetSection(Section):
    """``dataset``: folders of classes."""

    train_dataset: OptionalText = knob(
        None, "Class folders to train on: folder, archive or URL.", shown=True, actions=("train",)
    )
    val_dataset: ValidationSets = section(ValidationSets, "Gallery and queries of validation and evaluate.")
    quant_calibration_dataset: CalibrationPictures = section(
        CalibrationPictures, "Pictures for static quantization.", schema=False
    )
    workers: int = knob(
        8,
        "Processes that load data; 0 loads in the main process.",
        ge=0,
        le=common.MAX_WORKERS,
        schema_range=(None, None),
    )
    class_map: OptionalText = knob(
        None, "YAML file that gives each class folder the name to show: a mapping, or a list in their order."
    )
    pixel_mean: common.Triple = knob(_MEAN, "Mean of red, green and blue, in 0..1.")
    pixel_std: common.PositiveTriple = knob(_STD, "Standard deviation of red, green and blue.")
    prob: float = knob(0.5, "Share of training pictures that are mirrored.", ge=0, le=1, **_SHARE)
    re_prob: float = knob(0.5, "Share of training pictures that lose a rectangle.", ge=0, le=1, **_SHARE)
    gaussian_blur: BlurSection = section(BlurSection, "Blur of training pictures.")
    color_augmentation: ColorSection = section(ColorSection, "Colours of training pictures.")
    random_rotation: bool = knob(False, "Turn training pictures by 0 to 180 degrees.")
    num_instance: int = knob(
        4, "Pictures of each class in a batch; batch_size is a multiple of it.", ge=1, schema_range=(None, None)
    )
    crop_scale: Sigma = knob(
        [0.08, 1.0],
        "Least and largest share of a picture's area that a training crop covers; TAO's are 0.08 and 1.",
        schema=False,
    )
    cache: common.CacheKind = cache_knob()
    cache_mb: int = cache_mb_knob()


class PartSection(Section):
    """``train.optim.trunk`` and ``embedder``: one optimizer."""

    base_lr: float = knob(3.5e-4, "Learning rate after the warm-up.", gt=0, usual=(0, 1), shown=True, **_ABOVE_0)
    bias_lr_factor: float = knob(
        1, "Learning rate of biases, as a multiple of base_lr.", gt=0, usual=(1, 10), automl=True, math_cond=">= 1"
    )
    momentum: float = knob(
        0.9, "Momentum of SGD; the other optimizers have none.", ge=0, usual=(0, 1), search=(0.8, 0.99), **_ABOVE_0
    )
    weight_decay: float = knob(5e-4, "Weight decay of all but biases.", ge=0, usual=(0, 1), **_DECAY)
    weight_decay_bias: float = knob(5e-4, "Weight decay of biases.", ge=0, usual=(0, 1), **_DECAY)


class OptimSection(Section):
    """``train.optim``: two optimizers with one schedule."""

    name: str = knob("Adam", "Optimizer, a class of torch.optim.", options=OPTIMIZERS[:3])
    steps: list[Annotated[int, Field(ge=0)]] = knob([40, 70], "Epochs from which the rates are multiplied by gamma.")
    gamma: float = knob(0.1, "What the rates are multiplied by at each of steps.", gt=0, usual=(0, 1), **_ABOVE_0)
    warmup_factor: float = knob(
        0.01, "Share of the rates that training begins with.", gt=0, usual=(0, 1), search=(1e-3, 1), **_ABOVE_0
    )
    warmup_iters: int = knob(
        10, "Epochs of the warm-up.", ge=0, usual=(1, 10000), automl=True, search=(1, 100), math_cond="> 0"
    )
    warmup_method: Literal["linear", "constant"] = knob("linear", "How the rates grow during the warm-up.")
    triplet_loss_margin: float = knob(
        0.3,
        "How much nearer others of its class are to be than those of other classes.",
        gt=0,
        usual=(0, 2),
        **_ABOVE_0,
    )
    miner_function_margin: float = knob(
        0.1,
        "Pairs are hard when they are within this similarity of the hardest of the other kind.",
        gt=0,
        usual=(0, 2),
        **_ABOVE_0,
    )
    embedder: PartSection = section(PartSection, "The embedder's.")
    trunk: PartSection = section(PartSection, "The trunk's.")


class TrainSection(common.TrainSection):
    """``train``: the training loop."""

    optim: OptimSection = section(OptimSection, "Optimizers, schedule, loss.")
    clip_grad_norm: float = knob(
        0.0,
        "Largest norm of the gradient of each optimizer; 0 does not clip.",
        ge=0,
        schema_range=(None, None),
        math_cond=">= 0.0",
    )
    report_accuracy_per_class: bool = knob(
        True, "Average numbers over classes, not over queries, and list the classes."
    )
    smooth_loss: bool = knob(True, "Loss log(1 + exp(v)) of a triplet, in place of max(0, v).")
    batch_size: int = knob(
        4,
        "Pictures per batch and GPU: num_instance of each of batch_size / num_instance classes.",
        ge=2,
        le=common.MAX_BATCH,
        schema_range=(None, None),
        shown=True,
    )
    val_batch_size: int = knob(
        4, "Pictures per batch in validation.", ge=1, le=common.MAX_BATCH, schema_range=(None, None)
    )
    train_trunk: bool = knob(True, "Train the trunk.")
    train_embedder: bool = knob(True, "Train the embedder.")
    precision: Literal["fp32", "fp16", "bf16"] = knob(
        "fp32", "Number format of training; fp16 needs a GPU. Loss and miner stay in fp32.", schema=False
    )


class RunSection(common.RunModelSection):
    """What ``evaluate`` and ``inference`` have in common."""

    topk: int = knob(1, "Neighbours that are listed.", ge=1, schema_range=(None, None))
    search: Literal["torch", "faiss"] = knob(
        "torch", "What finds the nearest neighbours, exactly: torch, or faiss (extra faiss) on the CPU.", schema=False
    )


class EvaluateSection(RunSection):
    """``evaluate``: how well the queries find their class in the gallery."""

    batch_size: int = knob(4, "Pictures per batch.", ge=1, le=common.MAX_BATCH, schema_range=(None, None), shown=True)
    report_accuracy_per_class: bool = knob(
        True, "Average numbers over classes, not over queries, and list the classes."
    )
    clustering: bool = knob(True, "Also compute AMI and NMI, which take a clustering of the queries.", schema=False)


class InferenceSection(RunSection, common.ClusterSection):
    """``inference``: the nearest classes of pictures."""

    batch_size: int = knob(1, "Pictures per batch.", ge=1, le=common.MAX_BATCH, schema_range=(None, None), shown=True)
    input_path: Text = knob(
        "", "A picture, a folder of pictures, or class folders.", template=MISSING, required=True, shown=True
    )
    inference_input_type: Literal["image", "image_folder", "classification_folder"] = knob(
        "classification_folder", "What input_path is.", shown=True
    )
    gallery: OptionalText = knob(
        None,
        "A gallery that is kept (see the gallery action) to search in, in place of dataset.val_dataset.reference.",
        schema=False,
        shown=True,
    )
    threshold: float | None = knob(
        None,
        "Distance above which a picture is of no class of the gallery; null takes the gallery's own, if it has one.",
        ge=0,
        le=4,
        schema=False,
    )
    margin: float | None = knob(
        None,
        "How much nearer the best class must be than the next one; null takes the gallery's own, if it has one.",
        ge=0,
        le=4,
        schema=False,
    )


class ExportSection(common.ExportSection):
    """``export``: checkpoint to ONNX."""

    onnx_file: OptionalText = knob(
        None,
        "File to write; empty is the checkpoint's name with suffix .onnx in the results of export.",
        template=MISSING,
        shown=True,
    )
    batch_size: int = knob(
        -1,
        "Batch size fixed in the graph; -1 leaves it open.",
        ge=-1,
        le=common.MAX_BATCH,
        schema_range=(None, None),
        shown=True,
    )
    gpu_id: int = knob(0, "GPU that the model is traced on.", ge=0, lt=common.MAX_GPUS, schema_range=(None, None))
    opset_version: int = knob(14, "ONNX operator set, 12 to 25.", ge=1, schema_range=(None, None))
    verbose: bool = knob(True, "Print the graph while it is exported.")


class GallerySection(Section):
    """``gallery``: reference embeddings that are kept, and what to do with them."""

    checkpoint: OptionalText = knob(
        None, "Model that embeds: a checkpoint, an ONNX file, a results folder.", shown=True
    )
    results_dir: OptionalText = knob(None, "Folder of this action's log; empty means <results_dir>/gallery.")
    path: OptionalText = knob(
        None,
        "The gallery: a folder, a LanceDB table (a folder *.lance) or an s3:// address of one.",
        required=True,
        shown=True,
    )
    source: OptionalText = knob(None, "What build and add read: class folders, archive or URL.", shown=True)
    query: OptionalText = knob(None, "What search looks up: a picture, or a folder of pictures.", shown=True)
    label: OptionalText = knob(
        None, "Class of all pictures below source, in place of class folders; class that remove removes."
    )
    sources: list[str] = knob([], "Pictures that remove removes, as the table names them.")
    topk: int = knob(5, "Neighbours that search lists.", ge=1)
    batch_size: int = knob(32, "Pictures per batch.", ge=1, le=common.MAX_BATCH)
    overwrite: bool = knob(False, "Let build replace a gallery.")
    threshold: float | None = knob(
        None, "Distance above which a picture is of no class; kept by build and add.", ge=0, le=4
    )
    margin: float | None = knob(
        None, "How much nearer the best class must be than the next one; kept by build and add.", ge=0, le=4
    )
    index: Literal["exact", "ivf_pq"] | None = knob(
        None,
        "How a LanceDB table is searched: exactly, or by an approximate index, which build and add make; null: by the "
        "index that it has, else exactly.",
    )
    probes: int = knob(16, "Cells of the approximate index that a search looks into.", ge=1)
    refine: int = knob(10, "How many times topk are measured exactly after an approximate search.", ge=1)
    duplicate_distance: float = knob(0.01, "Pictures nearer than this are near-duplicates for stats.", ge=0, le=4)


class ExperimentSpec(common.ExperimentBase):
    """A whole spec."""

    model: ModelSection = section(ModelSection, "Trunk and embedder.")
    dataset: DatasetSection = section(DatasetSection, "Folders of classes.")
    train: TrainSection = section(TrainSection, "The training loop.")
    evaluate: EvaluateSection = section(EvaluateSection, "Retrieval, measured.")
    inference: InferenceSection = section(InferenceSection, "The nearest classes of pictures.")
    export: ExportSection = section(ExportSection, "Checkpoint to ONNX.")
    gen_trt_engine: engine.GenTrtEngineSection = section(engine.GenTrtEngineSection, "ONNX to a TensorRT engine.")
    quantize: common.QuantizeSection = section(common.QuantizeSection, "Post-training quantization.", schema=False)
    gallery: GallerySection = section(GallerySection, "Reference embeddings that are kept.", schema=False)
