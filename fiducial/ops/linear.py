"""Linear layers that a CPU computes as 1 × 1 convolutions: the same but for rounding, often in half the time.

PyTorch multiplies float32 matrices with MKL, which leaves the widest vector instructions of other makers' CPUs
unused; its convolutions go through oneDNN, which asks the CPU. With one thread PyTorch convolves with MKL, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "linear", "use_fast_linears"]

HAS_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, its parameters and results; a plain one in compiled, traced and exported graphs."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, convolved where that is faster."""
    if not _is_better_convolved(x, weight_OC):
        return F.linear(x, weight_OC, bias_O)
    x_1CR1 = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y_1OR1 = F.conv2d(x_1CR1, weight_OC[:, :, None, None], bias_O)
    return y_1OR1.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight_OC))


def _is_better_convolved(x: Tensor, weight: Tensor) -> bool:
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
    )


def use_fast_linears(module: nn.Module) -> None:
    """Make every plain :class:`torch.nn.Linear` below ``module`` a :class:`Linear`, its parameters and hooks kept."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
