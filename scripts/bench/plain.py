"""The networks written the straightforward way, on the same weights: the baseline that benchmarks name so.

Two backbone passes, one after the other; attention with its scores in memory; FAN's class tokens, on which no map
depends; its norms over channels by mean and variance; deformable attention by grid sampling; tables of positions
resized in every pass; the summary token repeated for every cell and joined before the ViT's maps; the two images' maps
joined before every convolution that compares them, and the maps of all scales enlarged and joined before the 1 × 1
convolution; predictions of single scales always computed; linear layers as torch has them. So the peer's networks are
described by those who read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.backbones import deformable, radio, vit_adapter
from fiducial.backbones.deformable import MSDeformAttn
from fiducial.backbones.fan import FanTrunk
from fiducial.backbones.fan_parts import LayerNorm2d
from fiducial.backbones.vit import SizeCache, as_map, as_table
from fiducial.ops.linear import Linear
from mal.mean_field import MeanField

Maps = Sequence[Tensor]


class PlainPair:
    """Computes what a network for pairs computes, with its modules and weights; :meth:`decode` for one of them."""

    def __init__(self, network: nn.Module) -> None:
        self.backbone: Any = network.backbone
        self.network: Any = network

    def __call__(self, first: Tensor, second: Tensor) -> Any:
        with plain_functions(), class_tokens(self.backbone):
            return self.decode(self.backbone(first), self.backbone(second))

    def decode(self, first: Any, second: Any) -> Any:
        raise NotImplementedError


class PlainSegmenter(PlainPair):
    """All predictions of a segmenter, coarsest first."""

    def decode(self, first: Maps, second: Maps) -> tuple[Tensor, ...]:
        decoder = self.network.decoder
        maps = difference_maps(decoder, first, second)
        auxiliary = [getattr(decoder, f"make_pred_c{len(maps) - place}")(x) for place, x in enumerate(maps)]
        x = decoder.dense_2x(decoder.convd2x(joined(decoder.linear_fuse, maps)))
        return (*auxiliary, decoder.change_probability(decoder.dense_1x(decoder.convd1x(x))))


class PlainClassifier(PlainPair):
    """Logits of a learnable classifier for one golden."""

    def decode(self, first: Maps, second: Maps) -> Tensor:
        decoder = self.network.decoder
        logit_BK: Tensor = decoder.classifier(
            joined(decoder.linear_fuse, difference_maps(decoder, first, second)).flatten(1)
        )
        return logit_BK


class PlainDistance(PlainPair):
    """Distances of a euclidean classifier."""

    def decode(self, first: Tensor, second: Tensor) -> Tensor:
        return F.pairwise_distance(self.network.fc1(first), self.network.fc1(second))


def difference_maps(decoder: Any, first: Maps, second: Maps) -> list[Tensor]:
    """The differences of two pyramids, coarse to fine."""
    maps: list[Tensor] = []
    for scale in range(len(first), 0, -1):
        project, compare = getattr(decoder, f"linear_c{scale}"), getattr(decoder, f"diff_c{scale}")
        both = torch.cat((project(first[scale - 1]), project(second[scale - 1])), dim=1)
        difference = nn.Sequential.forward(compare, both)
        if maps:
            difference = difference + enlarged(maps[-1], difference)
        maps.append(difference)
    return maps


def joined(layer: nn.Module, maps: Maps) -> Tensor:
    """A 1 × 1 convolution of all maps, coarse to fine, enlarged to the last."""
    fused: Tensor = layer(torch.cat([enlarged(x, maps[-1]) for x in maps], dim=1))
    return fused


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape == like.shape else F.interpolate(x, size=like.shape[-2:], mode="bilinear")


# --- functions -------------------------------------------------------------------------------------------------------


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, *_: object, scale: float | None = None, **__: object
) -> Tensor:
    """``softmax(scale q kᵀ) v``, every intermediate in memory."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value


def sampled_attention(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, **_: object
) -> Tensor:
    """Deformable attention by one ``grid_sample`` per level; shapes as in :func:`fiducial.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    sampled = []
    for level, (height, width) in enumerate(shapes.tolist()):
        part = value[:, int(starts[level]) :][:, : height * width]
        map_NDHW = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid_NQP2 = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled.append(F.grid_sample(map_NDHW, grid_NQP2.to(value.dtype), align_corners=False))
    weight_N1QX = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    attended_NDQ = (torch.cat(sampled, dim=-1) * weight_N1QX).sum(-1)
    return attended_NDQ.view(batch, heads * channels, queries).transpose(1, 2)


def joined_summary(conv: nn.Conv2d, summary: Tensor, cells: Tensor) -> Tensor:
    """The 1×1 convolution of a map and, before its channels, the summary repeated for every cell."""
    mixed: Tensor = conv(torch.cat((summary[:, :, None, None].expand_as(cells), cells), dim=1))
    return mixed


def channel_norm(norm: LayerNorm2d, x_BCHW: Tensor) -> Tensor:
    """Layer norm over the channels of a map; by variance and mean where the layer divides by C - 1."""
    if norm.ratio == 1:
        x_BHWC = F.layer_norm(x_BCHW.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return x_BHWC.permute(0, 3, 1, 2)
    variance, mean = torch.var_mean(x_BCHW, dim=1, keepdim=True)
    x_BCHW = (x_BCHW - mean) * torch.rsqrt(variance + norm.eps)
    return x_BCHW * norm.weight[:, None, None] + norm.bias[:, None, None]


def sampled_crops(table_1NC: Tensor, crops_B22: Tensor, grid: tuple[int, int]) -> Tensor:
    """Crops of a position table, each sampled from a copy of it; shapes as in :mod:`fiducial.backbones.radio`."""
    table_BCHW = as_map(table_1NC).expand(len(crops_B22), -1, -1, -1)
    (width_B, height_B), (left_B, top_B) = crops_B22.unbind(1)[0].T, crops_B22.unbind(1)[1].T
    y_Bh, x_Bw = (
        offset[:, None] + size[:, None] * torch.linspace(0, 1, count)
        for count, size, offset in zip(grid, (height_B, width_B), (top_B, left_B), strict=True)
    )
    x_Bhw, y_Bhw = x_Bw[:, None].expand(-1, grid[0], -1), y_Bh[:, :, None].expand(-1, -1, grid[1])
    return as_table(F.grid_sample(table_BCHW, 2 * torch.stack((x_Bhw, y_Bhw), -1) - 1, align_corners=True))


@contextmanager
def plain_functions() -> Iterator[None]:
    """Let every layer use the functions above, no table that was kept, and torch's linear layers."""
    with (
        mock.patch.object(F, "scaled_dot_product_attention", explicit_attention),
        mock.patch.object(deformable, "ms_deform_attn", sampled_attention),
        mock.patch.object(vit_adapter, "mix_summary", joined_summary),
        mock.patch.object(radio, "crop_table", sampled_crops),
        mock.patch.object(LayerNorm2d, "forward", channel_norm),
        mock.patch.object(SizeCache, "get", lambda cache, key, make, source=None: make()),
        mock.patch.object(Linear, "forward", nn.Linear.forward),
    ):
        yield


@contextmanager
def class_tokens(backbone: nn.Module) -> Iterator[None]:
    """Let FAN also compute its class token, which no map depends on."""
    hooks = []
    if isinstance(backbone, FanTrunk):
        token = backbone.cls_token
        for block in backbone.cls_attn_blocks:
            hooks.append(block.register_forward_hook(lambda block, args, _: _with_class_token(block, args[0], token)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_class_token(block: Any, patches: Tensor, token: Tensor) -> Tensor:
    """XCiT's class attention block, on all tokens; its patches are the result."""
    x = torch.cat((token.expand(len(patches), -1, -1), patches), dim=1)
    normed = block.norm1(x)
    x = x + block.gamma1 * torch.cat((block.attn(normed), normed[:, 1:]), dim=1)
    x = block.norm2(x)
    changed: Tensor = x + torch.cat((block.gamma2 * block.mlp(x[:, :1]), x[:, 1:]), dim=1)
    return changed[:, 1:]


def trained_looking(network: nn.Module) -> nn.Module:
    """With batch norm statistics and sampling offsets that are not those of a fresh network.

    Fresh offsets hit the centres of pixels, where the gradient to them jumps, and rounding alone chooses the side.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.momentum = 0.0  # training steps leave them as they are
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(module, MSDeformAttn):
            bias = module.sampling_offsets.bias
            bias.data += torch.empty_like(bias).uniform_(-0.5, 0.5, generator=generator)
    return network


def unfolded_field(field: MeanField, image_B3HW: Tensor, prob_BHW: Tensor, box_BHW: Tensor) -> Tensor:
    """MAL's mean field by ``unfold``: in every iteration the neighbours of all pixels are laid out in memory."""
    batch, _, height, width = image_B3HW.shape

    def around(x_BCHW: Tensor) -> Tensor:
        unfolded = F.unfold(x_BCHW, field.kernel_size, padding=field.kernel_size // 2)
        return unfolded.view(batch, x_BCHW.shape[1], field.kernel_size**2, height * width)

    shifted = image_B3HW + 10
    apart_B1KN = (around(shifted) - shifted.view(batch, 3, 1, -1)).square().sum(1, keepdim=True)
    affinity_B1KN = torch.exp(-apart_B1KN / (2 * field.zeta**2))
    x_BHW = (prob_BHW * box_BHW).clamp(field.low, field.high)
    for _ in range(field.num_iter):
        labels_B2HW = torch.stack([1 - x_BHW, x_BHW], 1)
        product_B2HW = (affinity_B1KN * around(labels_B2HW.log())).sum(2).exp().view_as(labels_B2HW)
        background, foreground = product_B2HW[:, 0], product_B2HW[:, 1] * box_BHW
        x_BHW = (foreground / (1e-6 + background + foreground)).clamp(field.low, field.high)
    return (x_BHW > 0.5).float()
