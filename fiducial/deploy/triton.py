"""A model repository of Triton Inference Server: a folder of each model, a folder of each of its versions in that."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fiducial.deploy.card import ENTRY, ModelCard, TensorCard
from fiducial.deploy.digest import ENGINE_SUFFIXES, IR_SUFFIX, model_files
from fiducial.errors import CheckpointError, Problem

__all__ = ["add_to_repository", "check_triton", "config_text"]

_RUNTIMES = {
    ".onnx": ("onnxruntime", "model.onnx"),
    IR_SUFFIX: ("openvino", f"model{IR_SUFFIX}"),
    **dict.fromkeys(ENGINE_SUFFIXES, ("tensorrt", "model.plan")),
}
"""By suffix: the backend, and how it wants the file to be called."""
_TYPES = {
    **{"float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "bool": "TYPE_BOOL"},
    **{"uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64"},
}
_QUEUE_MICROSECONDS = 1000
"""How long a request waits for others to be computed with it: little beside what a batch takes."""


def check_triton(section: Any, key: str) -> Iterator[Problem]:
    """What is wrong with a spec's ``triton`` section, ``key``: the name of a model is that of a folder."""
    name, key = section.name, f"{key}.name"
    if name is None:
        return
    if not name.strip() or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        yield Problem(key, f"{name!r} is no name of a folder", "use letters, digits, _ and -")


def add_to_repository(
    repository: Path, name: str, model: Path, card: ModelCard, *, batch_size: int, max_batch_size: int
) -> tuple[Path, ...]:
    """Add a model file as the next version of ``<repository>/<name>``, with its weights and its configuration.

    ``card``: the file's own, which says what its inputs and outputs are. ``batch_size``: what its graph is fixed to, or
    -1: any; then up to ``max_batch_size`` items are put together. Returns the files, the model first.

    Raises: CheckpointError for a kind of file, or numbers, that Triton does not run, or when nothing can be written.
    """
    text = config_text(name, model, card, batch_size=batch_size, max_batch_size=max_batch_size)
    folder = repository / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as made:  # no number: Triton leaves it alone
            whole = Path(made) / "version"
            whole.mkdir()
            names = [_copied(part, whole, model) for part in model_files(model)]
            config = Path(made) / "config.pbtxt"
            config.write_text(text, encoding="utf-8")
            version = folder / str(1 + max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0))
            os.replace(whole, version)
            os.replace(config, folder / config.name)
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise CheckpointError(str(folder), found, "check the folder's permissions and space") from None
    return (*(version / name for name in names), folder / config.name)


def _copied(part: Path, folder: Path, model: Path) -> str:
    _, called = _RUNTIMES[model.suffix.lower()]
    if part == model:
        name = called
    else:  # a graph of ONNX knows its weights by their name
        name = part.name if part.name.startswith(model.name) else Path(called).with_suffix(part.suffix).name
    shutil.copyfile(part, folder / name)
    return name


def config_text(name: str, model: Path, card: ModelCard, *, batch_size: int, max_batch_size: int) -> str:
    """``config.pbtxt``: Triton's ``inference.ModelConfig`` as text. Raises: as :func:`add_to_repository`."""
    if model.suffix.lower() not in _RUNTIMES:
        raise CheckpointError(str(model), "of a kind that Triton does not run", f"give {', '.join(_RUNTIMES)}")
    if not card.inputs or not card.outputs:
        raise CheckpointError(str(model), "its card does not say what its inputs and outputs are", "export it again")
    backend, file_name = _RUNTIMES[model.suffix.lower()]
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "default_model_filename": file_name,
        "max_batch_size": max_batch_size if batch_size < 0 else 0,
        "input": [_tensor(model, *item, batch_size=batch_size) for item in card.inputs.items()],
        "output": [_tensor(model, *item, batch_size=batch_size) for item in card.outputs.items()],
    }
    if batch_size < 0 and max_batch_size > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _QUEUE_MICROSECONDS}
    about = json.dumps(card.plain(), ensure_ascii=True)
    config["parameters"] = [{"key": ENTRY, "value": {"string_value": about}}]
    return "".join(f"{line}\n" for line in _lines(config))


def _tensor(model: Path, name: str, card: TensorCard, *, batch_size: int) -> dict[str, Any]:
    if card.dtype not in _TYPES:
        raise CheckpointError(str(model), f"{name} is a {card.dtype}, which Triton has not", "export it again")
    said: dict[str, Any] = {"name": name, "data_type": _Word(_TYPES[card.dtype])}
    if batch_size > 0:  # without Triton's batching the batch is an axis like any other
        return {**said, "dims": [batch_size, *card.shape]}
    if not card.shape:  # a number of each item, where Triton wants an axis
        return {**said, "dims": [1], "reshape": {"shape": []}}
    return {**said, "dims": list(card.shape)}


class _Word(str):
    """A name of an enumeration, which stands without quotes."""


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A message in protobuf's text format."""
    for name, value in fields.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if isinstance(one, dict):
                yield f"{indent}{name} {{"
                yield from _lines(one, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, _Word | int) else json.dumps(value, ensure_ascii=False)
