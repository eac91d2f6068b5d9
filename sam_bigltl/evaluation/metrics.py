"""Mask IoU and its mean by object size, as EfficientViT-SAM's evaluation defines them (arXiv 2402.05008)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALL_AREA = 32**2
LARGE_AREA = 96**2


def mask_iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two boolean (H, W) masks, as intersection / (union + 1e-7), in [0, 1].

    Two empty masks give 0.

    Raises:
        ValueError: the masks are not boolean or differ in shape.
    """
    if prediction.shape != target.shape or prediction.dtype != bool or target.dtype != bool:
        raise ValueError(
            f"mask_iou needs two boolean masks of one shape, got {prediction.dtype} {prediction.shape} "
            f"and {target.dtype} {target.shape}"
        )
    intersection = np.count_nonzero(prediction & target)
    union = np.count_nonzero(prediction | target)
    return intersection / (union + 1e-7)


def summarize(ious: Sequence[float], areas: Sequence[float]) -> dict[str, float | None]:
    """Mean IoU over instances, in percent: over all of them and by the annotations' own `area`, in square pixels.

    small is area <= 32^2, medium 32^2 <= area <= 96^2, large area >= 96^2. Both ends are inclusive, as in the
    published protocol, so an area of exactly 1024 or 9216 counts in two splits. A split with no instance is None.

    Args:
        ious: n values in [0, 1].
        areas: the n areas of the same instances.
    """
    iou = np.asarray(ious, dtype=np.float64)
    area = np.asarray(areas, dtype=np.float64)
    if iou.shape != area.shape or iou.ndim != 1:
        raise ValueError(f"summarize needs as many areas as IoUs, got {area.shape} and {iou.shape}")
    splits = size_splits(area).items()
    return {name: 100 * float(iou[chosen].mean()) if chosen.any() else None for name, chosen in splits}


def size_splits(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Which of n areas are in "all", "small", "medium" and "large": boolean (n,) each, as `summarize` defines them."""
    return {
        "all": np.ones(len(areas), dtype=bool),
        "small": areas <= SMALL_AREA,
        "medium": (areas >= SMALL_AREA) & (areas <= LARGE_AREA),
        "large": areas >= LARGE_AREA,
    }
