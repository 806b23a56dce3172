"""ResNet-50 and -101: timm's, ending with the average of the last map. Keys are those of timm, torchvision and TAO."""

from __future__ import annotations

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from fiducial.backbones.recompute import norm_again, run_block
from fiducial.backbones.sizes import check_images

__all__ = ["WIDTH", "ResNetEmbedding", "build_resnet"]

WIDTH = 2048
"""Of the embedding."""

LARGE = 3 * 4 * 224 * 224
"""Numbers in a batch from which a CPU takes an eighth to a fourth less time where channels lie side by side."""
_LAYERS = {"resnet_50": (3, 4, 6, 3), "resnet_101": (3, 4, 23, 3)}
"""Bottleneck blocks of each stage."""


class _Block(Bottleneck):
    """timm's, without what a plain ResNet has not. What its first two norms make is not kept for the backward pass."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch = norm_again(self.bn1, self.conv1(x_BCHW), self.conv2, relu=True)
        branch = self.bn3(norm_again(self.bn2, branch, self.conv3, relu=True))
        branch += x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        out: Tensor = self.act3(branch)
        return out


class ResNetEmbedding(ResNet):
    """``(B, 3, H, W)`` of any size to ``(B, 2048)``: averages of rectified features, never below 0.

    As timm initialises it, the last norm of each block starts at 0: a block is at first the identity.
    """

    def __init__(self, layers: tuple[int, ...], *, activation_checkpointing: bool = False) -> None:
        super().__init__(_Block, layers, num_classes=0)  # type: ignore[arg-type]  # it wants an instance, it says
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Normalised images to embeddings. Raises: ValueError unless there are 3 channels."""
        check_images(x_B3HW, multiple=1)
        as_graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None  # of no size
        if x_B3HW.device.type == "cpu" and not as_graph and x_B3HW.numel() >= LARGE:
            x_B3HW = x_B3HW.contiguous(memory_format=torch.channels_last)  # the layers after it follow
        x_BCHW = norm_again(self.bn1, self.conv1(x_B3HW), self.maxpool, relu=True)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in self.get_submodule(stage).children():
                # timm's own checkpointing would count each batch twice in the running statistics
                x_BCHW = run_block(self.activation_checkpointing, block, x_BCHW)
        embedding_BC: Tensor = self.global_pool(x_BCHW)
        return embedding_BC


def build_resnet(name: str, *, activation_checkpointing: bool = False) -> ResNetEmbedding:
    """The untrained ``resnet_50`` or ``resnet_101``. Raises: ValueError for another name."""
    if name not in _LAYERS:
        raise ValueError(f"no ResNet {name!r}; there are {', '.join(_LAYERS)}")
    return ResNetEmbedding(_LAYERS[name], activation_checkpointing=activation_checkpointing)
