"""The parts of a spec that every network has.

A network subclasses these sections and adds its own keys; a key declared again in a subclass replaces the one here
(that is how a network gives it another default). Everything a key means to a user is in its help text.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from fiducial.spec.automl import AutomlSection
from fiducial.spec.knob import MISSING, Section, knob, section, section_of

Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
"""A string that is empty when it is not set; null in a spec means the same."""

BlankIsNone = BeforeValidator(lambda value: None if value == "" else value)
"""An empty string in a spec means that the key is not set."""

OptionalText = Annotated[str | None, BlankIsNone]
"""A string that is None when it is not set."""

Lowercase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
"""Makes a choice case-insensitive, as in ``Annotated[Literal["fp32"], Lowercase]``."""

Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
"""One number for each of red, green, blue."""

PositiveTriple = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
"""One number above 0 for each of red, green, blue."""

CacheKind = Annotated[Literal["off", "ram", "disk"], BeforeValidator(lambda value: "off" if value is False else value)]
"""Where something is kept; YAML reads ``off`` as false."""
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""The modes of ``torch.compile``."""

MAX_GPUS = 1024
"""GPUs of one machine, more than any has: what a spec asks for beyond is a slip."""
GpuId = Annotated[int, Field(ge=0, lt=MAX_GPUS)]


def _distinct(ids: list[int]) -> list[int]:
    if len(set(ids)) < len(ids):
        raise ValueError("name each GPU once")
    return ids


GpuIds = Annotated[list[GpuId], Field(max_length=MAX_GPUS), AfterValidator(_distinct)]


MAX_SIDE = 2**15
"""Pixels of a side of what a network sees, and numbers of a layer: beyond, no memory holds it."""
MAX_WORKERS = 1024
MAX_BATCH = 2**16


class DistributedSection(Section):
    """Where an action runs: GPUs per node, and nodes."""

    num_gpus: int = knob(
        1,
        "GPUs to use on each node. With a different number of gpu_ids the larger of the two wins; without any GPU the "
        "run falls back to the CPU.",
        ge=1,
        le=MAX_GPUS,
        schema_range=(1, None),
        popular=True,
        shown=True,
    )
    gpu_ids: GpuIds = knob([0], "Indices of the GPUs to use; their number should equal num_gpus.", popular=True)
    num_nodes: int = knob(
        1, "Machines that take part in the run.", ge=1, le=2**16, schema_range=(1, None), popular=True
    )

    @property
    def num_devices(self) -> int:
        """Devices that are asked for, of all nodes together; a machine may have fewer."""
        return max(self.num_gpus, len(self.gpu_ids)) * self.num_nodes


class WandbSection(Section):
    """``wandb``: logging to Weights & Biases. Never needed: without credentials it is skipped."""

    # TAO-compat: TAO's default is true, and whoever is logged in uploads without having asked for it
    enable: bool = knob(
        False,
        "Log to Weights & Biases when credentials for it exist (WANDB_API_KEY or ~/.netrc).",
        template=True,
    )
    project: Text = knob("TAO Toolkit", "Project that the run is listed under.")
    entity: Text = knob("", "User or team that owns the project; empty takes the account's default.")
    group: Text = knob("", "Group that the run is shown in, together with related runs.")
    tags: list[str] = knob(["training", "tao-toolkit"], "Labels to filter runs by.", template=["tao-toolkit"])
    reinit: bool = knob(False, "Allow a second Weights & Biases run in the same process.")
    sync_tensorboard: bool = knob(False, "Also upload what is written for TensorBoard.")
    save_code: bool = knob(False, "Store the main script with the run.")
    name: Text = knob(
        "TAO Toolkit training experiment",
        "Display name of the run; date and time are appended.",
        template="TAO Toolkit Training",
    )
    run_id: Text = knob("", "Id of an earlier run to continue; empty starts a new one.")


class CudnnSection(Section):
    """``train.cudnn``: how convolutions choose their algorithm on a GPU."""

    benchmark: bool = knob(
        False,
        "Time several algorithms at the first batch and keep the fastest. Pays off when input sizes never change.",
    )
    deterministic: bool = knob(True, "Use only cuDNN algorithms whose result is the same in every run; may be slower.")


class CheckpointerSection(Section):
    """``train.checkpointer``: checkpoints kept because of a metric, besides the periodic ones."""

    enable_topk: bool = knob(False, "Also keep the checkpoints that are best by a validation metric.")
    replace_periodic: bool = knob(
        False,
        "With enable_topk: write no periodic checkpoints, keep exactly the one best file and point the latest link "
        "to it. Without enable_topk it does nothing.",
    )
    monitor: OptionalText = knob(
        None, "Logged metric that ranks checkpoints; null takes the network's own (val_loss).", template="val_loss"
    )
    mode: Annotated[Literal["min", "max"] | None, BlankIsNone] = knob(
        None, "Whether a smaller or a larger metric is better; null takes the network's own.", template="min"
    )
    save_top_k: int = knob(1, "How many best checkpoints to keep; always one with replace_periodic.", ge=1)
    filename: str = knob(
        "model_best_{epoch:03d}",
        "Name of a best checkpoint, without suffix; {epoch}, {step} and metrics are filled in.",
    )
    dirpath: OptionalText = knob(None, "Folder for best checkpoints; empty means the results folder.", template="")
    auto_insert_metric_name: bool = knob(False, "Write the name before each number of filename: model_best_epoch_004.")


class TrainSection(DistributedSection):
    """``train``: the training loop."""

    seed: int = knob(
        1234,
        "Seed of everything random. A negative number leaves the run unseeded.",
        ge=-(2**31),
        lt=2**32,
        usual=(-1, None),
        schema_range=(-1, inf),
    )
    cudnn: CudnnSection = section(CudnnSection, "How convolutions choose their algorithm on a GPU.")
    num_epochs: int = knob(
        10, "Passes over the training data.", ge=1, le=10**6, schema_range=(1, inf), popular=True, shown=True
    )
    checkpoint_interval: int = knob(
        1,
        "Write a checkpoint each time this many epochs (or steps, see checkpoint_interval_unit) have passed. "
        "Counted in epochs it must not exceed num_epochs.",
        ge=1,
        popular=True,
    )
    checkpoint_interval_unit: Literal["epoch", "step"] = knob("epoch", "What checkpoint_interval counts.")
    validation_interval: int = knob(
        1,
        "Validate each time this many epochs have passed; must not exceed num_epochs.",
        ge=1,
        popular=True,
        aliases=("val_interval",),
    )
    resume_training_checkpoint_path: OptionalText = knob(
        None,
        "Checkpoint to continue from, with optimiser and epoch: a file, or a folder's latest. Empty continues from the "
        "newest whole checkpoint in the results folder when there is one.",
        template="",
        shown=True,
    )
    results_dir: OptionalText = knob(
        None, "Folder for the results of training; empty means <results_dir>/train.", template=""
    )
    checkpointer: CheckpointerSection = section(CheckpointerSection, "Checkpoints kept because of a metric.")
    keep_checkpoints: int | None = knob(
        None,
        "Keep only this many of the newest periodic checkpoints, beside the best one and the one that a run was "
        "continued from; null keeps all.",
        ge=1,
        schema=False,
    )
    enable_lr_monitor: bool = knob(False, "Log the learning rate at every step.", schema=False)
    compile: bool | CompileMode = knob(
        False,
        "Compile the network with torch.compile: true, or one of its modes. Steps are faster on most GPUs, hardly on a "
        "CPU; the first one takes minutes.",
        schema=False,
    )


class RunModelSection(DistributedSection):
    """``evaluate`` and ``inference``: run a model that exists."""

    checkpoint: OptionalText = knob(
        None,
        "Model to run: a checkpoint, an ONNX file, a TensorRT engine, or a results folder (its best, else latest "
        "checkpoint).",
        template=MISSING,
        required=True,
        shown=True,
    )
    trt_engine: OptionalText = knob(None, "TensorRT engine to run instead of a checkpoint.", template="")
    allow_engine_code: bool = knob(
        False,
        "Let an engine that was built version_compatible run the code in it; only for files that you trust.",
        schema=False,
    )
    results_dir: OptionalText = knob(
        None, "Folder for the results of this action; empty means <results_dir>/<action>.", template=""
    )
    batch_size: int = knob(
        -1,
        "Samples per batch; -1 takes the batch size of the dataset.",
        ge=-1,
        le=MAX_BATCH,
        schema_range=(-1, None),
        shown=True,
    )
    is_quantized: bool = knob(False, "The checkpoint is a result of the quantize action.", schema=False)
    compile: bool | CompileMode = knob(
        False,
        "Compile a checkpoint's network for this machine: true, or a mode of torch.compile. The first start takes "
        "minutes, later ones seconds.",
        schema=False,
    )
    providers: list[str] = knob(
        [],
        "What onnxruntime runs an ONNX file on, the first choice first: cpu, cuda, tensorrt, or another of its "
        "execution providers; empty takes a GPU where there is one.",
        schema=False,
    )

    @field_validator("providers", mode="before")
    @classmethod
    def _one_provider_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value else value or []


class ClusterSection(Section):
    """Of ``inference``: what runs it beyond this machine."""

    engine: Literal["local", "ray"] = knob(
        "local",
        "What hands out the data: this process (with torchrun: these), or a Ray cluster (extra ray), whose workers all "
        "reach the data and the model under the paths of the spec.",
        schema=False,
    )
    ray_address: str = knob(
        "auto",
        "The Ray cluster: auto for the one that this machine is part of, ray://host:10001 for another, local for one "
        "that ends with the run.",
        schema=False,
    )
    ray_workers: int | None = knob(
        None,
        "Workers that each hold the model; null: as many as the cluster has GPUs, without any one for each node.",
        ge=1,
        le=2**14,
        schema=False,
    )


class TritonSection(Section):
    """``export.triton``, ``gen_trt_engine.triton``: the model as Triton Inference Server wants it."""

    repository: OptionalText = knob(
        None, "Folder of a model repository that the file is added to, as the next version of its model."
    )
    name: OptionalText = knob(None, "The model's name in it; empty takes that of the file, without its suffix.")
    max_batch_size: int = knob(
        16, "Most items that Triton may put into one batch, where the batch size is open.", ge=1, le=MAX_BATCH
    )


class ExportSection(Section):
    """``export``: checkpoint to ONNX."""

    results_dir: OptionalText = knob(
        None, "Folder for the results of export; empty means <results_dir>/export.", template=""
    )
    gpu_id: int = knob(0, "GPU that the model is traced on.", ge=0, lt=MAX_GPUS, schema_range=(0, None))
    checkpoint: OptionalText = knob(
        None, "Checkpoint to export, or a results folder.", template=MISSING, required=True, shown=True
    )
    onnx_file: OptionalText = knob(
        None, "File to write; empty puts it beside the checkpoint, with suffix .onnx.", template=MISSING, shown=True
    )
    on_cpu: bool = knob(False, "Accepted; graphs are always traced on the CPU.")
    opset_version: int = knob(
        17, "ONNX operator set, 12 to 25; grid_sample needs 16, and like plugin ends at 20.", ge=1
    )
    batch_size: int = knob(
        -1,
        "Batch size fixed in the graph; -1 leaves it open.",
        ge=-1,
        le=MAX_BATCH,
        schema_range=(-1, None),
        shown=True,
    )
    verbose: bool = knob(False, "Print the graph while it is exported.")
    is_quantized: bool = knob(False, "The checkpoint is a result of the quantize action.", schema=False)
    overwrite: bool = knob(
        False,
        "Replace onnx_file, and what is written with it, when it exists; otherwise that is an error.",
        schema=False,
    )
    preprocessing: bool = knob(
        False,
        "Put the normalisation into the graph: its images are pixels then, uint8 (batch, height, width, 3) in RGB.",
        schema=False,
    )
    simplify: bool = knob(
        False, "Have onnxslim take nodes out that change nothing. The outputs are compared afterwards.", schema=False
    )
    openvino: bool = knob(
        False, "Also write the graph in OpenVINO's format, as .xml and .bin beside onnx_file.", schema=False
    )
    triton: TritonSection = section(TritonSection, "A model repository of Triton Inference Server.", schema=False)


def _known_dtype(value: Any) -> Any:
    """``float8_e4m3fn`` is another spelling of ``fp8_e4m3fn``; unset means native."""
    if value is None or value == "":
        return "native"
    return value.lower().replace("float8_", "fp8_") if isinstance(value, str) else value


class QuantizerSection(Section):
    """How the weights, or the activations, of some layers become small numbers."""

    dtype: Annotated[Literal["int8", "fp8_e4m3fn", "fp8_e5m2", "native"], BeforeValidator(_known_dtype)] = knob(
        "native", "Number format; native leaves the tensor as it is."
    )
    quant_axis: int | None = knob(None, "Axis that gets one scale per index; null means one scale for the tensor.")
    observer_or_fake_quant: Text = knob(
        "", "Name of an observer class.", ignored="the backends choose their own observer"
    )
    observer_or_fake_quant_kwargs: dict[str, Any] | None = knob(
        {}, "Arguments of the observer class.", ignored="the backends choose their own observer"
    )


class QuantizeLayer(Section):
    """One entry of ``quantize.layers``: a pattern and what happens to the layers that match it."""

    module_name: str = knob(
        "",
        "Pattern with * and ?, tried on the layer's qualified name and then on its class, such as Linear.",
        required=True,
    )
    weights: QuantizerSection | None = knob(None, "Format of the weights; null leaves them as they are.")
    activations: QuantizerSection | None = knob(None, "Format of the layer's input; null leaves it as it is.")


TAO_QUANTIZERS = ("torchao", "modelopt.pytorch", "modelopt.onnx")
"""The backends that TAO has."""


class QuantizeSection(Section):
    """``quantize``: post-training quantization."""

    backend: Literal["torchao", "modelopt.pytorch", "modelopt.onnx", "openvino"] = knob(
        "torchao",
        "Library that quantizes: torchao (weights of linear layers), modelopt.pytorch (calibrated), modelopt.onnx "
        "(calibrated, on an ONNX file) or openvino (NNCF, to an OpenVINO model). modelopt is another name of "
        "modelopt.pytorch.",
        options=TAO_QUANTIZERS,
        shown=True,
    )
    mode: Annotated[Literal["static_ptq", "weight_only_ptq", "dynamic_ptq"], Lowercase] = knob(
        "weight_only_ptq",
        "weight_only_ptq goes with torchao, static_ptq (needs calibration images) with modelopt, either with openvino; "
        "dynamic_ptq (torchao) also rounds the inputs of linear layers, as they come.",
        options=("static_ptq", "weight_only_ptq"),
        shown=True,
    )
    algorithm: Annotated[
        Literal["minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"], Lowercase
    ] = knob("minmax", "How calibration turns observed values into scales. torchao does not use it.")
    layers: list[QuantizeLayer] = knob(
        [],
        "Which layers to quantize and how; later entries win. An empty list takes every layer that the backend "
        "quantizes, in int8; of a graph, what multiplies.",
    )
    skip_names: list[str] = knob([], "Patterns of layers to leave out, applied after layers.")
    model_path: Text = knob(
        "",
        "Checkpoint to quantize (an ONNX file for modelopt.onnx and openvino); empty takes the run's own.",
        required=True,
        shown=True,
    )
    results_dir: Text = knob("", "Folder for the quantized model; empty means <results_dir>/quantize.", required=True)
    backend_kwargs: dict[str, Any] | None = knob({}, "Extra arguments that are handed to the backend.")
    device: str = knob(
        "cuda",
        "Where calibration runs: cuda, cuda:N, cpu, or trt (modelopt.onnx only).",
        pattern="^(cuda|cpu|trt|cuda:[0-9]+)$",
    )
    calibration_items: int = knob(
        128,
        "Items of the calibration data that are observed, evenly spread over them.",
        ge=1,
        le=10**6,
        schema=False,
    )
    compare: bool = knob(True, "Evaluate the model before and after, where labelled test data are there.", schema=False)
    default_layer_dtype: OptionalText = knob(
        None, "Format of layers that no entry names.", schema=False, ignored="name the layers in quantize.layers"
    )
    default_activation_dtype: OptionalText = knob(
        None, "Format of inputs that no entry names.", schema=False, ignored="name the layers in quantize.layers"
    )

    @field_validator("backend", mode="before")
    @classmethod
    def _modelopt_is_its_pytorch_backend(cls, value: Any) -> Any:
        name = value.lower() if isinstance(value, str) else value
        return "modelopt.pytorch" if name == "modelopt" else name


def without_null_sections(kind: type[Section], values: Any) -> Any:
    """A copy of raw spec values without sections that are null or blank: they mean the section's defaults."""
    if not isinstance(values, dict):
        return values
    nested = {name: found for name, info in kind.model_fields.items() if (found := section_of(info))}
    return {
        name: without_null_sections(nested[name], value) if name in nested else value
        for name, value in values.items()
        if not (name in nested and value in (None, ""))
    }


class ExperimentBase(Section):
    """The root of a spec. Networks add ``model``, ``dataset`` and one section for each action."""

    model_name: OptionalText = knob(None, "Name of the network; empty takes the command's own.", template="")
    encryption_key: OptionalText = knob(
        None, "Key to read encrypted checkpoints with. What is written is never encrypted.", template=""
    )
    results_dir: Text = knob(
        "", "Root folder of the results; each action writes to a folder of its name in it.", shown=True
    )
    wandb: WandbSection = section(WandbSection, "Logging to Weights & Biases.")
    clearml: dict[str, Any] | None = knob(None, "ClearML settings.", schema=False, ignored="there is no ClearML logger")
    compat: Literal["off", "tao"] = knob(
        "off",
        "tao restores TAO's behaviour where its code does other than its documents say, to reproduce an old run. "
        "docs/tao-compat.md lists each difference.",
        schema=False,
    )

    automl_policy: Literal["off", "on"] = knob(
        "off", "on: train searches for better values first, as the action automl does.", schema=False
    )
    automl: AutomlSection = section(AutomlSection, "A search for better spec values.", schema=False)

    @field_validator("compat", "automl_policy", mode="before")
    @classmethod
    def _yaml_reads_booleans(cls, value: Any) -> Any:
        return ("on" if value else "off") if isinstance(value, bool) else value

    @model_validator(mode="before")
    @classmethod
    def _null_section_means_defaults(cls, values: Any) -> Any:
        return without_null_sections(cls, values)
