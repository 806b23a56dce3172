# mypy: disable-error-code="no-untyped-call, untyped-decorator"
"""Multi-scale deformable attention (Zhu et al. 2020, eq. 3) as one torch op with several kernels.

``torch.ops.fiducial.ms_deform_attn`` and its backward have schemas, fake kernels and autograd, so they compile, export
and trace; which kernel computes them is decided inside, by :func:`fiducial.ops.kernels.kernel_for`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fiducial.ops import export
from fiducial.ops.kernels import kernel_for

_ARGUMENTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LIB = torch.library.Library("fiducial", "DEF")
_LIB.define(f'ms_deform_attn({_ARGUMENTS}, str forced="") -> Tensor')
_LIB.define(
    f'ms_deform_attn_backward(Tensor grad, {_ARGUMENTS}, bool deterministic, str forced="") -> (Tensor, Tensor, Tensor)'
)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    kernel: str = "",
    precise: bool = False,
) -> Tensor:
    """Weighted sum of bilinear samples, ``out[b, q, m] = sum_lp weight * value_l(location)``.

    Shapes: ``value`` ``(B, S, M, D)``, its S pixels being the levels one after another, row by row; ``spatial_shapes``
    int ``(L, 2)`` of (height, width); ``level_start_index`` int ``(L,)``; ``sampling_locations``
    ``(B, Q, M, L, P, 2)``; ``attention_weights`` ``(B, Q, M, L, P)``, used as they are. Returns ``(B, Q, M*D)`` of
    ``value``'s dtype.
    Units: locations are (x, y) with 0..1 across a level, ``pixel = location * size - 0.5``; around a level there are
    zeros; points at infinity or NaN contribute nothing and get no gradient.
    Precision: float64 is computed in float64; float32, float16 and bfloat16 in float32. Give half-precision values
    float32 locations: rounded ones are off by whole pixels on large levels.
    Kernel: ``kernel`` forces one of ``torch``, ``cpp``, ``cuda``, ``triton``; ``precise`` the deterministic ``torch``.
    Determinism: only the backward of ``cuda`` and ``triton`` adds in changing order, and not when torch is asked for
    deterministic algorithms.
    Derivatives: once, in reverse; forward-mode ones are those of the ``gather`` formulation, within which
    (``with fiducial.ops.export_as("gather")``) higher ones and ``torch.func`` work, too.
    Raises: RuntimeError for shapes, dtypes or devices that do not fit; KernelError for a kernel that cannot serve.
    """
    inputs = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if formulation := export.active() or _forward_mode(inputs):
        return formulation(*inputs)
    out: Tensor = torch.ops.fiducial.ms_deform_attn(*inputs, "torch" if precise else kernel)
    return out


def _forward_mode(inputs: _Inputs) -> Callable[..., Tensor] | None:
    """What has forward-mode derivatives, where they are asked for: torch takes those of registered ops to be zero."""
    asked = not torch.compiler.is_compiling() and any(unpack_dual(tensor).tangent is not None for tensor in inputs)
    return export.gather if asked else None


def _check(value: Tensor, shapes: Tensor, starts: Tensor, loc: Tensor, attn: Tensor) -> None:
    """Everything about the inputs that is known without reading them."""
    for name, tensor, dims in (("value", value, "(B, S, M, D)"), ("sampling_locations", loc, "(B, Q, M, L, P, 2)")):
        found = tuple(tensor.shape)
        _require(len(found) == dims.count(",") + 1, f"{name} must be {dims}, found {found}")
    batch, _, heads, _ = value.shape
    queries, levels, points = loc.shape[1], loc.shape[3], loc.shape[4]
    for name, tensor, dims, expected in (
        ("sampling_locations", loc, "(B, Q, M, L, P, 2)", (batch, queries, heads, levels, points, 2)),
        ("attention_weights", attn, "(B, Q, M, L, P)", (batch, queries, heads, levels, points)),
        ("spatial_shapes", shapes, "(L, 2)", (levels, 2)),
        ("level_start_index", starts, "(L,)", (levels,)),
    ):
        found = tuple(tensor.shape)
        _require(found == expected, f"{name} must be {dims} = {expected}, found {found}")
    for name, tensor in (("value", value), ("sampling_locations", loc), ("attention_weights", attn)):
        _require(tensor.dtype in _FLOATS, f"{name} must be float32, float64, float16 or bfloat16, found {tensor.dtype}")
    for name, tensor in (("spatial_shapes", shapes), ("level_start_index", starts)):
        _require(tensor.dtype in (torch.int32, torch.int64), f"{name} must be int32 or int64, found {tensor.dtype}")
    devices = [str(tensor.device) for tensor in (value, shapes, starts, loc, attn)]
    _require(len(set(devices)) == 1, f"all inputs must be on one device, found {', '.join(devices)}")


def _check_levels(value: Tensor, shapes: Tensor, starts: Tensor) -> None:
    """The levels lie within ``value``; on a GPU, where looking would mean waiting, kernels skip those that do not."""
    if value.is_cuda:
        return
    pixels = value.shape[1]
    for level, ((height, width), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        fits = min(height, width, start) >= 0 and start + height * width <= pixels
        _require(fits, f"level {level} ({height} x {width} from pixel {start}) does not lie within {pixels} pixels")


def _require(fulfilled: bool, message: str) -> None:
    torch._check(fulfilled, lambda: f"ms_deform_attn: {message}")


def _prepare(value: Tensor, shapes: Tensor, starts: Tensor, loc: Tensor, attn: Tensor) -> _Inputs:
    """What every kernel may rely on: see :class:`fiducial.ops.kernel.Kernel`."""
    _check(value, shapes, starts, loc, attn)
    _check_levels(value, shapes, starts)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    tensors = (value, shapes.long(), starts.long(), loc.to(exact), attn.to(exact))
    value, shapes, starts, loc, attn = (_plain(tensor) for tensor in tensors)
    return value, shapes, starts, loc, attn


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, and starting where 16 bytes can be read at once, which a slice of a larger tensor may not."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _is_empty(value: Tensor, attn: Tensor) -> bool:
    return value.numel() == 0 or attn.numel() == 0


def _forward(value: Tensor, shapes: Tensor, starts: Tensor, loc: Tensor, attn: Tensor, forced: str = "") -> Tensor:
    inputs = _prepare(value, shapes, starts, loc, attn)
    if _is_empty(value, attn):
        return value.new_zeros(value.shape[0], loc.shape[1], value.shape[2] * value.shape[3])
    return kernel_for(value.device.type, forced).forward(*inputs)


def _backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    loc: Tensor,
    attn: Tensor,
    deterministic: bool,
    forced: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _prepare(value, shapes, starts, loc, attn)
    if _is_empty(value, attn):
        return (
            torch.zeros_like(value, memory_format=torch.contiguous_format),
            torch.zeros_like(loc, memory_format=torch.contiguous_format),
            torch.zeros_like(attn, memory_format=torch.contiguous_format),
        )
    chosen = kernel_for(value.device.type, forced)
    grads = chosen.backward(_plain(grad.to(value.dtype)), *inputs, deterministic)
    d_value, d_loc, d_attn = (g.to(of.dtype) for g, of in zip(grads, (value, loc, attn), strict=True))
    return d_value, d_loc, d_attn


for _key in ("CPU", "CUDA"):
    _LIB.impl("ms_deform_attn", _forward, _key)
    _LIB.impl("ms_deform_attn_backward", _backward, _key)


@torch.library.register_fake("fiducial::ms_deform_attn", lib=_LIB)
def _(value: Tensor, shapes: Tensor, starts: Tensor, loc: Tensor, attn: Tensor, forced: str = "") -> Tensor:
    _check(value, shapes, starts, loc, attn)
    return value.new_empty(value.shape[0], loc.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("fiducial::ms_deform_attn_backward", lib=_LIB)
def _(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    loc: Tensor,
    attn: Tensor,
    deterministic: bool,
    forced: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    _check(value, shapes, starts, loc, attn)
    return value.new_empty(value.shape), loc.new_empty(loc.shape), attn.new_empty(attn.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.forced = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_value, d_loc, d_attn = torch.ops.fiducial.ms_deform_attn_backward(
        grad, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled(), ctx.forced
    )
    return d_value, None, None, d_loc, d_attn, None


def _no_second_gradients(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "ms_deform_attn can be differentiated once; for second derivatives call it within"
        ' `with fiducial.ops.export_as("gather")`'
    )


torch.library.register_autograd("fiducial::ms_deform_attn", _gradients, setup_context=_remember, lib=_LIB)
torch.library.register_autograd("fiducial::ms_deform_attn_backward", _no_second_gradients, lib=_LIB)
