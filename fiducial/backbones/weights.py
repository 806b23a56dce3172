"""Pretrained weights into a backbone: published layouts, TAO's files of every generation, other input sizes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from fiducial.backbones import dinov2, radio
from fiducial.backbones.hub import resolve_weights
from fiducial.backbones.names import BackboneInfo, backbone_info
from fiducial.backbones.vit import resize_table, table_side
from fiducial.backbones.vit_adapter import ADAPTER_PARTS
from fiducial.checkpoints.keys import KeyMap, backbone_keys, family_of, unwrapped
from fiducial.checkpoints.loading import LoadReport, load_into
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
    tensors = backbone_keys(unwrapped(state_dict), tao_model=tao_model)
    found = family_of(tensors)
    if found != family_of(()) and info.family not in found:
        raise CheckpointError(
            where,
            f"a file of {found}, but {name} is {info.family}",
            f"give a file of {info.family}, or name the backbone that the file holds",
        )
    try:
        if info.family == "C-RADIO":
            return _adapt_radio(info, role, tensors, where)
        if info.family == "NVDINOv2":
            return _adapt_dinov2(info, role, tensors, image_size, where)
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
        _require_place_for_blocks(adapted, module, name, key)
        report = load_into(module, adapted, what=what, allow=allow, explain=_other_sizes)
    else:
        checkpoint = read(resolve_weights(source, key=key), key=encryption_key, where=key)
        adapted = adapt_state_dict(
            name,
            role,
            checkpoint.state_dict,
            image_size,
            tao_model=checkpoint.meta.get("tao_model"),
            where=str(checkpoint.path),
        )
        _require_place_for_blocks(adapted, module, name, str(checkpoint.path))
        found = dataclasses.replace(checkpoint, state_dict=adapted)
        report = load_into(module, found, what=what, allow=allow, explain=_other_sizes)
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
    _refuse_plain_mlp(adapted, info, where)
    pyramid = role == "pyramid"
    grid = dinov2.pyramid_grid(image_size) if pyramid else dinov2.EMBEDDING_GRID
    adapted[table] = dinov2.resized_positions(adapted[table], (grid, grid))
    adapted[kernel] = resize_patch_kernel(adapted[kernel], dinov2.PYRAMID_PATCH if pyramid else dinov2.EMBEDDING_PATCH)
    return adapted


def _refuse_plain_mlp(tensors: Mapping[str, Tensor], info: BackboneInfo, where: str) -> None:
    """Meta's DINOv2 has the names of NVIDIA's, but another MLP in every block."""
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.ndim == 2 and hidden.shape[0] == 4 * hidden.shape[1]:
        found = f"blocks with a plain MLP of {hidden.shape[0]}, as in Meta's DINOv2; {info.name} has SwiGLU"
        raise CheckpointError(where, found, "give NVIDIA's NVDINOv2 file; Meta's weights do not fit this backbone")


def _other_sizes(key: str, wanted: tuple[int, ...] | None, given: tuple[int, ...] | None) -> str:
    return "name the backbone that the file holds, or give a file of this one"


def resize_patch_kernel(kernel_C3PP: Tensor, patch: int, *, align_corners: bool = False) -> Tensor:
    """A patch embedding's kernel for another patch size: bicubic in float32, neither antialiased nor rescaled."""
    if kernel_C3PP.shape[-1] == patch:
        return kernel_C3PP
    resized = F.interpolate(kernel_C3PP.float(), size=(patch, patch), mode="bicubic", align_corners=align_corners)
    return resized.to(kernel_C3PP.dtype)


def _require_place_for_blocks(tensors: Mapping[str, Tensor], module: nn.Module, name: str, where: str) -> None:
    """A deeper network than the module, or one whose blocks do more, would lose what it has learned."""
    wanted = module.state_dict().keys()
    spare = [key for key in tensors if "blocks" in key.split(".") and key not in wanted]
    if spare:
        raise CheckpointError(
            where,
            f"{len(spare)} tensors of the file's blocks are not in {name}: {', '.join(spare[:3])}, …",
            "name the backbone that the file holds",
        )


def _require(tensors: Mapping[str, Tensor], keys: tuple[str, ...], info: BackboneInfo, where: str) -> None:
    missing = [key for key in keys if key not in tensors]
    if missing:
        names = ", ".join(list(tensors)[:3]) or "nothing of use"
        raise CheckpointError(
            where,
            f"no {' and no '.join(missing)} in the file, which looks like {family_of(tensors)} (it has {names}, …)",
            f"give a complete file of {info.family} for {info.name}",
        )
