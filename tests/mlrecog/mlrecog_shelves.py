"""Class folders that tests draw: flat colours with noise, a colour for each class."""

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40), "white": (230, 230, 230)}


def make_folders(root, *, classes=tuple(COLOURS), each=4, seed=0, side=40):
    """``root/<class>/<number>.png``."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = np.array(COLOURS.get(name, (128, 128, 128))) + rng.normal(0, 25, (side, side, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root
