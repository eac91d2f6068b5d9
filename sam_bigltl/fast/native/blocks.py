"""Whole transformer blocks in the native kernels: what `SemiCrossAttention`'s blocks and the E-blocks compute, without
autograd.

Weights are packed at the first call and again when they have changed. Knows blocks by the names of their layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .ragged import Ragged


def _pack(layer: Any, dtype: str, chunked: bool = False, factor: Tensor | None = None) -> ops.Packed:
    """A layer's weights; `factor` (out,) is multiplied into them."""
    if hasattr(layer, "native_weights"):  # int8, rounded already
        return layer.native_weights(chunked, factor)
    weight, bias = layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach().float()
    if factor is not None:
        weight, bias = weight * factor[:, None], None if bias is None else bias * factor
    return ops.pack(weight, bias, dtype, chunked)


def _precise(dtype: str) -> str:
    """The format of products that need more digits than those of `dtype`, where that is not float32 already."""
    return "float32" if dtype == "float32" or not ops.has_fast_integers() else "int16"


class PackedBlock:
    """A block's weights in the layout of the kernels.

    Args:
        block: a P-block or an E-block.
        dtype: of the linear layers, "float32", "bfloat16" or "int8".
    """

    def __init__(self, block: Any, dtype: str) -> None:
        attn, mlp = block.attn, block.mlp
        self.num_heads = attn.num_heads
        self.products = _precise(dtype)
        self.norm1, self.norm2 = (
            ops.Norm(norm_before(block, *names)) for names in (("norm1", "attn.qkv"), ("norm2", "mlp.lin1"))
        )
        self.qkv, self.proj = _pack(attn.qkv, dtype), _pack(attn.proj, dtype)
        self.lin1, self.lin2 = _pack(mlp.lin1, dtype), _pack(mlp.lin2, dtype, chunked=True)
        bias = attn.qkv.bias
        dim = self.proj.outputs
        self.padding = torch.zeros(2 * dim) if bias is None else bias.detach().float()[dim:].contiguous()
        self.tables: tuple[Tensor, Tensor] | None = None
        if getattr(attn, "rel_pos_h", None) is not None:
            self.tables = (attn.rel_pos_h.detach().float().contiguous(), attn.rel_pos_w.detach().float().contiguous())
        self.up: ops.Packed | None = None
        if hasattr(attn, "kv_little"):
            self.norm_little = ops.Norm(norm_before(block, "norm_little", "attn.kv_little"))
            self.kv_little = _pack(attn.kv_little, dtype)
            self.up = _pack(block.up, dtype, factor=block.gamma.detach().float())

    def dense(self, x: Tensor, layout: Ragged) -> Tensor:
        """Every token, x (R, C) float32 -> (R, C)."""
        if self.tables is None and ops.fits_windows(layout):
            return ops.windows(
                x, layout, self.norm1, self.qkv, self.padding, self.num_heads, self.proj, self.norm2, self.lin1,
                self.lin2, self.products,
            )  # fmt: skip
        dim = x.shape[1]
        qkv = ops.linear(self.qkv, x, self.norm1, dtype=self.qkv.stored)
        return self._rest(x, qkv, qkv[:0, dim:], layout)

    def routed(self, x: Tensor, layout: Ragged, little: Tensor, flat: Tensor, rest: Tensor) -> Tensor:
        """Selected tokens, x (R, C) float32 -> (R, C).

        Args:
            little: little stream of all tokens, (n, C_E) float32.
            flat: rows of the selected tokens in it, (R,).
            rest: rows of the others, (n - R,).
        """
        qkv = ops.linear(self.qkv, x, self.norm1, dtype=self.qkv.stored)
        kv = ops.linear(self.kv_little, little, self.norm_little, source=rest, dtype=self.qkv.stored)
        return self._rest(x, qkv, kv, layout, little, flat)

    def _rest(
        self,
        x: Tensor,
        qkv: Tensor,
        kv: Tensor,
        layout: Ragged,
        little: Tensor | None = None,
        flat: Tensor | None = None,
    ) -> Tensor:
        dim = x.shape[1]
        attended = ops.attend(
            qkv[:, :dim], qkv[:, dim:], kv, self.padding, layout, self.tables, self.num_heads, self.products
        )
        up = None if little is None else self.up
        return ops.finish(
            attended, x, self.proj, self.norm2, self.lin1, self.lin2, up=up, little=little, little_rows=flat
        )


class PackedTransition:
    """The two projections between the streams, `down` with more digits than int8: the router sees every rounding."""

    def __init__(self, transition: Any, dtype: str) -> None:
        down = _precise(dtype) if dtype == "int8" else dtype
        self._down, self._up = _pack(transition.down, down), _pack(transition.up, dtype)

    def down(self, x: Tensor) -> Tensor:
        """x (R, C) float32 -> (R, C_E)"""
        return ops.linear(self._down, x)

    def up(self, x: Tensor, little: Tensor, selected: Tensor, flat: Tensor, rest: Tensor) -> Tensor:
        """Tokens x (n, C) with the little stream (n, C_E) added, and `selected` (R, C) in the rows `flat`."""
        out = torch.empty_like(x)
        ops.linear(self._up, little, source=rest, residual=x, out=out, target=rest)
        return out.index_copy_(0, flat, selected)


def norm_before(block: Any, norm: str, layer: str) -> nn.LayerNorm:
    """The norm before a layer; int8 layers hold theirs."""
    own = block.get_submodule(layer)
    return own.norm if getattr(own, "norm", None) is not None else getattr(block, norm)


class Kept:
    """Packed weights of a module, made again when a tensor of it has changed or been replaced."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._packed: Any = None
        self._samples: list[tuple[Tensor, Tensor]] = []

    def get(self, module: nn.Module, make: Callable[[nn.Module, str], Any], dtype: str) -> Any:
        """make(module, dtype), now or from before."""
        tensors = [*module.parameters(), *module.buffers()]
        key = (dtype, *((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors))
        if key != self._key or not all(torch.equal(part, before) for part, before in self._samples):
            self._packed, self._key = make(module, dtype), key
            # `weight.data += ...`, as adapters are merged, counts as no change: some values of each matrix are
            # compared. They also keep the memory, so that no other tensor gets an address that is known.
            parts = [_part(x) for x in tensors if x.ndim > 1]
            self._samples = [(part, part.clone()) for part in parts]
        return self._packed


def _part(x: Tensor) -> Tensor:
    """Some values of x, in its memory."""
    return x.detach()[tuple(slice(None, None, -(-size // 4) or 1) for size in x.shape)]
