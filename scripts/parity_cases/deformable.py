"""Multi-scale deformable attention: the bare op, and the layer around it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fiducial.backbones.deformable import MSDeformAttn
from fiducial.ops import ms_deform_attn
from parity_cases import Case, Output, runs

OP_INPUTS = ("value", "sampling_locations", "attention_weights")


@runs("msda_op")
def op(case: Case) -> Mapping[str, Output]:
    """output, and the gradients for grad_output."""
    inputs = case.inputs()
    value, locations, weights = (inputs[name].requires_grad_() for name in OP_INPUTS)
    output = ms_deform_attn(value, *_levels(case.config["spatial_shapes"]), locations, weights)
    if case.config["forward_only"]:
        return {"output": output}
    gradients = torch.autograd.grad(output, (value, locations, weights), inputs["grad_output"])
    return {"output": output} | {f"grad_{name}": grad for name, grad in zip(OP_INPUTS, gradients, strict=True)}


@runs("msda_module_run")
def layer(case: Case) -> Mapping[str, Output]:
    """output, the gradients of the inputs, and the norms of the parameters' gradients."""
    config, inputs = case.config, case.inputs()
    model = MSDeformAttn(
        config["d_model"],
        num_levels=config["n_levels"],
        num_heads=config["n_heads"],
        num_points=config["n_points"],
        ratio=config["ratio"],
    )
    model.load_state_dict(case.weights())
    query, features = inputs["query"].requires_grad_(), inputs["input_flatten"].requires_grad_()
    output = model(query, inputs["reference_points"], features, *_levels(case.manifest["spatial_shapes"]))
    output.backward(inputs["grad_output"])
    return {
        "output": output,
        "grad_query": query.grad,
        "grad_input_flatten": features.grad,
        "grad_norms": torch.stack([parameter.grad.norm() for parameter in model.parameters()]),
    }


def _levels(sizes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Their (height, width), and where each begins."""
    shapes = torch.tensor(sizes)
    num_pixels = shapes.prod(1)
    return shapes, num_pixels.cumsum(0) - num_pixels
