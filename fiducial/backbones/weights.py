"""Pretrained weights into a backbone: published layouts, TAO's files of every generation, other input sizes."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fiducial.backbones import dinov2, radio
from fiducial.backbones.hub import resolve_weights
from fiducial.backbones.names import BACKBONES, BackboneInfo, backbone_info, backbones_of
from fiducial.backbones.vit import resize_table, table_side
from fiducial.backbones.vit_adapter import ADAPTER_PARTS
from fiducial.checkpoints.keys import KeyMap, backbone_keys, family_of
from fiducial.checkpoints.loading import LoadReport, is_shapes_alone, load_into
from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError
from fiducial.redact import redact_text

__all__ = ["KEY_MAPS", "adapt_state_dict", "load_backbone", "resize_patch_kernel"]

log = logging.getLogger("fiducial")

KEY_MAPS = (
    KeyMap(
        "C-RADIO adapter of TAO up to 6.25.7",
        has=("model.backbone.radio.model.",),
        renames=(("model.backbone.radio.model.", "model.backbone.radio.radio.radio.model."),),
    ),
)
"""Older layouts of the backbone within a whole ChangeNet checkpoint."""

_RADIO_PREFIXES = (
    "radio_model.model.",  # the hub's safetensors file
    "base_model.",  # NVIDIA's training checkpoints
    "radio.radio.radio.model.",  # TAO's adapter
    "radio.radio.model.",  # TAO's embedding
    "radio.model.",  # TAO's adapter up to 6.25.7
)
_RADIO_NOT_USED = (
    *("radio_model.", "input_conditioner.", "summary_idxs", "reg_token", "adaptors.", "feature_normalizer."),
    *("inter_feature_normalizer.", "_heads.", "_feature_projections.", "_feature_normalizer."),
)


def adapt_state_dict(
    name: str,
    role: str,
    state_dict: Mapping[str, Tensor],
    image_size: tuple[int, int],
    *,
    tao_model: str | None = None,
    where: str = "weights",
) -> dict[str, Tensor]:
    """The tensors of a pretrained file as the backbone ``name`` built for ``role`` and ``image_size`` takes them.

    Names become those of the module, whatever the layout of the file; patch kernels and position tables of another size
    are resized as TAO does; what the module has no use for in a known layout (heads, input conditioner) is left out.
    The given dict is not changed. ``tao_model`` is the file's entry of that name; ``where`` names the file in messages.
    Raises: CheckpointError when the file is of another family, or has no position table or patch embedding.
    """
    info = backbone_info(name)
    tensors = backbone_keys(state_dict, tao_model=tao_model)
    found = family_of(tensors)
    if found != family_of(()) and info.family not in found:
        has_one = any(known.family in found for known in BACKBONES.values())
        raise CheckpointError(
            where,
            f"a file of {found}, but {name} is {info.family}",
            f"give a file of {info.family}" + (", or name the backbone that the file holds" if has_one else ""),
        )
    try:
        if info.family == "C-RADIO":
            return _adapt_radio(info, role, tensors, where)
        if info.family == "NVDINOv2":
            return _adapt_dinov2(info, role, tensors, image_size, where)
        if info.family == "DINOv3":
            return _adapt_dinov3(info, role, tensors, where)
    except (ValueError, RuntimeError, IndexError) as error:
        fix = f"give a complete file of {info.family} for {info.name}"
        raise CheckpointError(where, f"patch embedding or position table of no usable shape: {error}", fix) from error
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(("norm.", "head."))}


def load_backbone(
    module: nn.Module,
    name: str,
    role: str,
    source: str | Path | Mapping[str, Tensor],
    image_size: tuple[int, int],
    *,
    key: str = "weights",
    encryption_key: str | None = None,
) -> LoadReport:
    """Loads pretrained weights into a module that ``build_pyramid`` or ``build_embedding`` made for ``image_size``.

    A module on torch's device ``meta`` is only compared with the file.
    ``source`` is what the spec key ``key`` may hold (see :func:`fiducial.backbones.hub.resolve_weights`), or a state
    dict. What a bare backbone's file cannot have (adapter, FAN's downsampling) may be missing and keeps its values.
    Raises: CheckpointError when the file cannot be read, is of another family or size, or less than 90 % of the
        backbone's tensors are in it; SourceError when there is no such file.
    """
    origin = redact_text(str(source)) if isinstance(source, (str, Path)) else "a state dict"
    what = f"{name} ({role}) from {origin}"
    allow = ("learnable_downsample.*", *(f"{part}*" for part in ADAPTER_PARTS)) if role == "pyramid" else ()
    if isinstance(source, Mapping):
        adapted = adapt_state_dict(name, role, source, image_size, where=key)
        _check_fit(adapted, module, name, key)
        report = load_into(module, adapted, what=what, allow=allow)
    else:
        device = "meta" if is_shapes_alone(module) else "cpu"
        checkpoint = read(resolve_weights(source, key=key), device=device, key=encryption_key, where=key)
        adapted = adapt_state_dict(
            name,
            role,
            checkpoint.state_dict,
            image_size,
            tao_model=checkpoint.meta.get("tao_model"),
            where=str(checkpoint.path),
        )
        _check_fit(adapted, module, name, str(checkpoint.path))
        report = load_into(module, dataclasses.replace(checkpoint, state_dict=adapted), what=what, allow=allow)
    if not is_shapes_alone(module):
        log.log(logging.WARNING if report.missing else logging.INFO, "%s", report.summary())
    return report


def _adapt_radio(info: BackboneInfo, role: str, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    ours = "radio.radio.radio.model." if role == "pyramid" else "radio.radio.model."
    adapted = {}
    for key, tensor in tensors.items():
        inner = _without_prefix(key)
        if inner.startswith(("patch_generator.", "blocks.")):
            adapted[ours + inner.replace("grandma", "gamma", 1)] = tensor  # the spelling that the hub's library forces
        elif not inner.startswith(_RADIO_NOT_USED):
            adapted[inner] = tensor
    table, kernel = f"{ours}patch_generator.pos_embed", f"{ours}patch_generator.embedder.weight"
    _require(adapted, (table, kernel), info, where)
    adapted[table] = _radio_table(adapted[table])
    adapted[kernel] = _radio_kernel(adapted[kernel])
    return adapted


def _without_prefix(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in _RADIO_PREFIXES if key.startswith(prefix)), key)


def _radio_table(table_1NC: Tensor) -> Tensor:
    if table_side(table_1NC) == radio.GRID:
        return table_1NC
    return resize_table(table_1NC, (radio.GRID, radio.GRID), mode="bicubic", align_corners=True)


def _radio_kernel(weight_CP: Tensor) -> Tensor:
    """The patch embedding ``(C, 3 * p * p)`` for patches of 16."""
    side = round((weight_CP.shape[1] / 3) ** 0.5)
    kernel = weight_CP.reshape(-1, 3, side, side)
    return resize_patch_kernel(kernel, radio.PATCH, align_corners=True).flatten(1)


def _adapt_dinov2(
    info: BackboneInfo, role: str, tensors: dict[str, Tensor], image_size: tuple[int, int], where: str
) -> dict[str, Tensor]:
    adapted = {key: tensor for key, tensor in tensors.items() if not key.startswith(("mask_token", "head."))}
    table, kernel = "pos_embed", "patch_embed.proj.weight"
    _require(adapted, (table, kernel), info, where)
    pyramid = role == "pyramid"
    grid = dinov2.pyramid_grid(image_size) if pyramid else dinov2.EMBEDDING_GRID
    adapted[table] = dinov2.resized_positions(adapted[table], (grid, grid))
    adapted[kernel] = resize_patch_kernel(adapted[kernel], dinov2.PYRAMID_PATCH if pyramid else dinov2.EMBEDDING_PATCH)
    return adapted


_DINOV3_PREFIXES = ("vit.", "inner.")
"""TAO's adapter and embedding."""
_DINOV3_NOT_USED = re.compile(r"(head|rope|rope_embed|local_cls_norm)\..*|mask_token|blocks\.\d+\.attn\.qkv\.bias_mask")
_DINOV3_NAMES = ((re.compile(r"^storage_tokens$"), "reg_token"), (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1"))
"""Meta's names to timm's."""


def _adapt_dinov3(info: BackboneInfo, role: str, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """timm's layout, or Meta's, under the name that TAO's wrapper of the role gives the ViT; nothing is resized."""
    ours, adapted = "vit." if role == "pyramid" else "inner.", {}
    for key, tensor in tensors.items():
        prefix = next((p for p in _DINOV3_PREFIXES if key.startswith(p)), "")
        inner = key.removeprefix(prefix)
        for theirs, name in _DINOV3_NAMES:
            inner = theirs.sub(name, inner)
        if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", inner):
            _drop_bias(inner, tensor, info, where)
        elif not _DINOV3_NOT_USED.fullmatch(inner):
            is_adapter = not prefix and inner.startswith(ADAPTER_PARTS)
            adapted[inner if is_adapter else ours + inner] = tensor
    _require(adapted, (f"{ours}cls_token", f"{ours}reg_token", f"{ours}patch_embed.proj.weight"), info, where)
    return adapted


def _drop_bias(key: str, bias_3C: Tensor, info: BackboneInfo, where: str) -> None:
    """Meta's files have biases of queries and values, which are 0; another value is told of. The keys' never count."""
    query_C, _, value_C = bias_3C.chunk(3)
    if not bias_3C.is_meta and bool(torch.cat((query_C, value_C)).any()):
        log.warning("%s: %s is not 0, and is left out: %s has no such biases", where, key, info.name)


def resize_patch_kernel(kernel_C3PP: Tensor, patch: int, *, align_corners: bool = False) -> Tensor:
    """A patch embedding's kernel for another patch size: bicubic in float32, neither antialiased nor rescaled."""
    if kernel_C3PP.shape[-1] == patch:
        return kernel_C3PP
    resized = F.interpolate(kernel_C3PP.float(), size=(patch, patch), mode="bicubic", align_corners=align_corners)
    return resized.to(kernel_C3PP.dtype)


def _check_fit(tensors: Mapping[str, Tensor], module: nn.Module, name: str, where: str) -> None:
    """Another network of the family would be told of by every tensor; a deeper one would lose what it has learned."""
    wanted = module.state_dict()
    spare = [key for key in tensors if "blocks" in key.split(".") and key not in wanted]
    other = [key for key in tensors if key in wanted and tensors[key].shape != wanted[key].shape]
    found = []
    if spare:
        found.append(f"{len(spare)} tensors of the file's blocks are not in {name}: {', '.join(spare[:3])}, …")
    if other:
        first = other[0]
        sizes = f"{list(tensors[first].shape)} in the file, {list(wanted[first].shape)} in the model"
        found.append(f"{len(other)} tensors have other sizes than in {name}: {first} is {sizes}")
    if found:
        cause, fix = _cause({key: tuple(tensor.shape) for key, tensor in tensors.items()}, name)
        raise CheckpointError(where, "; ".join((*cause, *found)), fix)


def _cause(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[tuple[str, ...], str]:
    """What a file is that does not fit the backbone ``name``, where that can be told, and what to do."""
    if fitting := [other for other in backbones_of(shapes) if other != name]:
        names = " or ".join(fitting)
        return (f"the file holds {names}",), f"name that backbone, or give a file of {name}"
    fix = f"give a file of {name}"
    hidden, inner = (shapes.get(f"blocks.0.mlp.{key}.weight", ()) for key in ("fc1", "fc2"))
    is_plain = len(hidden) == len(inner) == 2 and hidden[0] == inner[1]
    if backbone_info(name).family == "NVDINOv2" and (is_plain or "blocks.0.mlp.w12.weight" in shapes):
        cause = "the file is a DINOv2 as Meta publishes it; NVIDIA's has another MLP (gated, 5472 wide)"
        return (cause,), f"{fix}, such as NVIDIA's NV_DINOV2_518; no backbone here takes Meta's"
    return (), fix


def _require(tensors: Mapping[str, Tensor], keys: tuple[str, ...], info: BackboneInfo, where: str) -> None:
    missing = [key for key in keys if key not in tensors]
    if missing:
        names = ", ".join(list(tensors)[:3]) or "nothing of use"
        raise CheckpointError(
            where,
            f"no {' and no '.join(missing)} in the file, which looks like {family_of(tensors)} (it has {names}, …)",
            f"give a complete file of {info.family} for {info.name}",
        )
