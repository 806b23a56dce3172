"""The two networks of Visual ChangeNet classify: is the tested image like its golden?

Keys are those of a TAO checkpoint without the leading ``model.``. Both networks read ``(test, golden)``: ``test``
``(B, 3, H, W)``, ``golden`` the same or, with several goldens, ``(B, N, 3, H, W)``; images are normalised and composed.
What a golden contributes can be kept and used again: ``compare(encode(test), encode_golden(golden))`` is ``forward``;
encodings are tuples of tensors that slice and stack along the batch. So can what a frozen backbone makes of any image:
``from_features(features(test), features(golden))`` is ``forward``, too. ``golden_place`` ``(B,)`` names for every test
its row of ``golden``, which then holds each golden once.

Dims: B batch, N goldens, E decoder channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changenet.difference import DifferencePyramid, Pyramid, check_same_shape, fuse, fusion_layer
from fiducial.backbones.alone import sees_images_alone
from fiducial.backbones.names import BackboneInfo, backbone_info, build_embedding, build_pyramid
from fiducial.backbones.sizes import shape_of

__all__ = ["EuclideanClassifier", "LearnableClassifier", "LearnableDecoder", "build_classifier", "score"]

WINDOW = 7
"""Side of the attention windows over several goldens: every map's height and width must be multiples of it."""


def score(output: Tensor) -> Tensor:
    """The defect score ``(B,)`` of a network's output: the probability of class 1, or the distance itself.

    NaN where a logit is NaN or infinite: softmax alone makes a sound probability of an infinite one.
    """
    if output.ndim == 1:
        return output
    logits = output.float()
    return logits.softmax(1)[:, 1].where(logits.isfinite().all(1), torch.nan)


def _dense(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.BatchNorm1d(hidden),
        nn.Linear(hidden, out_features),
    )


class WindowAttention(nn.Module):
    """Single-head attention across goldens and windows, among the pixels that have the same offset in their window.

    ``x + W_o softmax((W_q x E^-1/2) (W_k x)^T) W_v x`` on ``(B, N, E, H, W)``; H and W multiples of :data:`WINDOW`.
    """

    scaling: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scaling", torch.tensor(width**-0.5))
        self.W_q = nn.Linear(width, width)
        self.W_k = nn.Linear(width, width)
        self.W_v = nn.Linear(width, width)
        self.W_o = nn.Linear(width, width)

    def forward(self, x_BNEHW: Tensor) -> Tensor:
        """``(B, N, E, H, W)`` to the same shape, of any range.

        Raises: ValueError for another width, or unless H and W are multiples of :data:`WINDOW`.
        """
        shape, width = shape_of(x_BNEHW), self.W_q.in_features
        if len(shape) != 5 or shape[2] != width or shape[3] % WINDOW or shape[4] % WINDOW:
            wanted = f"(B, N, {width}, H, W) with H and W multiples of {WINDOW}"
            raise ValueError(f"attention over goldens needs {wanted}, found shape {shape}")
        rows, columns = x_BNEHW.shape[3] // WINDOW, x_BNEHW.shape[4] // WINDOW
        x_BNEHcv = torch.unflatten(x_BNEHW, 4, (columns, WINDOW))
        x_BNErucv = torch.unflatten(x_BNEHcv, 3, (rows, WINDOW))  # u, v: place in the window
        x_BuvSE = x_BNErucv.permute(0, 4, 6, 1, 3, 5, 2).flatten(3, 5)
        q_BuvSE = self.W_q(x_BuvSE) * self.scaling
        mixed_BuvSE = F.scaled_dot_product_attention(q_BuvSE, self.W_k(x_BuvSE), self.W_v(x_BuvSE), scale=1.0)
        x_BuvSE = x_BuvSE + self.W_o(mixed_BuvSE)
        x_BNErucv = torch.unflatten(x_BuvSE, 3, (-1, rows, columns)).permute(0, 3, 6, 4, 1, 5, 2)
        return x_BNErucv.flatten(5, 6).flatten(3, 4)


class LearnableDecoder(DifferencePyramid):
    """The difference maps of the scales used, fused and flattened into a dense classifier: logits ``(B, num_classes)``.

    The classifier's first layer ties the network to the number of pixels of ``image_size``, not to its shape. With
    several goldens, every scale gets a position embedding, attention across the goldens, their maximum and batch norm.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: tuple[int, int],
        embed_dim: int,
        embed_dec: int,
        num_classes: int,
        modules_used: int,
        num_golden: int,
    ) -> None:
        super().__init__(channels, embed_dim, modules_used=modules_used)
        sizes = [(image_size[0] // stride, image_size[1] // stride) for stride in strides]
        self.coarse_to_fine = strides[-1] // strides[0]
        self.finest_stride = strides[0]
        self.num_finest = sizes[0][0] * sizes[0][1]
        self.num_golden = num_golden
        if num_golden > 1:
            self._add_golden_layers(embed_dim, sizes)
        self.linear_fuse = fusion_layer(modules_used * embed_dim, embed_dim)
        self.classifier = _dense(embed_dim * self.num_finest, embed_dec, num_classes)

    def forward(self, test_halves: Pyramid, golden_halves: Pyramid) -> Tensor:
        """Logits ``(B, num_classes)``, of any range, from what :meth:`test_halves` and :meth:`golden_halves` gave.

        Raises: ValueError for maps of images with another number of pixels than those of ``image_size``.
        """
        maps = self.differences(test_halves, golden_halves)
        if self.num_golden > 1:
            maps = tuple(self._join_goldens(scale, x_XEHW) for scale, x_XEHW in zip(self.scales, maps, strict=True))
        finest = [side * self.coarse_to_fine for side in maps[-1].shape[-2:]]
        self._check_pixels(*(side * self.coarse_to_fine for side in shape_of(maps[-1])[-2:]))
        logit_BK: Tensor = self.classifier(fuse(self.linear_fuse, maps, finest).flatten(1))
        return logit_BK

    def test_halves(self, pyramid: Sequence[Tensor]) -> Pyramid:
        """``(B, E, H, W)`` per scale used; with several goldens ``(B, 1, E, H, W)``."""
        halves = super().test_halves(pyramid)
        return halves if self.num_golden == 1 else tuple(x_BEHW[:, None] for x_BEHW in halves)

    def golden_halves(self, pyramid: Sequence[Tensor]) -> Pyramid:
        """``(B, E, H, W)`` per scale used; with several goldens, from ``(B * N, C, H, W)``, ``(B, N, E, H, W)``."""
        halves = super().golden_halves(pyramid)
        return halves if self.num_golden == 1 else tuple(torch.unflatten(x, 0, (-1, self.num_golden)) for x in halves)

    def _check_pixels(self, rows: int, columns: int) -> None:
        if rows * columns != self.num_finest:
            stride = self.finest_stride
            found = f"found {rows * stride}×{columns * stride}"
            raise ValueError(f"the classifier was built for images of {self.num_finest * stride**2} pixels, {found}")

    def _add_golden_layers(self, width: int, sizes: Sequence[tuple[int, int]]) -> None:
        scales = range(1, len(sizes) + 1)
        for scale, (height, columns) in zip(scales, sizes, strict=True):
            if height % WINDOW or columns % WINDOW:
                raise ValueError(
                    f"several goldens need maps in multiples of {WINDOW}; scale {scale} is {height}×{columns}"
                )
            embedding = nn.Parameter(torch.zeros(1, width, height // WINDOW, columns // WINDOW))
            self.register_parameter(f"position_embedding_c{scale}", embedding)
        for scale in scales:
            self.add_module(f"attn_c{scale}", WindowAttention(width))
        for scale in scales:
            self.add_module(f"bn{scale}", nn.BatchNorm2d(width))
        for scale in range(1, self.scales.start):
            for name in (f"position_embedding_c{scale}", f"attn_c{scale}", f"bn{scale}"):
                getattr(self, name).requires_grad_(False)

    def _join_goldens(self, scale: int, x_XEHW: Tensor) -> Tensor:
        x_BNEHW = torch.unflatten(x_XEHW, 0, (-1, self.num_golden))
        # TAO-compat: the embedding is tiled, so that row r takes the value r mod (H / 7); a clean design would give
        # every window its own value (r div 7).
        position_1EHW = getattr(self, f"position_embedding_c{scale}").tile(1, 1, WINDOW, WINDOW)
        attended_BNEHW = getattr(self, f"attn_c{scale}")(x_BNEHW + position_1EHW)
        joined_BEHW: Tensor = getattr(self, f"bn{scale}")(attended_BNEHW.max(dim=1).values)
        return joined_BEHW


class LearnableClassifier(nn.Module):
    """A pyramid backbone and a :class:`LearnableDecoder`: ``forward`` gives logits ``(B, num_classes)``.

    Of several goldens only the first passes a gradient to the backbone, as in TAO.
    """

    def __init__(self, backbone: nn.Module, decoder: LearnableDecoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder

    def forward(self, test: Tensor, golden: Tensor, golden_place: Tensor | None = None) -> Tensor:
        """Logits ``(B, num_classes)``, of any range; class 1 is a defect.

        ``test``: normalised images ``(B, 3, H, W)``; ``golden``: the same, or ``(B, N, 3, H, W)`` for N goldens.
        Raises: ValueError for shapes that differ, another number of goldens than the network was built for, sides that
        the backbone does not divide, or another number of pixels than that of ``image_size``.
        """
        self._check_goldens(golden)
        golden, golden_place = _spread(self.backbone, golden, golden_place)
        _check_pair(test, _first_golden(golden), golden_place)
        test_maps, golden_maps = _pair_features(self.backbone, test, _first_golden(golden))
        return self.from_features(test_maps, self._with_other_goldens(golden_maps, golden), golden_place)

    def features(self, images: Tensor) -> Pyramid:
        """What the backbone makes of images ``(B, 3, H, W)``: the maps of one golden, or of tests."""
        return _features(self.backbone, images)

    def from_features(self, test: Pyramid, golden: Pyramid, golden_place: Tensor | None = None) -> Tensor:
        """Logits of pairs whose :meth:`features` are known."""
        halves = self.decoder.golden_halves(golden)
        if golden_place is not None:
            halves = tuple(x.index_select(0, golden_place) for x in halves)
        return self.compare(self.decoder.test_halves(test), halves)

    def encode(self, images: Tensor) -> Pyramid:
        """All that :meth:`compare` needs of tested images ``(B, 3, H, W)``."""
        return self.decoder.test_halves(_features(self.backbone, images))

    def encode_golden(self, images: Tensor) -> Pyramid:
        """All that :meth:`compare` needs of goldens ``(B, 3, H, W)`` or ``(B, N, 3, H, W)``."""
        self._check_goldens(images)
        maps = _features(self.backbone, _first_golden(images))
        return self.decoder.golden_halves(self._with_other_goldens(maps, images))

    def compare(self, test_encoding: Pyramid, golden_encoding: Pyramid) -> Tensor:
        """Logits of encoded pairs."""
        logit_BK: Tensor = self.decoder(test_encoding, golden_encoding)
        return logit_BK

    def _check_goldens(self, golden: Tensor) -> None:
        num_golden, shape = self.decoder.num_golden, shape_of(golden)
        if len(shape) != (4 if num_golden == 1 else 5) or (num_golden > 1 and shape[1] != num_golden):
            wanted = (
                "one golden: (B, 3, H, W)" if num_golden == 1 else f"{num_golden} goldens: (B, {num_golden}, 3, H, W)"
            )
            raise ValueError(f"the network compares with {wanted}, found shape {shape}")

    def _with_other_goldens(self, first_maps: Pyramid, golden: Tensor) -> Pyramid:
        """The maps of all goldens, ``(B * N, C, H, W)``, from those of the first."""
        if golden.ndim == 4:
            return first_maps
        with torch.no_grad():
            other_maps = _features(self.backbone, golden[:, 1:].flatten(0, 1))
        num_others = golden.shape[1] - 1
        others = (torch.unflatten(x_XCHW, 0, (-1, num_others)) for x_XCHW in other_maps)
        return tuple(torch.cat((x[:, None], more), 1).flatten(0, 1) for x, more in zip(first_maps, others, strict=True))


class EuclideanClassifier(nn.Module):
    """An embedding backbone and a dense head: ``forward`` gives the distance ``(B,)`` of the two embeddings, >= 0."""

    def __init__(self, backbone: nn.Module, *, backbone_features: int, embedding_vectors: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc1 = _dense(backbone_features, 512, embedding_vectors)

    def forward(self, test: Tensor, golden: Tensor, golden_place: Tensor | None = None) -> Tensor:
        """The distance ``(B,)``, >= 0, of two normalised images ``(B, 3, H, W)``.

        Raises: ValueError for shapes that differ, sides that the backbone does not divide, or another size than the
        network was built for, where its embedding depends on it.
        """
        golden, golden_place = _spread(self.backbone, golden, golden_place)
        _check_pair(test, golden, golden_place)
        return self.from_features(*_pair_features(self.backbone, test, golden), golden_place)

    def features(self, images: Tensor) -> Pyramid:
        """What the backbone makes of images ``(B, 3, H, W)``."""
        return _features(self.backbone, images)

    def from_features(self, test: Pyramid, golden: Pyramid, golden_place: Tensor | None = None) -> Tensor:
        """The distances of pairs whose :meth:`features` are known."""
        (test_BF,), (golden_BF,) = test, golden
        if golden_place is not None:  # before the head, whose batch statistics count every pair
            golden_BF = golden_BF.index_select(0, golden_place)
        return self.compare((self._embed(test_BF),), (self._embed(golden_BF),))

    def encode(self, images: Tensor) -> tuple[Tensor]:
        """The embedding ``(B, embedding_vectors)`` of images ``(B, 3, H, W)``, in a tuple."""
        return (self._embed(self.backbone(images)),)

    encode_golden = encode

    def compare(self, test_encoding: tuple[Tensor], golden_encoding: tuple[Tensor]) -> Tensor:
        """``|test - golden + 1e-6|`` of encoded pairs."""
        return F.pairwise_distance(test_encoding[0], golden_encoding[0], eps=1e-6)

    def _embed(self, feature_BF: Tensor) -> Tensor:
        wanted, found = cast(nn.Linear, self.fc1[0]).in_features, shape_of(feature_BF)[1]
        if found != wanted:
            raise ValueError(f"the head was built for image sizes that give {wanted} features, found {found}")
        embedding_BF: Tensor = self.fc1(feature_BF)
        return embedding_BF


def _features(backbone: nn.Module, images: Tensor) -> Pyramid:
    output = backbone(images)
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _pair_features(backbone: nn.Module, test: Tensor, golden: Tensor) -> tuple[Pyramid, Pyramid]:
    """One pass over both images; two where batch norm must see tests and goldens apart, as in TAO."""
    if not sees_images_alone(backbone):
        return _features(backbone, test), _features(backbone, golden)
    both = _features(backbone, torch.cat((test, golden)))
    count = test.shape[0]
    return tuple(x[:count] for x in both), tuple(x[count:] for x in both)


def _spread(backbone: nn.Module, golden: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The goldens once for every pair, where the backbone would see others in a batch that holds each once."""
    if place is None or sees_images_alone(backbone):
        return golden, place
    return golden.index_select(0, place), None


def _check_pair(test: Tensor, golden: Tensor, place: Tensor | None) -> None:
    check_same_shape(test=test[:1] if place is not None else test, golden=golden[:1] if place is not None else golden)


def _first_golden(golden: Tensor) -> Tensor:
    return golden if golden.ndim == 4 else golden[:, 0]


def _downsampled(info: BackboneInfo) -> BackboneInfo:
    """The facts of a FAN with ``feat_downsample``. TAO ignores them, and fails at the first batch."""
    from fiducial.backbones.fan import DOWNSAMPLED_CHANNELS  # loads timm

    return replace(info, channels=(*info.channels[:3], DOWNSAMPLED_CHANNELS), strides=(*info.strides[:3], 32))


def build_classifier(
    *,
    backbone: str,
    difference_module: Literal["learnable", "euclidean"],
    image_size: tuple[int, int],
    embed_dim: int = 256,
    embed_dec: int = 30,
    num_classes: int = 2,
    learnable_difference_modules: int = 4,
    embedding_vectors: int = 5,
    num_golden: int = 1,
    use_summary_token: bool = True,
    freeze_backbone: bool = False,
    feat_downsample: bool = False,
    activation_checkpointing: bool = False,
) -> LearnableClassifier | EuclideanClassifier:
    """The untrained network for pairs of composed images of ``image_size`` = (height, width) pixels.

    ``feat_downsample`` counts for FAN alone (sides then multiples of 32), ``use_summary_token`` for ViT pyramids.

    Raises: SpecError for an unknown backbone; ValueError for several goldens with euclidean, or with maps whose
    sides are no multiples of 7.
    """
    info = backbone_info(backbone)
    options: dict[str, Any] = {"activation_checkpointing": activation_checkpointing}
    if info.family == "FAN":
        options["feat_downsample"] = feat_downsample
        info = _downsampled(info) if feat_downsample else info
    elif difference_module == "learnable":
        options["use_summary_token"] = use_summary_token
    model: LearnableClassifier | EuclideanClassifier
    if difference_module == "learnable":
        decoder = LearnableDecoder(
            channels=info.channels,
            strides=info.strides,
            image_size=image_size,
            embed_dim=embed_dim,
            embed_dec=embed_dec,
            num_classes=num_classes,
            modules_used=learnable_difference_modules,
            num_golden=num_golden,
        )
        model = LearnableClassifier(build_pyramid(backbone, image_size=image_size, **options), decoder)
    else:
        if num_golden > 1:
            raise ValueError("several goldens need difference_module 'learnable'")
        model = EuclideanClassifier(
            build_embedding(backbone, image_size=image_size, **options),
            backbone_features=info.embedding_width(*image_size),
            embedding_vectors=embedding_vectors,
        )
    if freeze_backbone:
        model.backbone.freeze()  # type: ignore[operator]
    return model
