"""A backbone for tests of decoders."""

from torch import nn


class ToyPyramid(nn.Module):
    """Four maps of strides 4, 8, 16, 32, with batch norm: like a ViT adapter, but tiny."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, stride, stride=stride) for stride in (4, 8, 16, 32))
        self.norm = nn.BatchNorm2d(4)
        self.num_passes = 0

    def forward(self, x):
        self.num_passes += 1
        return [self.norm(conv(x)) for conv in self.convs]
