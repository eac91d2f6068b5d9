"""The pretrained patch embedding in the native kernels.

Knows `MobileStem` by the names of its layers. SAM pads photographs with zeros at the right and below. What a layer
makes of those depends on no pixel, except near the photograph: it is computed once, and for a photograph only the rest.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import levels, ops
from .ops import _f32, _fields, _i32, _i64, _ptr, _threads

_LANES = 16  # a multiple of `kLanes` of every level
_KERNELS = ((3, 1), (3, 2), (5, 1), (5, 2))  # sizes and strides of depthwise convolutions
# With fewer inputs, rounding them costs more than 16-bit products save.
_FEWEST = 40
_FIRST = 3  # side of the first convolution, whose stride is 2

Size = tuple[int, int]  # rows and columns


class _Pixels(ctypes.Structure):
    """Mirrors `Pixels` of inverted.h."""

    _fields_ = [*_fields((_ptr, "x"), (_i64, "rows columns")), ("scale", _f32 * 3), ("shift", _f32 * 3),
                *_fields((_ptr, "out last"))]  # fmt: skip


class _Inverted(ctypes.Structure):
    """Mirrors `Inverted` of inverted.h."""

    _fields_ = _fields(
        (_ptr, "x"), (_i64, "x_stride rows columns out_rows out_columns patch"), (ops._Packed, "expand"),
        (_ptr, "depthwise depthwise_bias"), (_i64, "hidden kernel stride"), (ops._Packed, "project"),
        (_i32, "residual"), (_ptr, "out"),
    )  # fmt: skip


def fits(stem: Any) -> bool:
    """Whether the kernels have the depthwise convolutions of a `MobileStem`."""
    layers = [block.depthwise for stage in stem.stages for block in stage]
    return all((layer.kernel_size[0], layer.stride[0]) in _KERNELS for layer in layers)


class _Block:
    """An inverted residual block; `first` is a convolution of 3 x 3 with stride 2 in the place of its expansion."""

    def __init__(self, block: Any, dtype: str, first: Any = None) -> None:
        expand, depthwise, project = first or block.expand, block.depthwise, block.project
        dtype = dtype if depthwise.in_channels >= _FEWEST * 6 else "float32"
        self.patch = 1 if first is None else _FIRST
        self.expand = None if expand is None else ops.pack(_matrix(expand), expand.bias, dtype)
        self.project = ops.pack(_matrix(project), project.bias, dtype)
        self.hidden, self.kernel, self.stride = depthwise.in_channels, depthwise.kernel_size[0], depthwise.stride[0]
        self.weight = _padded(depthwise.weight.detach().float()[:, 0].flatten(1).t())  # (kernel * kernel, hidden)
        self.bias = _padded(depthwise.bias.detach().float())
        self.residual = block.residual

    def size(self, size: Size) -> Size:
        """Rows and columns of the output, of those before the depthwise convolution."""
        return -(-size[0] // self.stride), -(-size[1] // self.stride)

    def reached(self, size: Size, filled: Size) -> Size:
        """The part of the output that depends on the top left part `filled` of the `size` before it."""
        rows, columns = (
            min(-(-full // self.stride), -(-(part + self._padding(full)) // self.stride))
            for full, part in zip(size, filled, strict=True)
        )
        return rows, columns

    def _padding(self, size: int) -> int:
        return max(0, (-(-size // self.stride) - 1) * self.stride + self.kernel - size) // 2

    def run(self, x: Tensor, size: Size, wanted: Size, out: Tensor) -> None:
        """Write the top left part `wanted` of `out`, (rows, columns, channels); `size` is before the depthwise one."""
        expand = ops._Packed(inputs=self.hidden) if self.expand is None else self.expand.problem
        problem = _Inverted(
            x.data_ptr(), x.stride(0), *size, *wanted, self.patch, expand, self.weight.data_ptr(),
            self.bias.data_ptr(), self.hidden, self.kernel, self.stride, self.project.problem, self.residual,
            out.data_ptr(),
        )  # fmt: skip
        levels.function("inverted", None)(ctypes.byref(problem), _threads())


class PackedStem:
    """A `MobileStem`'s weights in the layout of the kernels.

    Args:
        stem: the patch embedding.
        dtype: of the products, "float32" or "int16".
    """

    def __init__(self, stem: Any, dtype: str) -> None:
        self._blocks = [
            [_Block(block, dtype, stem.first if number == index == 0 else None) for index, block in enumerate(stage)]
            for number, stage in enumerate(stem.stages)
        ]
        self._scale, self._shift = ((_f32 * 3)(*values.flatten().tolist()) for values in (stem.scale, stem.shift))
        taps = {int(name): tap for name, tap in stem.taps.items()}
        self._sides = {number: tap.kernel_size[0] for number, tap in taps.items() if number != len(stem.stages) - 1}
        self._deepest = ops.pack(_matrix(taps[len(stem.stages) - 1]), None, dtype)
        weight = torch.cat([_matrix(taps[number]) for number in self._sides], dim=1)
        bias = [taps[number].bias for number in self._sides if taps[number].bias is not None]
        self._taps = ops.pack(weight, torch.stack(bias).sum(dim=0), dtype)
        self._padding: tuple[Size, list[Tensor]] | None = None  # what blocks make of padding alone, of the last size

    def tokens(self, image: Tensor) -> Tensor:
        """Image (3, 16 gh, 16 gw), float32 -> tokens (gh, gw, dim)."""
        size = (image.shape[1], image.shape[2])
        pixels, filled = self._prepare(image.contiguous())
        padding = None if filled == size else self._of_padding(size)
        stages = self._run(pixels, filled, padding)
        gh, gw = size[0] // 16, size[1] // 16
        gathered = [
            stages[number].view(gh, side, gw, side, -1).transpose(1, 2).reshape(gh * gw, -1)
            for number, side in self._sides.items()
        ]
        deepest = stages[-1]
        deep = ops.linear(self._deepest, deepest.flatten(0, 1)).view(1, *deepest.shape[:2], -1).permute(0, 3, 1, 2)
        deep = F.interpolate(deep, scale_factor=2.0, mode="bilinear")[0, :, :gh, :gw].permute(1, 2, 0)
        rows = ops.linear(self._taps, torch.cat(gathered, dim=1), residual=deep.reshape(gh * gw, -1))
        return rows.view(gh, gw, -1)

    def _prepare(self, image: Tensor) -> tuple[Tensor, Size]:
        """What the first block reads, (rows + 1, columns + 1, 3), and the part of the image that is not zero."""
        _, rows, columns = image.shape
        out, last = torch.empty(rows + 1, columns + 1, 3), torch.empty(rows, dtype=torch.int32)
        problem = _Pixels(image.data_ptr(), rows, columns, self._scale, self._shift, out.data_ptr(), last.data_ptr())
        levels.function("prepare", None)(ctypes.byref(problem), _threads())
        filled = last.nonzero()
        return out, (int(filled[-1]) + 1, int(last.max())) if len(filled) else (1, 1)

    def _of_padding(self, size: Size) -> list[Tensor]:
        kept = self._padding
        if kept is None or kept[0] != size:
            pixels, _ = self._prepare(torch.zeros(3, *size))
            outputs: list[Tensor] = []
            self._run(pixels, size, None, outputs)
            kept = self._padding = (size, outputs)
        return kept[1]

    def _run(
        self, x: Tensor, filled: Size, padding: list[Tensor] | None, outputs: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs of stages, (rows, columns, channels); `outputs` gets those of blocks.

        Args:
            x: what the first block reads.
            filled: the part of the image that is no padding.
            padding: outputs of blocks for an image that is all padding; None to compute everything.
        """
        stages, number = [], 0
        size = ((x.shape[0] - 1) // 2, (x.shape[1] - 1) // 2)
        filled = (-(-filled[0] // 2), -(-filled[1] // 2))
        for blocks in self._blocks:
            for block in blocks:
                whole = block.size(size)
                out = torch.empty(*whole, block.project.outputs)
                filled = whole if padding is None else block.reached(size, filled)
                block.run(x, size, filled, out)
                if padding is not None:
                    out[filled[0] :] = padding[number][filled[0] :]
                    out[: filled[0], filled[1] :] = padding[number][: filled[0], filled[1] :]
                if outputs is not None:
                    outputs.append(out)
                x, size, number = out, whole, number + 1
            stages.append(x)
        return stages


def _matrix(layer: Any) -> Tensor:
    """A convolution's weights (out, in, k, k) -> (out, k * k * in), as patches of channels-last images are read."""
    return layer.weight.detach().float().permute(0, 2, 3, 1).flatten(1)


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % _LANES)).contiguous()
