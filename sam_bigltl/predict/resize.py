"""SAM's resize of images and coordinates."""

from __future__ import annotations

import numpy as np
from segment_anything.utils.transforms import ResizeLongestSide


class ResizeLongestSideFloat32(ResizeLongestSide):
    """SAM's resize, with coordinates in float32 (MPS has no float64) and sides of at least one pixel."""

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """Coordinates (..., 2) in pixels of the image of size (H, W), in the model's frame, float32."""
        # SAM computes in float64 and rounds once, on the host: so must we, to be bit-equal.
        return super().apply_coords(np.asarray(coords), original_size).astype(np.float32)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The (H, W) of an image once its long side is `long_side_length`."""
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)
