"""The network of Visual ChangeNet segment: which pixels changed between two images?

Keys are those of a TAO checkpoint without the leading ``model.``. Both images are ``(B, 3, H, W)``, normalised.

Dims: B batch, E decoder channels, K classes, H and W rows and columns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changenet.difference import DifferencePyramid, Pyramid, check_same_shape, fuse, fusion_layer
from fiducial.backbones.alone import sees_images_alone
from fiducial.backbones.names import backbone_info, build_pyramid

__all__ = ["ChangeDecoder", "ChangeSegmenter", "Predictions", "average_predictions", "build_segmenter"]

FINAL = "output_final"
"""Name of the output that results are made of, in predictions and in exported models."""
Predictions = tuple[Tensor, ...]
"""Logits ``(B, K, ., .)``, coarsest first; the last has the size of the image and is the result."""

RESIDUAL_SCALE = 0.1
PIXELS_AT_ONCE = {"cpu": 2**16}
MOST_PIXELS_AT_ONCE = 2**19
"""Pixels of the pairs that go through the network together where no gradient is wanted: the last layers hold hundreds
of channels of every pixel, and a CPU gains nothing from more."""


def _named_conv(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv2d=conv))


class _Residual(nn.Module):
    """``x + 0.1 conv(ReLU(conv(x)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _named_conv(nn.Conv2d(width, width, 3, padding=1))
        self.conv2 = _named_conv(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x_BEHW: Tensor) -> Tensor:
        branch: Tensor = self.conv2(self.hidden(x_BEHW))
        return torch.add(x_BEHW, branch, alpha=RESIDUAL_SCALE)

    def hidden(self, x_BEHW: Tensor) -> Tensor:
        """What ``conv2`` sees."""
        return F.relu(self.conv1(x_BEHW), inplace=True)


def _conv_after_conv(x_BEHW: Tensor, inner: nn.Conv2d, outer: nn.Conv2d) -> Tensor:
    """``outer(inner(x))`` without outer's bias, for two 3×3 convolutions of padding 1, without the map between them.

    Each of outer's nine taps is multiplied with inner's weights, which gives nine small convolutions; their maps, K
    channels each, are moved to the taps' places and added. Beyond the border nothing is added, as with padding.
    """
    num_classes = outer.out_channels
    tap_9KE = outer.weight.permute(2, 3, 0, 1).flatten(0, 2)
    weight = (tap_9KE @ inner.weight.flatten(1)).view(-1, *inner.weight.shape[1:])
    bias = None if inner.bias is None else tap_9KE @ inner.bias
    part_B9KHW = F.conv2d(x_BEHW, weight, bias, padding=1)
    place = torch.eye(9, dtype=weight.dtype, device=weight.device).view(1, 9, 1, 3, 3)
    same_class = torch.eye(num_classes, dtype=weight.dtype, device=weight.device).view(-1, 1, num_classes, 1, 1)
    return F.conv2d(part_B9KHW, (place * same_class).flatten(1, 2), padding=1)


def _doubling(width: int) -> nn.Sequential:
    return _named_conv(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1))


def _prediction_head(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, num_classes, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(num_classes),
        nn.Conv2d(num_classes, num_classes, 3, padding=1),
    )


class ChangeDecoder(DifferencePyramid):
    """Two pyramids of strides 4 to 32 to logits per pixel: the decoder of ChangeFormer (Bandara and Patel 2022).

    The difference maps of all scales are fused at stride 4 and enlarged twice. Every scale also has a small prediction
    head of its own, for multi-scale training.
    """

    def __init__(self, channels: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__(channels, width)
        for scale in range(len(channels), 0, -1):
            self.add_module(f"make_pred_c{scale}", _prediction_head(width, num_classes))
        self.linear_fuse = fusion_layer(len(channels) * width, width)
        self.convd2x = _doubling(width)
        self.dense_2x = nn.Sequential(_Residual(width))
        self.convd1x = _doubling(width)
        self.dense_1x = nn.Sequential(_Residual(width))
        self.change_probability = _named_conv(nn.Conv2d(width, num_classes, 3, padding=1))

    def difference_maps(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Pyramid:
        """The differences of two pyramids, fine to coarse, ``(B, E, ., .)`` each; coarser ones are added in."""
        return self.differences(self.test_halves(before), self.golden_halves(after))

    def auxiliary(self, maps: Pyramid) -> Predictions:
        """The predictions of the single scales, coarsest first."""
        return tuple(getattr(self, f"make_pred_c{scale}")(maps[scale - 1]) for scale in range(len(maps), 0, -1))

    def final(self, maps: Pyramid) -> Tensor:
        """The prediction from all scales, four times as large as the finest map."""
        fused_BEHW = fuse(self.linear_fuse, maps, maps[0].shape[-2:])
        x_BEHW = self.convd1x(self.dense_2x(self.convd2x(fused_BEHW)))
        residual, predict = cast(_Residual, self.dense_1x[0]), cast(nn.Conv2d, self.change_probability[0])
        if 9 * predict.out_channels >= predict.in_channels:
            direct_BKHW: Tensor = predict(residual(x_BEHW))
            return direct_BKHW
        # what predict makes of x + 0.1 conv2(hidden): at the size of the image, conv2 would cost the most of all layers
        logit_BKHW = predict(x_BEHW)  # first: the backward pass then ends with it, one map of that size less beside
        branch = _conv_after_conv(residual.hidden(x_BEHW), cast(nn.Conv2d, residual.conv2[0]), predict)
        return torch.add(logit_BKHW, branch, alpha=RESIDUAL_SCALE)


class ChangeSegmenter(nn.Module):
    """A pyramid backbone and a :class:`ChangeDecoder`.

    ``forward`` gives all predictions, ``final`` the result alone, which is cheaper and, without gradients, takes no
    more memory for a large batch than for a small one. With ``average_scales`` the result
    is the mean of the logits of all scales (TAO's ``multi_scale_infer``).
    """

    def __init__(self, backbone: nn.Module, decoder: ChangeDecoder, *, average_scales: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.average_scales = average_scales

    def forward(self, before: Tensor, after: Tensor) -> Predictions:
        """Logits of every scale, of any range, for two normalised images ``(B, 3, H, W)``; the last ``(B, K, H, W)``.

        Raises: ValueError for shapes that differ, or sides that the backbone does not divide.
        """
        predictions = self.predictions(before, after)
        return (*predictions[:-1], average_predictions(predictions)) if self.average_scales else predictions

    def final(self, before: Tensor, after: Tensor) -> Tensor:
        """The last output of :meth:`forward`. Raises: ValueError as :meth:`forward`."""
        check_same_shape(before=before, after=after)
        if self.training or torch.is_grad_enabled():
            return self.final_at_once(before, after)
        most = PIXELS_AT_ONCE.get(before.device.type, MOST_PIXELS_AT_ONCE)
        count = max(1, most // (before.shape[-2] * before.shape[-1]))
        parts = zip(torch.split(before, count), torch.split(after, count), strict=True)
        return torch.cat([self.final_at_once(*part) for part in parts])

    def final_at_once(self, before: Tensor, after: Tensor) -> Tensor:
        """:meth:`final` in one pass, however large the batch."""
        if self.average_scales:
            return self(before, after)[-1]  # type: ignore[no-any-return]
        return self.decoder.final(self._maps(before, after))

    def predictions(self, before: Tensor, after: Tensor, *, auxiliary: bool = True) -> Predictions:
        """The logits that losses are computed on: never averaged; without ``auxiliary``, the last alone."""
        return self._predictions(self._maps(before, after), auxiliary)

    def features(self, images: Tensor) -> Pyramid:
        """What the backbone makes of images ``(B, 3, H, W)``."""
        return tuple(self.backbone(images))

    def from_features(self, before: Pyramid, after: Pyramid, *, auxiliary: bool = True) -> Predictions:
        """The :meth:`predictions` of pairs whose :meth:`features` are known."""
        return self._predictions(self.decoder.difference_maps(before, after), auxiliary)

    def _predictions(self, maps: Pyramid, auxiliary: bool) -> Predictions:
        return (*(self.decoder.auxiliary(maps) if auxiliary else ()), self.decoder.final(maps))

    def _maps(self, before: Tensor, after: Tensor) -> Pyramid:
        check_same_shape(before=before, after=after)
        if not sees_images_alone(self.backbone):  # two passes, so that batch norm sees the images apart, as in TAO
            return self.decoder.difference_maps(self.backbone(before), self.backbone(after))
        both, count = self.backbone(torch.cat((before, after))), before.shape[0]
        return self.decoder.difference_maps([x[:count] for x in both], [x[count:] for x in both])


def average_predictions(predictions: Predictions) -> Tensor:
    """The mean of the logits of all scales, those of coarser ones repeated up to the size of the last."""
    *coarse, final = predictions
    enlarged = [F.interpolate(x_BKHW, size=final.shape[-2:], mode="nearest") for x_BKHW in coarse]
    return torch.stack([*enlarged, final]).mean(0)


def build_segmenter(
    *,
    backbone: str,
    image_size: tuple[int, int],
    num_classes: int = 2,
    embed_dim: int = 256,
    use_summary_token: bool = False,
    average_scales: bool = False,
    activation_checkpointing: bool = False,
) -> ChangeSegmenter:
    """The untrained network for pairs of images of ``image_size`` = (height, width) pixels.

    ``use_summary_token`` counts for ViT backbones alone. Raises: SpecError for an unknown backbone.
    """
    info = backbone_info(backbone)
    options: dict[str, Any] = {"activation_checkpointing": activation_checkpointing}
    if info.family != "FAN":
        options["use_summary_token"] = use_summary_token
    decoder = ChangeDecoder(info.channels, embed_dim, num_classes)
    pyramid = build_pyramid(backbone, image_size=image_size, **options)
    return ChangeSegmenter(pyramid, decoder, average_scales=average_scales)
