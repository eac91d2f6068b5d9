"""Boxes, and the simulated users that click: RITM's (arXiv 2102.06583), EdgeSAM's and EfficientSAM's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.nn import functional as F


def box_xyxy(bbox: Sequence[float]) -> np.ndarray:
    """COCO box (x, y, width, height) in pixels -> (4,) float64 (x0, y0, x1, y1), neither rounded nor clipped."""
    x, y, width, height = bbox
    return np.array([x, y, x + width, y + height], dtype=np.float64)


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Box around the pixels of a boolean (H, W) mask that has some: (4,) integers x0, y0, x1, y1; x1, y1 outside."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def instance_rng(seed: int, image_id: int | str, annotation_id: int | str) -> np.random.Generator:
    """Random numbers of one instance: the same in any order of the images and on any number of processes."""
    return np.random.default_rng([seed, zlib.crc32(f"{image_id}/{annotation_id}".encode(errors="surrogatepass"))])


def _distance_to_border(region: np.ndarray) -> np.ndarray:
    """Exact L2 distance of every pixel of a boolean (H, W) region to the nearest pixel outside; 0 outside.

    What lies beyond the image counts as outside (the padding by 1).
    """
    padded = np.pad(region, 1).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1]


class _Clicks:
    """Clicks so far, in the order they were made."""

    def __init__(self) -> None:
        self.coords: list[tuple[float, float]] = []
        self.labels: list[int] = []

    def _add(self, x: float, y: float, label: int) -> tuple[np.ndarray, np.ndarray]:
        """All n clicks with this one: (n, 2) float32 coordinates (x, y) in pixels and (n,) int32 labels."""
        self.coords.append((x, y))
        self.labels.append(label)
        return self.all()

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """All n clicks: (n, 2) float32 coordinates (x, y) in pixels and (n,) int32 labels."""
        coords = np.array(self.coords, dtype=np.float32).reshape(-1, 2)
        return coords, np.array(self.labels, dtype=np.int32)


class Clicker(_Clicks):
    """RITM's simulated user, as EfficientViT-SAM's evaluation runs it.

    Each click goes to the pixel farthest from the border of the larger error region: label 1 where the target is
    missed (false negative), 0 where the prediction spills over (false positive). "Larger" compares the two greatest
    distances, a tie goes to the false positives, and the first pixel in row-major order wins among equals. Pixels
    clicked before are out. With no error left, the published code's choice is kept: label 0 on pixel (0, 0).
    """

    def __init__(self, target: np.ndarray) -> None:
        """`target`: boolean (H, W) ground truth."""
        super().__init__()
        self.target = target

    def click(self, prediction: np.ndarray, logits: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Add the click that answers `prediction`, a boolean (H, W) mask (all False before the first click).

        Returns:
            All n clicks so far: (n, 2) float32 coordinates (x, y) in pixels and (n,) int32 labels.
        """
        missed = self._farthest(self.target & ~prediction)
        spilled = self._farthest(~self.target & prediction)
        positive = missed[0] > spilled[0]
        _, x, y = missed if positive else spilled
        return self._add(x, y, int(positive))

    def _farthest(self, region: np.ndarray) -> tuple[float, int, int]:
        """Distance to the border of a region's innermost pixel that was not clicked, and its x, y; 0, 0, 0 if none."""
        if not region.any():
            return 0.0, 0, 0
        # On the whole image, as published: on a part of it OpenCV's distances differ in the last bit, and so do ties.
        distance = _distance_to_border(region)
        for x, y in self.coords:
            distance[int(y), int(x)] = 0
        y, x = divmod(int(distance.argmax()), region.shape[1])
        farthest = float(distance[y, x])
        return (farthest, x, y) if farthest else (0.0, 0, 0)


class CentreRandomClicker(_Clicks):
    """EdgeSAM's simulated user: the centre of the mask, then a random pixel of what is wrong.

    It works in the model's frame: the centre is the pixel farthest from the border of the target brought there, and
    errors are compared at the resolution of the decoder's logits, where a pixel that the target touches counts as the
    target's. With fewer than 10 wrong pixels there it adds nothing.

    Args:
        target: boolean (H, W) ground truth.
        frame: the target in the model's frame, as `in_frame` gives it.
        side: side of the model's square frame, pixels.
        centre: whether the first click, made before any prediction, is on the centre; after a box there is none.
    """

    MIN_ERRORS = 10

    def __init__(
        self, target: np.ndarray, frame: np.ndarray, side: int, rng: np.random.Generator, centre: bool = True
    ) -> None:
        super().__init__()
        self.frame, self.side, self.rng = frame, side, rng
        self.to_image = np.array(target.shape[::-1]) / frame.shape[::-1]  # x, y
        self.centre = centre

    def click(self, prediction: np.ndarray, logits: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Add a click; `logits` (h, w) are those of the prediction, over the whole frame. Returns as `Clicker`."""
        if self.centre and not self.coords:
            distance = _distance_to_border(self.frame)
            row, column = np.unravel_index(int(distance.argmax()), distance.shape)
            x, y = (self.to_image * (column, row)).tolist()
            return self._add(x, y, 1)
        assert logits is not None
        wanted, share = self._at(logits.shape)
        # The published code finds no missed pixel where the photograph covers a pixel of the logits in part only.
        wrong = np.flatnonzero(((logits > 0) != wanted) & (share >= np.where(wanted, 1, 1e-6)))
        if len(wrong) < self.MIN_ERRORS:
            return self.all()
        place = int(wrong[self.rng.integers(len(wrong))])
        down, right = divmod(place, logits.shape[1])
        xy = np.array([right * self.side / logits.shape[1], down * self.side / logits.shape[0]])
        x, y = (self.to_image * xy).tolist()
        return self._add(x, y, int(wanted.flat[place]))

    def _at(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the target is (boolean) and the photograph's share of each pixel, at the resolution of the logits."""
        whole = np.zeros((2, self.side, self.side), np.float32)  # padded to the square
        height, width = self.frame.shape
        whole[0, :height, :width], whole[1, :height, :width] = self.frame, 1
        return _bilinear(whole[0], shape) > 0, _bilinear(whole[1], shape)


class RandomClicker(_Clicks):
    """EfficientSAM's simulated user: uniform random pixels of the mask, whatever was predicted.

    Args:
        target: boolean (H, W) ground truth.
    """

    def __init__(self, target: np.ndarray, rng: np.random.Generator) -> None:
        super().__init__()
        self.pixels = np.flatnonzero(target)
        self.width = target.shape[1]
        self.rng = rng

    def click(self, prediction: np.ndarray, logits: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Add a click; returns as `Clicker`."""
        y, x = divmod(int(self.pixels[self.rng.integers(len(self.pixels))]), self.width)
        return self._add(x, y, 1)


def in_frame(target: np.ndarray, side: int) -> np.ndarray:
    """A boolean (H, W) mask scaled so that its longer side is `side` (nearest pixel), as images are; not padded."""
    height, width = target.shape
    scale = side / max(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    rows = np.minimum((np.arange(size[0]) * (height / size[0])).astype(int), height - 1)
    columns = np.minimum((np.arange(size[1]) * (width / size[1])).astype(int), width - 1)
    return target[rows[:, None], columns]


def resampled(target: np.ndarray, side: int) -> np.ndarray:
    """A boolean (H, W) mask brought into the frame (`in_frame`) and back bilinearly, where any share counts."""
    return _bilinear(in_frame(target, side).astype(np.float32), target.shape) > 0


def _bilinear(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 -> `size`, without antialiasing."""
    return F.interpolate(torch.from_numpy(plane)[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
