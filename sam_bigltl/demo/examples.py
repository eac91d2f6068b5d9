"""Photographs to try the demo on: those that come inside scikit-image, where it is installed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..predict.samples import sample_photos
from .pictures import png_bytes, thumbnail_url

_TITLES = {"astronaut": "An astronaut", "coffee": "A cup of coffee", "chelsea": "A cat"}


@dataclass(frozen=True)
class Example:
    """A photograph (H, W, 3), the same as the bytes of a PNG, what it shows, and a small picture as a data URL."""

    name: str
    title: str
    image: np.ndarray
    content: bytes
    thumbnail: str


def examples() -> list[Example]:
    """All that there are."""
    try:
        photos = sample_photos()
    except InputError:
        return []
    return [
        Example(
            photo.name, _TITLES.get(photo.name, photo.name), photo.image, png_bytes(photo.image),
            thumbnail_url(photo.image),
        )
        for photo in photos
    ]  # fmt: skip
