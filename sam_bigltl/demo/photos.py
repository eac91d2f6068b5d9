"""Photographs that users bring, from bytes that may be anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.files import encodable
from ..data.images import decode_image
from ..errors import InputError

MOST_BYTES = 40 * 2**20


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Attributes:
        key: of its pixels: the same photograph has the same key for everybody.
        file_name: as the user calls it.
        image: uint8 RGB (H, W, 3), upright, at most `longest` pixels a side.
        original: (H, W) before it was made smaller.
    """

    key: str
    file_name: str
    image: np.ndarray
    original: tuple[int, int]

    @property
    def was_reduced(self) -> bool:
        """Whether it was made smaller."""
        return self.original != self.image.shape[:2]

    @property
    def note(self) -> str:
        """Its size in words."""
        height, width = self.image.shape[:2]
        if not self.was_reduced:
            return f"{width} x {height} px"
        return f"{self.original[1]} x {self.original[0]} px, reduced to {width} x {height}"


def open_photo(content: bytes, file_name: str, longest: int) -> Photo:
    """A photograph from the bytes of an image file.

    Args:
        longest: pixels of its long side at most; it is made smaller beyond.

    Raises:
        InputError: no image, a damaged one, or one that is too large to open.
    """
    name = encodable(Path(file_name.replace("\\", "/")).name[:80]) or "photo"
    if not content:
        raise InputError(f"{name} is empty (0 bytes): choose a JPEG, PNG or other image file")
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{name} has {len(content) / 2**20:.0f} MB: the demo takes {MOST_BYTES / 2**20:.0f} MB at most"
        )
    image = decode_image(content, name)
    return make_photo(image, name, longest)


def make_photo(image: np.ndarray, file_name: str, longest: int) -> Photo:
    """A photograph from pixels, uint8 RGB (H, W, 3), made smaller where its long side is beyond `longest`."""
    original = image.shape[:2]
    if max(original) > longest:
        image = reduced(image, longest)
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    return Photo(digest, file_name, image, original)


def reduced(image: np.ndarray, longest: int) -> np.ndarray:
    """`image` (H, W, 3) with a long side of `longest` pixels."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
