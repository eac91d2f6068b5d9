"""Masks as the page takes them: COCO's compressed run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

Rle = dict[str, Any]  # "width", "height" and "counts", a string


def as_rle(mask: np.ndarray) -> Rle:
    """A mask (H, W) bool."""
    return from_coco(mask_utils.encode(np.asfortranarray(mask.view(np.uint8))))


def from_coco(coco: dict[str, Any]) -> Rle:
    """What pycocotools gives."""
    height, width = coco["size"]
    counts = coco["counts"]
    return {"width": width, "height": height, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


class RunLengths:
    """The runs of a mask that comes in parts, pixels down the columns."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # whole ones, zeros and ones in turn
        self._last, self._value = 0, False  # the run that has not ended yet

    def add(self, pixels: np.ndarray) -> None:
        """The next pixels (N,) bool, of which there is at least one."""
        if bool(pixels[0]) != self._value:
            self._end(np.array([self._last]))
            self._last = 0
        starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
        if len(starts) == 0:
            self._last += len(pixels)
            return
        lengths = np.diff(starts, prepend=0)
        lengths[0] += self._last
        self._runs.append(lengths)
        self._value = bool(pixels[-1])
        self._last = len(pixels) - int(starts[-1])

    def add_zeros(self, count: int) -> None:
        """The next `count` pixels are all zero."""
        if self._value:
            self._end(np.array([self._last]))
            self._last = 0
        self._last += count

    def rle(self, height: int, width: int) -> Rle:
        """All of them, which make a mask of this size."""
        counts = np.concatenate([*self._runs, [self._last]]).astype(np.int64).tolist()
        return from_coco(mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width))

    def _end(self, lengths: np.ndarray) -> None:
        self._runs.append(lengths)
        self._value = not self._value
