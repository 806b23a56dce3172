"""The files that let DeepStream run an exported model (``export.serialize_nvdsinfer``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fiducial.data.normalization import Normalization
from fiducial.errors import CheckpointError
from fiducial.prediction import Graph
from fiducial.run.console import LOGGER
from fiducial.spec.compose import to_yaml

_LIB = "/opt/nvidia/deepstream/deepstream/lib"
_TAO_NORMALIZATION = (127.5, 1 / 127.5)
_CLASSIFIER = {
    "classifier-threshold": 0.5,
    "cluster-mode": 2,
    "custom-lib-path": f"{_LIB}/libnvds_infercustomparser_tao.so",
    "network-type": 1,
    "output-blob-names": "output",
    "parse-classifier-func-name": "NvDsInferClassiferParseNonSoftmax",
}
# the parser of segmentations takes probabilities, and the graph gives logits: they are handed on as they are
_SEGMENTER = {"cluster-mode": 4, "network-type": 100, "output-blob-names": "output_final"}


def write_deepstream(
    onnx_path: Path,
    graph: Graph,
    normalization: Normalization,
    *,
    task: Literal["classify", "segment"],
    num_classes: int,
    compat_tao: bool = False,
) -> tuple[Path, ...]:
    """Write ``labels.txt``, ``nvdsinfer_config.yaml`` and one ``nvdspreprocess_config_{0,1}.yaml`` per input.

    DeepStream normalises with three offsets and one common factor: ``(pixel - offset) * factor`` of pixels 0..255. They
    follow from the training's mean and std (with ``compat_tao`` TAO's 0.5 / 0.5); a std that differs between channels
    is replaced by its mean, with a warning. Returns the files.

    Raises: CheckpointError when one cannot be written.
    """
    shape = max((entry.shape for entry in graph.inputs.values()), key=len)  # several goldens have an axis more
    if len(shape) > 3:
        LOGGER.warning("DeepStream files exist for one golden only: none written")
        return ()
    folder, (_, height, width) = onnx_path.parent, shape
    tao = compat_tao
    offsets, factor = _normalization(normalization, tao)
    classes = range(num_classes)
    texts = {"labels.txt": ";".join(map(str, classes)) + "\n"}
    infer = {
        **(_CLASSIFIER if task == "classify" else _SEGMENTER),
        "gie-unique-id": 1,
        "infer-dims": f"3;{height};{width}",
        "input-tensor-from-meta": 1,
        "labelfile-path": "labels.txt",
        "maintain-aspect-ratio": int(tao),
        "model-color-format": 0,
        "net-scale-factor": 0.00392156862745098,
        "network-mode": 2,
        "num-detected-classes": len(classes),
        "offsets": offsets,
        "onnx-file": onnx_path.name,
        "output-tensor-meta": 1,
        "workspace-size": 1048576,
    }
    texts["nvdsinfer_config.yaml"] = to_yaml({"property": dict(sorted(infer.items()))})
    for index, name in enumerate(graph.inputs):
        config = _preprocess(name, index, height, width, offsets, factor, tao)
        texts[f"nvdspreprocess_config_{index}.yaml"] = to_yaml(config)
    for name, text in texts.items():
        _write(folder / name, text)
    LOGGER.info("DeepStream files: %s", folder)
    return tuple(folder / name for name in texts)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fix = "clear the way, or set export.serialize_nvdsinfer=false: the .onnx file is there"
        raise CheckpointError(str(path), f"cannot be written ({error.strerror or error})", fix) from None


def _normalization(normalization: Normalization, tao: bool) -> tuple[str, float]:
    if tao:
        offset, factor = _TAO_NORMALIZATION
        return ";".join([f"{offset:g}"] * 3), round(factor, 9)
    mean, std = normalization.mean, normalization.std
    if len(set(std)) > 1:
        LOGGER.warning(
            "DeepStream has one scale factor for all channels, the training's std is %s: results will differ a little; "
            "train with three equal values of std for exact ones",
            list(std),
        )
    common = sum(std) / 3
    return ";".join(f"{255 * value:.6g}" for value in mean), 1 / (255 * common)


def _preprocess(
    name: str, index: int, height: int, width: int, offsets: str, factor: float, tao: bool
) -> dict[str, Any]:
    sources = ";".join(str(source) for source in range(index, 16, 2))
    return {
        "group": {
            "custom-input-transformation-function": "CustomAsyncTransformation",
            "process-on-roi": 0,
            "src-ids": sources,
        },
        "property": {
            "custom-lib-path": f"{_LIB}/gst-plugins/libcustom2d_preprocess.so",
            "custom-tensor-preparation-function": "CustomTensorPreparation",
            "enable": 1,
            # plain resizing, as in training; TAO's files keep the aspect ratio and pad
            "maintain-aspect-ratio": int(tao),
            "network-color-format": 0,
            "network-input-order": 0,
            "network-input-shape": f"2;3;{height};{width}",
            "process-on-frame": 1,
            "processing-height": height,
            "processing-width": width,
            "scaling-buf-pool-size": 6,
            "scaling-filter": 0,
            "scaling-pool-compute-hw": 0,
            "scaling-pool-memory-type": 0,
            "symmetric-padding": int(tao),
            "target-unique-ids": 1,
            "tensor-buf-pool-size": 6,
            "tensor-data-type": 0,
            "tensor-name": name,
            "unique-id": 5,
        },
        "user-configs": {"offsets": offsets, "pixel-normalization-factor": factor},
    }
