"""Photographs that come with scikit-image, with prompts on them: what the quickstart and the demo show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from .prompt import Prompt

# Files that come inside scikit-image; pixels of each file. Objects that the shipped weights get right:
# checkpoints/MODEL_CARD.md names some that they do not.
PROMPTS: dict[str, dict[str, Prompt]] = {
    "astronaut": {
        "head": Prompt(points=((228, 100),), labels=(1,), box=(160, 10, 300, 210)),
        "patch": Prompt(points=((189, 384), (130, 384)), labels=(1, 0)),
    },
    "coffee": {
        "spoon": Prompt(box=(320, 245, 400, 325)),
        "cup": Prompt(points=((300, 140),), labels=(1,), box=(168, 15, 425, 245)),
    },
    "chelsea": {
        "eye": Prompt(box=(290, 105, 345, 165)),
        "cat": Prompt(points=((250, 150),), labels=(1,)),
    },
}


@dataclass(frozen=True)
class Photo:
    """A photograph, and the objects to segment in it with what points to each."""

    name: str
    image: np.ndarray
    objects: dict[str, Prompt]


def sample_photos() -> list[Photo]:
    """The three photographs, read from the installed scikit-image: nothing is downloaded."""
    try:
        import skimage
    except ImportError:
        raise InputError("the photographs come with scikit-image: pip install scikit-image") from None
    folder = Path(skimage.__file__).parent / "data"
    return [Photo(name, read_image(folder / f"{name}.png"), objects) for name, objects in PROMPTS.items()]
