"""Drawn packs of a shop's shelf as class folders: products of some brands, seen from many sides in many lights.

Packs of one brand share colours and emblem and differ in a word and a stripe: no product is its colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["UNSEEN", "make_packs"]

UNSEEN = 1 / 3
"""Share of the products that training never sees; whole brands, so that no neighbour of theirs is known."""
PER_BRAND = 4
_SYLLABLES = ("ba", "co", "di", "fu", "ga", "ki", "lo", "ma", "no", "pe", "ra", "su", "ti", "vo", "ze")
_WIDTH, _HEIGHT = 80, 110
_README = """Drawn packs ({size} x {size} pixels), written with seed {seed}: {per_brand} products of each brand.

known/train              {known} products to train on
known/reference, query   other pictures of these, to validate
unseen/reference, query  {unseen} products of brands that training never sees
"""


@dataclass(frozen=True)
class Product:
    """What a pack looks like from the front."""

    ground: tuple[int, int, int]
    band: tuple[int, int, int]
    stripe: tuple[int, int, int]
    word: str
    emblem: int
    place: int


def make_packs(
    folder: Path, *, products: int = 60, each: int = 16, held_back: int = 8, size: int = 64, seed: int = 0
) -> dict[str, int]:
    """Write ``known/{train,reference,query}`` and ``unseen/{reference,query}``; the number of pictures of each.

    ``each``: pictures of a product to train on; ``held_back``: further ones, half of them references.
    """
    rng = np.random.default_rng(seed)
    drawn = [product for _ in range(-(-products // PER_BRAND)) for product in _brand(rng)][:products]
    unseen = PER_BRAND * round(UNSEEN * products / PER_BRAND)
    counts: dict[str, int] = {}
    for number, product in enumerate(drawn):
        side = "unseen" if number < unseen else "known"
        parts = {"train": each if side == "known" else 0, "reference": held_back // 2, "query": held_back // 2}
        for part, count in parts.items():
            target = folder / side / part / f"{product.word} {number:02d}"
            for picture in range(count):
                target.mkdir(parents=True, exist_ok=True)
                _photograph(rng, product, size).save(target / f"{picture:02d}.png")
            counts[f"{side}/{part}"] = counts.get(f"{side}/{part}", 0) + count
    readme = _README.format(size=size, seed=seed, per_brand=PER_BRAND, known=len(drawn) - unseen, unseen=unseen)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    return {part: count for part, count in counts.items() if count}


def _brand(rng: np.random.Generator) -> list[Product]:
    ground, band = (_colour(rng) for _ in range(2))
    emblem = int(rng.integers(0, 4))
    return [
        Product(ground, band, _colour(rng), "".join(rng.choice(_SYLLABLES, 2)), emblem, int(rng.integers(0, 3)))
        for _ in range(PER_BRAND)
    ]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(20, 236, 3))
    return red, green, blue


def _front(product: Product) -> Image.Image:
    """The pack itself, without light or view."""
    pack = Image.new("RGB", (_WIDTH, _HEIGHT), product.ground)
    draw = ImageDraw.Draw(pack)
    draw.rectangle((0, 14, _WIDTH, 46), fill=product.band)
    draw.rectangle((0, 92 - 12 * product.place, _WIDTH, 98 - 12 * product.place), fill=product.stripe)
    light = sum(product.band) > 380
    draw.text((40, 30), product.word, fill="black" if light else "white", anchor="mm", font=ImageFont.load_default(20))
    box = (28, 52, 52, 76)
    shapes = (draw.ellipse, draw.rectangle, draw.rounded_rectangle)
    if product.emblem < 3:
        shapes[product.emblem](box, fill=product.stripe, outline="white")
    else:
        draw.polygon([(40, 50), (54, 76), (26, 76)], fill=product.stripe, outline="white")
    return pack


def _photograph(rng: np.random.Generator, product: Product, size: int) -> Image.Image:
    """A pack on a shelf, seen askew, in some light."""
    blotches = Image.fromarray(rng.integers(60, 190, (6, 6, 3), dtype=np.uint8))
    shelf = blotches.resize((160, 160), Image.Resampling.BICUBIC)
    corners = np.array([(0, 0), (0, _HEIGHT), (_WIDTH, _HEIGHT), (_WIDTH, 0)], float)
    angle = np.deg2rad(rng.uniform(-18, 18))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([_WIDTH, _HEIGHT]) / 2
    seen = (corners - middle) @ turn.T * rng.uniform(0.8, 1.15) + 80 + rng.uniform(-10, 10, 2)
    seen += rng.uniform(-9, 9, (4, 2))  # not from straight ahead
    warp = _perspective(seen, corners)
    pack = _front(product).transform((160, 160), Image.Transform.PERSPECTIVE, warp, Image.Resampling.BICUBIC)
    mask = Image.new("L", (_WIDTH, _HEIGHT), 255).transform((160, 160), Image.Transform.PERSPECTIVE, warp)
    shelf.paste(pack, mask=mask)
    picture = shelf.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.0)))).resize((size, size))
    pixels = np.asarray(picture, float) * rng.uniform(0.55, 1.3) * rng.uniform(0.9, 1.1, 3)
    pixels += np.linspace(-1, 1, size)[None, :, None] * rng.uniform(-35, 35) + rng.normal(0, 5, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _perspective(seen: np.ndarray, flat: np.ndarray) -> list[float]:
    """PIL's eight coefficients, from where points are seen to where they are on the pack."""
    rows = []
    for (x, y), (u, v) in zip(seen, flat, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    found: list[float] = np.linalg.solve(np.array(rows), flat.ravel()).tolist()
    return found
