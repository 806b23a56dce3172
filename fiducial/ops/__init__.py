"""Operators that torch does not have, each with one exact definition and several kernels."""

from fiducial.ops.export import Formulation, export_as
from fiducial.ops.kernels import ENVIRONMENT, KERNELS, KernelError, kernel_for
from fiducial.ops.op import ms_deform_attn

__all__ = [
    "ENVIRONMENT",
    "KERNELS",
    "Formulation",
    "KernelError",
    "export_as",
    "kernel_for",
    "ms_deform_attn",
]
