"""Galleries of drawn embeddings, for the tests."""

import torch

from mlrecog.gallery import GalleryCard, ModelFacts, Part
from mlrecog.gallery_table import Entry

MODEL = ModelFacts("ab" * 32, (64, 48), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), backbone="resnet_50", file="best.pth")
CARD = GalleryCard(MODEL, dim=8, threshold=0.4)


def embeddings(count, *, dim=8, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def part(count, *, dim=8, seed=0, classes=3, first=0):
    """Pictures ``<seed>/<number>.png`` of the classes ``cola 0``, ``cola 1``, …"""
    numbers = range(first, first + count)
    entries = [Entry(f"cola {n % classes}", f"/shop/{seed}/{n}.png", f"{seed}-{n}") for n in numbers]
    return Part(entries, embeddings(count, dim=dim, seed=seed))
