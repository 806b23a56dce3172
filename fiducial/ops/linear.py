"""Linear layers that a CPU computes as 1 × 1 convolutions, where it is faster so: the same but for rounding.

PyTorch multiplies float32 matrices with MKL, which leaves the widest vector instructions of some CPUs unused; its
convolutions go through oneDNN, which uses them but copies the weights first. Between half and twice the time was seen,
so each shape is timed (:mod:`fiducial.ops.fastest`): apart where a backward pass follows, which loses more often.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.ops.fastest import Fastest

__all__ = ["LINEARS", "Linear", "linear", "linear_into", "use_fast_linears", "use_plain_linears"]

LINEARS = Fastest("linear layers", ("plain", "convolution"))
MOST_ROWS = 256
"""More rows than these are timed as these: the ratio stays."""

HAS_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, its parameters and results; a plain one in compiled, traced and exported graphs."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, convolved where that is faster on this machine."""
    if _can_be_convolved(x, weight_OC) and _is_better_convolved(x, weight_OC):
        return _convolved(x, weight_OC, bias_O)
    return F.linear(x, weight_OC, bias_O)


def linear_into(out: Tensor, x: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
    """:func:`linear` of rows ``(R, C)`` without gradients, in the memory of ``out`` ``(R, O)`` unless it is convolved.

    New memory for each result costs more than a small product does.
    """

    def into(x: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
        return torch.addmm(bias_O, x, weight_OC.T, out=out)

    if _can_be_convolved(x, weight_OC):
        shape = (*x.shape, len(weight_OC))
        ways = [partial(way, x, weight_OC, bias_O) for way in (into, _convolved)]
        if LINEARS.way("search", shape, lambda: ways) != "plain":
            return _convolved(x, weight_OC, bias_O)
    return into(x, weight_OC, bias_O)


def _convolved(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None = None) -> Tensor:
    # all rows in one line of a map: as lines of one pixel, some numbers of them (1025) take twice as long in training
    x_1C1R = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y_1O1R = F.conv2d(x_1C1R, weight_OC[:, :, None, None], bias_O)
    return y_1O1R.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight_OC))


def _can_be_convolved(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and x.shape[-1] == weight.shape[1]  # else the plain layer says what is wrong
        and type(weight) in (nn.Parameter, Tensor)  # quantized weights know linear layers alone
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # nothing could be timed within a transform
    )


def _is_better_convolved(x: Tensor, weight_OC: Tensor) -> bool:
    rows, (width_out, width_in) = x.numel() // x.shape[-1], weight_OC.shape
    trained = torch.is_grad_enabled() and (x.requires_grad or weight_OC.requires_grad)
    power_of_two = 1 << (rows - 1).bit_length()
    shape = (min(power_of_two, MOST_ROWS), width_in, width_out)
    mode = "training" if trained else "inference"
    return LINEARS.way(mode, shape, lambda: [_run(way, shape, trained) for way in (F.linear, _convolved)]) != "plain"


def _run(way: Callable[..., Tensor], shape: tuple[int, int, int], trained: bool) -> Callable[[], object]:
    """What is timed: a layer of ones, forward, and backward where it is ``trained``. No random number is drawn."""
    rows, width_in, width_out = shape
    made = torch.ones(rows, width_in), torch.ones(width_out, width_in), torch.ones(width_out)
    given = [tensor.requires_grad_(trained) for tensor in made]
    gradient = torch.ones(rows, width_out)

    def run() -> object:
        y = way(*given)
        return torch.autograd.grad(y, given, gradient) if trained else y

    return run


def use_fast_linears(module: nn.Module) -> None:
    """Make every plain :class:`torch.nn.Linear` below ``module`` a :class:`Linear`, its parameters and hooks kept."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def use_plain_linears(module: nn.Module) -> None:
    """The reverse of :func:`use_fast_linears`, for libraries that know a layer by its very class."""
    for layer in module.modules():
        if type(layer) is Linear:
            layer.__class__ = nn.Linear  # type: ignore[assignment]
