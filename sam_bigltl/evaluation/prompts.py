"""The prompts of protocol A: the annotation's box, and the clicks of RITM's simulated user (arXiv 2102.06583)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def box_xyxy(bbox: Sequence[float]) -> np.ndarray:
    """COCO box (x, y, width, height) in pixels -> (4,) float64 (x0, y0, x1, y1), neither rounded nor clipped."""
    x, y, width, height = bbox
    return np.array([x, y, x + width, y + height], dtype=np.float64)


def _distance_to_border(region: np.ndarray) -> np.ndarray:
    """Exact L2 distance of every pixel of a boolean (H, W) region to the nearest pixel outside; 0 outside.

    What lies beyond the image counts as outside (the padding by 1).
    """
    padded = np.pad(region, 1).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1]


class Clicker:
    """RITM's simulated user, as EfficientViT-SAM's evaluation runs it.

    Each click goes to the pixel farthest from the border of the larger error region: label 1 where the target is
    missed (false negative), 0 where the prediction spills over (false positive). "Larger" compares the two greatest
    distances, a tie goes to the false positives, and the first pixel in row-major order wins among equals. Pixels
    clicked before are out. With no error left, the published code's choice is kept: label 0 on pixel (0, 0).
    """

    def __init__(self, target: np.ndarray) -> None:
        """`target`: boolean (H, W) ground truth."""
        self.target = target
        self.unclicked = np.ones(target.shape, dtype=bool)
        self.coords: list[tuple[int, int]] = []
        self.labels: list[int] = []

    def click(self, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the click that answers `prediction`, a boolean (H, W) mask (all False before the first click).

        Returns:
            All n clicks so far: (n, 2) float32 coordinates (x, y) in pixels and (n,) int32 labels.
        """
        missed = _distance_to_border(self.target & ~prediction) * self.unclicked
        spilled = _distance_to_border(~self.target & prediction) * self.unclicked
        positive = bool(missed.max() > spilled.max())
        distance = missed if positive else spilled
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        self.unclicked[y, x] = False
        self.coords.append((int(x), int(y)))
        self.labels.append(int(positive))
        return np.array(self.coords, dtype=np.float32), np.array(self.labels, dtype=np.int32)
