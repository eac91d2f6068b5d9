"""A small folder of labelled pictures: one folder a class, told apart by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def make_folder(root: Path, each: int = 12, side: int = 40, seed: int = 0) -> Path:
    """`each` noisy pictures of every colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(each):
            noise = rng.normal(0, 40, (side, side + index, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                root / name / f"{index}.png"
            )
    return root
