"""The second half of SAM's mask decoder in the native kernels: mask logits of image tokens."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from . import levels, ops
from .ops import _f32, _fields, _i64, _ptr, _threads

_LANES = 16  # a multiple of `kLanes` of every level


class _Draw(ctypes.Structure):
    """Mirrors `Draw` of draw.h."""

    _fields_ = _fields(
        (_ptr, "image"), (_i64, "prompts rows columns"), (ops._Packed, "first second"), (_ptr, "norm_weight norm_bias"),
        (_f32, "eps"), (_ptr, "kernels"), (_i64, "masks"), (_ptr, "out"),
    )  # fmt: skip


def fits(upscaling: Any) -> bool:
    """Whether the kernels compute this `output_upscaling` of a mask decoder: its activations and channels."""
    first, _norm, activation, second, last = upscaling
    tensors = [*upscaling.parameters()]
    return (
        all(type(act) is nn.GELU and act.approximate == "none" for act in (activation, last))
        and first.out_channels % _LANES == second.out_channels % _LANES == 0
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


class PackedUpscaling:
    """The weights of `output_upscaling` of a mask decoder in the layout of the kernels; `dtype` is "float32"."""

    def __init__(self, upscaling: Any, dtype: str) -> None:
        first, norm, _, second, _ = upscaling
        self._first, self._second = (
            ops.pack(layer.weight.permute(2, 3, 1, 0).flatten(0, 2), layer.bias.repeat(4), dtype)
            for layer in (first, second)
        )
        self._weight, self._bias = norm.weight.detach().clone(), norm.bias.detach().clone()
        self._eps = norm.eps

    def draw(self, image: Tensor, kernels: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Mask logits, as `modeling.decode.draw`.

        Args:
            image: image tokens (n, gh * gw, C), float32. kernels: (n, k, C / 8), float32. grid: gh, gw.

        Returns:
            (n, k, 4 gh, 4 gw)
        """
        image, kernels = image.contiguous(), kernels.contiguous()
        (prompts, masks, _), (rows, columns) = kernels.shape, grid
        out = torch.empty(prompts, masks, 4 * rows, 4 * columns)
        problem = _Draw(
            image.data_ptr(), prompts, rows, columns, self._first.problem, self._second.problem,
            self._weight.data_ptr(), self._bias.data_ptr(), self._eps, kernels.data_ptr(), masks, out.data_ptr(),
        )  # fmt: skip
        levels.function("draw", None)(ctypes.byref(problem), _threads())
        return out
