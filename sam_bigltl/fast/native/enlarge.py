"""Masks of the photograph's size from low-resolution logits: what SAM's `postprocess_masks` and its threshold give.

Both interpolations mix neighbours with weights that are not negative. So where no logit around is above a threshold of
zero, no result is, and only the rest is computed. Sums are rounded in another order than torch's, whose order depends
on the processor: a logit within some 1e-6 of zero may fall on the other side.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import levels
from .ops import _f32, _fields, _i64, _ptr, _threads

Size = tuple[int, int]  # rows and columns


class _Axis(ctypes.Structure):
    """Mirrors `Axis` of enlarge.h."""

    _fields_ = _fields((_ptr, "index weights"), (_i64, "size"))


class _Enlarge(ctypes.Structure):
    """Mirrors `Enlarge` of enlarge.h."""

    _fields_ = _fields(
        (_ptr, "logits"), (_i64, "count rows columns"), (_Axis, "rows1 columns1 rows2 columns2"), (_f32, "threshold"),
        (_ptr, "masks"),
    )  # fmt: skip


def masks(low_res: Tensor, side: int, input_size: Size, original_size: Size) -> Tensor:
    """Where the logits, brought to the size of the photograph, are above zero.

    Args:
        low_res: (B, C, h, w) float32 on the CPU, h and w at least 2.
        side: of the model's frame, to which they are brought first.
        input_size: of the photograph in it.
        original_size: of the photograph.

    Returns:
        (B, C, H, W) bool
    """
    batch, channels, rows, columns = low_res.shape
    low_res = low_res.contiguous()
    out = torch.zeros(batch, channels, *original_size, dtype=torch.bool)
    axes = [
        _axis(*sizes) for sizes in (
            (rows, side), (columns, side), (input_size[0], original_size[0]), (input_size[1], original_size[1]),
        )
    ]  # fmt: skip
    problem = _Enlarge(
        low_res.data_ptr(), batch * channels, rows, columns,
        *(_Axis(index.ctypes.data, weights.ctypes.data, len(index)) for index, weights in axes), 0.0, out.data_ptr(),
    )  # fmt: skip
    levels.function("enlarge", None)(ctypes.byref(problem), _threads())
    return out


def fits(low_res: Tensor, *sizes: int) -> bool:
    """Whether `masks` takes these logits; `sizes` are all sides that they are brought to."""
    return low_res.dtype == torch.float32 and low_res.device.type == "cpu" and min(*low_res.shape[-2:], *sizes) >= 2


@lru_cache(maxsize=64)
def _axis(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of the two neighbours of each result, int32 (after,), and their weights, (after, 2), as torch has them:
    positions in float32."""
    scale = np.float32(before) / np.float32(after)
    place = np.maximum(scale * (np.arange(after, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    index = np.minimum(place.astype(np.int32), before - 2)
    second = np.minimum(place - index.astype(np.float32), 1)
    return index, np.ascontiguousarray(np.stack([1 - second, second], axis=1), np.float32)
