"""What is done to the pixels of a training crop: colour, degradation, objects pasted in from other photographs.

uint8 RGB in and out; masks are uint8, 255 times the share of each pixel that the object covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_BORDER = 1.0  # sigma of the blend around a pasted object, pixels
_HIDDEN = 0.7  # a mask that loses more of its area to a pasted object is no longer asked for


def jitter_colour(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, gamma and white balance; now and then grey."""
    if rng.random() < 0.1:
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    ramp = np.linspace(0, 1, 256)
    table = np.empty((256, 3), np.float64)
    gain, lift, gamma = rng.uniform(0.75, 1.3), rng.uniform(-0.1, 0.1), np.exp(rng.uniform(-0.25, 0.25))
    for channel in range(3):
        table[:, channel] = ramp**gamma * gain * rng.uniform(0.92, 1.08) + lift
    table = np.rint(table.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([cv2.LUT(np.ascontiguousarray(photo[..., c]), table[:, c]) for c in range(3)], axis=-1)


def degrade(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of blur, JPEG compression and noise, as strong as photographs of everyday show it."""
    kind = rng.integers(3)
    if kind == 0:
        return cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.4, 1.6))
    if kind == 1:
        packed = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 85))])[1]
        unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        assert unpacked is not None
        return unpacked
    noise = rng.normal(0, rng.uniform(2, 12), photo.shape).astype(np.float32)
    return np.rint(np.clip(photo + noise, 0, 255)).astype(np.uint8)


@dataclass
class Cutout:
    """An object of another photograph: its pixels and its mask, cut at its box."""

    pixels: np.ndarray
    mask: np.ndarray


def paste(
    photo: np.ndarray, masks: list[np.ndarray], cutout: Cutout, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Put `cutout` over `photo` at a random place, size and side, with a blended border.

    Copy-paste as in Ghiasi et al. (arXiv 2012.07177): what it hides is taken out of the other masks, and masks of which
    too little is left are dropped.

    Args:
        photo: (H, W, 3). masks: (H, W) each.

    Returns:
        the photograph, and its masks with that of the pasted object first.
    """
    height, width = photo.shape[:2]
    share = np.exp(rng.uniform(np.log(0.1), np.log(0.7)))  # of the crop's shorter side
    scale = share * min(height, width) / max(cutout.mask.shape)
    size = tuple(max(4, round(side * scale)) for side in cutout.mask.shape[::-1])  # columns, rows
    resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels, mask = (cv2.resize(x, size, interpolation=resampling) for x in (cutout.pixels, cutout.mask))
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    # Up to a third of it may lie outside.
    x, y = (int(rng.integers(-side // 3, max(1, whole - side * 2 // 3))) for side, whole in zip(size, (width, height)))
    rows, columns = slice(max(0, y), min(height, y + size[1])), slice(max(0, x), min(width, x + size[0]))
    inner = np.s_[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    layer = np.zeros((height, width), np.uint8)
    layer[rows, columns] = mask[inner]
    over = np.zeros_like(photo)
    over[rows, columns] = pixels[inner]
    alpha = np.minimum(layer, cv2.GaussianBlur(layer, (0, 0), _BORDER)).astype(np.float32)[..., None] / 255
    photo = np.rint(photo * (1 - alpha) + over * alpha).astype(np.uint8)
    left = []
    for mask in masks:
        rest = np.rint(mask * (1 - layer.astype(np.float32) / 255)).astype(np.uint8)
        if rest.sum() > (1 - _HIDDEN) * mask.sum() and (rest >= 128).sum() >= 8:
            left.append(rest)
    return photo, ([layer] if (layer >= 128).sum() >= 8 else []) + left
