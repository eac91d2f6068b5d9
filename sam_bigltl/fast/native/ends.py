"""What comes before and after the blocks of an encoder, in the native kernels: SAM's patch projection and its neck."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from ..rescale import even_channels
from . import levels, ops
from .ops import _f32, _fields, _i64, _ptr, _threads

_LANES = 16  # a multiple of `kLanes` of every level


class _Norm(ctypes.Structure):
    """Mirrors `Norm` of neighbours.h."""

    _fields_ = _fields((_ptr, "weight bias"), (_f32, "eps"))


class _Neighbours(ctypes.Structure):
    """Mirrors `Neighbours` of neighbours.h."""

    _fields_ = [*_fields((_ptr, "x"), (_i64, "rows columns channels"), (_Norm, "before after")),
                ("lines", ops._Packed * 3), ("out", _ptr)]  # fmt: skip


class PackedProjection:
    """The weights of SAM's `PatchEmbed` in the layout of the kernels.

    Args:
        embed: the patch embedding.
        dtype: of the products, "float32" or "int16".
    """

    def __init__(self, embed: Any, dtype: str) -> None:
        self._side = embed.proj.kernel_size[0]
        self._projection = ops.pack(embed.proj.weight.flatten(1), embed.proj.bias, dtype)

    def tokens(self, image: Tensor) -> Tensor:
        """Image (3, H, W), float32 -> tokens (gh, gw, dim)."""
        side, (channels, height, width) = self._side, image.shape
        patches = image.reshape(channels, height // side, side, width // side, side).permute(1, 3, 0, 2, 4)
        grid = patches.shape[:2]
        return ops.linear(self._projection, patches.flatten(0, 1).flatten(1)).view(*grid, -1)


def fits(neck: Any) -> bool:
    """Whether the kernels have the channels of a neck."""
    return neck[2].in_channels % _LANES == 0


class PackedNeck:
    """The weights of SAM's neck in the layout of the kernels: 1 x 1 and 3 x 3 convolutions, each with a LayerNorm2d.

    Args:
        neck: the four layers.
        dtype: of the products of the second one, "float32" or "int16".
    """

    def __init__(self, neck: Any, dtype: str) -> None:
        first, norm, second, last_norm = neck
        # Of the stream, in whose few large channels the others would lose their digits: one scale is for a whole row.
        self._first = ops.pack(first.weight.flatten(1), first.bias, "float32")
        # One for each of the kernel's rows, whose three pixels lie together.
        weight = second.weight.detach().float().permute(2, 0, 3, 1)  # (3, out, 3, in)
        gain, shift = norm.weight.detach().float(), norm.bias.detach().float()
        factors = even_channels(gain, shift, weight.flatten(0, 2))
        lines = (weight * factors).flatten(2)  # (3, out, 3 * in)
        self._lines = [ops.pack(line, second.bias if index == 0 else None, dtype) for index, line in enumerate(lines)]
        self._norms = [
            (gain / factors, shift / factors, norm.eps),
            (last_norm.weight.detach().float().clone(), last_norm.bias.detach().float().clone(), last_norm.eps),
        ]

    def embedding(self, tokens: Tensor) -> Tensor:
        """Tokens (gh, gw, C), float32 and contiguous -> (out, gh, gw)."""
        gh, gw = tokens.shape[:2]
        x = ops.linear(self._first, tokens.flatten(0, 1))
        out = x.new_empty(self._lines[0].outputs, gh, gw)
        norms = (_Norm(weight.data_ptr(), bias.data_ptr(), eps) for weight, bias, eps in self._norms)
        lines = (ops._Packed * 3)(*(line.problem for line in self._lines))
        problem = _Neighbours(x.data_ptr(), gh, gw, x.shape[1], *norms, lines, out.data_ptr())
        levels.function("convolve", None)(ctypes.byref(problem), _threads())
        return out
