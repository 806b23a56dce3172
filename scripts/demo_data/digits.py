"""Handwritten digits as class folders: seven classes to train on, three that training never sees.

The pictures are those that ship with scikit-learn (UCI's optical recognition of handwritten digits, 8 x 8 pixels),
enlarged. Which three are unseen depends on the seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["UNSEEN", "make_digits"]

UNSEEN = 3
SHARE_HELD_BACK = 0.2
"""Of the trained classes, for validation; half of it as gallery."""

_README = """Handwritten digits of scikit-learn ({size} x {size} pixels), written with seed {seed}.

known/train              {known}: to train on
known/reference, query   others of the same digits: to validate
unseen/reference, query  {unseen}: digits that training never sees
"""


def make_digits(folder: Path, *, size: int = 32, seed: int = 0) -> dict[str, int]:
    """Write ``known/{train,reference,query}`` and ``unseen/{reference,query}``; the number of pictures of each."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(10)
    unseen, known = sorted(order[:UNSEEN].tolist()), sorted(order[UNSEEN:].tolist())
    counts: dict[str, int] = {}
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(digits.target == digit))
        for part, chosen in _parts(places, digit in unseen).items():
            target = folder / part / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            for place in chosen:
                pixels = (digits.images[place] / 16 * 255).astype(np.uint8)
                Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(target / f"{place:04d}.png")
            counts[part] = counts.get(part, 0) + len(chosen)
    readme = _README.format(size=size, seed=seed, known=known, unseen=unseen)
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    return counts


def _parts(places: np.ndarray, unseen: bool) -> dict[str, np.ndarray]:
    if unseen:
        half = len(places) // 2
        return {"unseen/reference": places[:half], "unseen/query": places[half:]}
    held = int(SHARE_HELD_BACK * len(places))
    return {
        "known/train": places[held:],
        "known/reference": places[: held // 2],
        "known/query": places[held // 2 : held],
    }
