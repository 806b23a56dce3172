"""The network of ML Recog: a trunk, and an embedder that makes of its output the vector that neighbours are sought by.

The vectors are raw: loss, evaluation and search bring them to length 1 themselves.
"""

from __future__ import annotations

from torch import Tensor, nn

from fiducial.backbones import dinov2, fan, resnet
from fiducial.ops.linear import use_fast_linears
from mlrecog.trunks import FAN, RESNET, TRUNKS

__all__ = ["DualHead", "LinearEmbedder", "Recognizer", "build_recognizer"]


class LinearEmbedder(nn.Module):
    """One linear layer, ``(B, C)`` to ``(B, D)``. TAO saves it under two names, so we do."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, embedding_dim))
        self.last_linear = self.net[0]

    def forward(self, features_BC: Tensor) -> Tensor:
        embeddings_BD: Tensor = self.net(features_BC)
        return embeddings_BD


class DualHead(nn.Module):
    """Four residual adapters, a layer norm and a linear layer, ``(B, C)`` to ``(B, D)``."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.classifier_feat = _adapter(width)
        self.classifier_feat2 = _adapter(width)
        self.classifier_feat3 = _adapter(width)
        self.classifier_feat4 = _adapter(width)
        self.embedding_fc = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embedding_dim))

    def forward(self, features_BC: Tensor) -> Tensor:
        for adapter in (self.classifier_feat, self.classifier_feat2, self.classifier_feat3, self.classifier_feat4):
            features_BC = features_BC + adapter(features_BC)
        embeddings_BD: Tensor = self.embedding_fc(features_BC)
        return embeddings_BD


def _adapter(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))


class Recognizer(nn.Module):
    """Images to embeddings. Trunk and embedder have an optimizer each."""

    def __init__(self, trunk: nn.Module, embedder: nn.Module, *, embedding_dim: int) -> None:
        super().__init__()
        self.embedder, self.trunk = embedder, trunk  # the order of TAO's checkpoints
        self.embedding_dim = embedding_dim

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to embeddings ``(B, embedding_dim)`` of any length.

        Raises: ValueError for sizes that the trunk does not take.
        """
        embeddings_BD: Tensor = self.embedder(self.trunk(image_B3HW))
        return embeddings_BD


def build_recognizer(
    backbone: str = "resnet_50",
    *,
    feat_dim: int | None = 256,
    image_size: tuple[int, int] = (224, 224),
    activation_checkpointing: bool = False,
) -> Recognizer:
    """An untrained network for your own loop. ``backbone``: a name of :data:`mlrecog.trunks.TRUNKS`.

    ``feat_dim`` is the width of the embedding, None that of the trunk. ``image_size`` is the ``(height, width)`` that
    it will mostly see: others work, too.
    Raises: ValueError for an unknown name, or a width below 1.
    """
    if backbone not in TRUNKS:
        raise ValueError(f"no backbone {backbone!r}; there are {', '.join(TRUNKS)}")
    if feat_dim is not None and feat_dim < 1:
        raise ValueError(f"an embedding of {feat_dim} numbers; feat_dim must be at least 1")
    info = TRUNKS[backbone]
    embedding_dim = info.width if feat_dim is None else feat_dim
    head = LinearEmbedder if info.has_linear_head else DualHead
    trunk = _build_trunk(backbone, image_size, activation_checkpointing)
    network = Recognizer(trunk, head(info.width, embedding_dim), embedding_dim=embedding_dim)
    use_fast_linears(network)
    return network


def _build_trunk(backbone: str, image_size: tuple[int, int], activation_checkpointing: bool) -> nn.Module:
    info, options = TRUNKS[backbone], {"activation_checkpointing": activation_checkpointing}
    if info.family == RESNET:
        return resnet.build_resnet(info.arch, **options)
    if info.family == FAN:
        return fan.build_class_token(info.arch, image_size=image_size, **options)
    # TAO sizes the table by the spec, where ChangeNet's embedding always has that of 518 pixels
    grid = max(image_size) // dinov2.EMBEDDING_PATCH
    return dinov2.DinoV2Embedding(dinov2.VARIANTS[info.arch], grid=grid, **options)
