"""SAM's resize without torch: `segment_anything`'s ResizeLongestSide, bit for bit."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized_shape(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """The (H, W) of an image of `size` (H, W) once its long side is `side`.

    `ResizeLongestSide`'s, at least one pixel.
    """
    scale = side / max(size)
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """An image, uint8 (H, W, 3), whose long side becomes `side`."""
    height, width = resized_shape(image.shape[:2], side)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))
