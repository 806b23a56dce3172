"""The section ``gen_trt_engine`` of a spec: from an ONNX file to an engine of TensorRT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from fiducial.spec.common import MAX_GPUS, Lowercase, OptionalText, TritonSection
from fiducial.spec.knob import MISSING, Section, knob, section

__all__ = ["CalibrationSection", "GenTrtEngineSection", "TensorRTSection"]

_File = Annotated[str | None, BeforeValidator(lambda value: None if value in ("", MISSING) else value)]
"""A file that templates leave to be filled in, and that need not be."""


class CalibrationSection(Section):
    """``gen_trt_engine.tensorrt.calibration``: data for int8 engines."""

    cal_image_dir: list[str] | None = knob(
        None,
        "Folders with calibration images; empty takes what quantize calibrates with: the data of the training.",
        template=MISSING,
    )
    cal_cache_file: _File = knob(
        None,
        "File of the ranges that calibration found: read when it is of this model, else written.",
        template=MISSING,
    )
    cal_batch_size: int = knob(1, "Images per calibration batch.", ge=1, popular=True)
    cal_batches: int = knob(1, "Calibration batches; images used = cal_batch_size x cal_batches.", ge=1, popular=True)

    @field_validator("cal_image_dir", mode="before")
    @classmethod
    def _one_folder_is_a_list(cls, value: Any) -> Any:
        return ([value] if value not in ("", MISSING) else None) if isinstance(value, str) else value


class TensorRTSection(Section):
    """``gen_trt_engine.tensorrt``: how the engine is built."""

    data_type: Annotated[Literal["fp32", "fp16", "bf16", "int8", "fp8"], Lowercase] = knob(
        "fp32",
        "Precision of the engine. int8 and fp8 need calibration images, unless the ONNX file is quantized already.",
        shown=True,
    )
    rest: Annotated[Literal["fp32", "fp16", "bf16"], Lowercase] = knob(
        "fp16", "What an int8 or fp8 engine computes in, where not in 8 bits.", schema=False
    )
    workspace_size: int = knob(1024, "Memory that TensorRT may use while building, in MB; 0 sets no limit.", ge=0)
    min_batch_size: int = knob(1, "Smallest batch that the engine accepts.", ge=1, popular=True)
    opt_batch_size: int = knob(1, "Batch size that the engine is tuned for.", ge=1, popular=True)
    max_batch_size: int = knob(1, "Largest batch that the engine accepts.", ge=1, popular=True)
    layers_precision: list[str] | None = knob(
        [],
        "Exceptions as layer_name:precision (fp32, fp16, bf16, int8, fp8), with names of nodes of the ONNX file, or "
        "patterns of them with * and ?; the name * stands for all others.",
    )
    flavor: Annotated[Literal["tensorrt", "rtx"], Lowercase] = knob(
        "tensorrt",
        "The library that builds and runs the engine: TensorRT, or TensorRT for RTX, for the GPUs of PCs and "
        "workstations, which builds without a GPU.",
        schema=False,
    )
    compute_capability: list[Annotated[str, BeforeValidator(str), Field(pattern=r"^\d+\.\d$")]] = knob(
        [],
        "GPUs that an engine of flavor rtx is for, such as 8.6 and 8.9; empty: this machine's, without one all that "
        "the library builds for by itself.",
        schema=False,
    )
    tf32: bool = knob(
        True, "Let float32 layers round their inputs to TF32, which GPUs are faster in, as TensorRT does.", schema=False
    )
    optimization_level: int | None = knob(
        None, "How long the builder searches, 0 to 5; null: the library's own (3).", ge=0, le=5, schema=False
    )
    version_compatible: bool = knob(
        False, "The engine also runs in later versions of TensorRT, which must then be let run its code.", schema=False
    )
    hardware_compatibility: Annotated[Literal["none", "ampere_plus", "same_compute_capability"], Lowercase] = knob(
        "none", "Which GPUs the engine runs on beside this model of one; costs speed. Not of flavor rtx.", schema=False
    )
    calibration: CalibrationSection = section(CalibrationSection, "Data for int8 and fp8 engines.")


class GenTrtEngineSection(Section):
    """``gen_trt_engine``: ONNX to a TensorRT engine."""

    results_dir: OptionalText = knob(
        None, "Folder for the results; empty means <results_dir>/gen_trt_engine.", template=""
    )
    gpu_id: int = knob(
        0, "GPU that the engine is built on, and for.", ge=0, lt=MAX_GPUS, schema_range=(0, None), popular=True
    )
    onnx_file: OptionalText = knob(
        None,
        "ONNX file to build from, or a folder that holds one; empty takes the run's newest.",
        template=MISSING,
        required=True,
        shown=True,
    )
    trt_engine: _File = knob(
        None,
        "Engine file to write, or to replace; empty means model.engine in the results folder.",
        template=MISSING,
        shown=True,
    )
    timing_cache: OptionalText = knob(
        None, "File of kernel timings, read and extended: the next build is faster.", template=""
    )
    batch_size: int = knob(
        -1, "Batch size that the engine is fixed to; -1 leaves it open where the ONNX file does.", ge=-1, popular=True
    )
    verbose: bool = knob(False, "Show TensorRT's own log in full.")
    tensorrt: TensorRTSection = section(TensorRTSection, "How the engine is built.")
    triton: TritonSection = section(TritonSection, "A model repository of Triton Inference Server.", schema=False)
