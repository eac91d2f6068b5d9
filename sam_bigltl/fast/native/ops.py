"""The native kernels as functions of tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from .build import load
from .ragged import Ragged

_LONGEST_LINE = 256  # rows or columns of keys; the constants of attention.cpp
_CHANNELS = 256


class _Attention(ctypes.Structure):
    """Mirrors `Attention` of attention.cpp."""

    _fields_ = [
        (name, kind)
        for kind, names in (
            (ctypes.c_void_p, "q"), (ctypes.c_int64, "q_stride"), (ctypes.c_void_p, "big"),
            (ctypes.c_int64, "big_stride num_big"), (ctypes.c_void_p, "little"), (ctypes.c_int64, "little_stride"),
            (ctypes.c_void_p, "padding keys starts queries table_h table_w rows columns"),
            (ctypes.c_int64, "size key_rows key_columns windows heads d"), (ctypes.c_float, "scale"),
            (ctypes.c_void_p, "out"), (ctypes.c_int64, "out_stride"),
        )
        for name in names.split()
    ]  # fmt: skip


def usable(qkv: Tensor, num_heads: int, side: int) -> bool:
    """Whether `attend` takes queries, keys and values (..., 3C), for grids of keys of at most `side` rows and columns.

    It has no gradient, a trace does not see it, and its buffers have a fixed size.
    """
    channels = qkv.shape[-1] // 3 // num_heads
    fits = channels % 2 == 0 and channels <= _CHANNELS and side <= _LONGEST_LINE
    seen = torch.jit.is_tracing() or (torch.is_grad_enabled() and qkv.requires_grad)
    return fits and qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu" and not seen


def attend(
    q: Tensor, big: Tensor, little: Tensor, padding: Tensor, ragged: Ragged, tables: tuple[Tensor, Tensor] | None,
    num_heads: int,
) -> Tensor:  # fmt: skip
    """Attention of ragged windows, everything bfloat16, sums and softmax in float32.

    Args:
        q: (queries, C), rows at any stride.
        big, little: the two parts of the table of keys and values that `ragged.keys` numbers, each (rows, 2C).
        padding: keys and values of a padded place, (2C,).
        tables: relative positions along rows and columns, each (2 * size - 1, d), or None.

    Returns:
        (queries, C)
    """
    table_h, table_w = tables or (None, None)
    tensors = (q, big, little, padding, *ragged.tensors, table_h, table_w)
    if torch.compiler.is_compiling():
        return _attend_op(*tensors, *ragged.grid, num_heads)
    return _attend(*tensors, *ragged.grid, num_heads)


def _attend(
    q: Tensor, big: Tensor, little: Tensor, padding: Tensor, keys: Tensor, starts: Tensor, queries: Tensor,
    rows: Tensor, columns: Tensor, table_h: Tensor | None, table_w: Tensor | None, key_rows: int, key_columns: int,
    num_heads: int,
) -> Tensor:  # fmt: skip
    kernels = load()
    count, dim = q.shape
    out = q.new_empty(count, dim)
    padding = padding.to(q.dtype).contiguous()
    pointers: tuple[int | None, int | None] = (None, None)
    if table_h is not None and table_w is not None:
        table_h, table_w = table_h.to(q.dtype).contiguous(), table_w.to(q.dtype).contiguous()
        pointers = (table_h.data_ptr(), table_w.data_ptr())
    problem = _Attention(
        q.data_ptr(), q.stride(0), big.data_ptr(), big.stride(0), big.shape[0], little.data_ptr(), little.stride(0),
        padding.data_ptr(), keys.data_ptr(), starts.data_ptr(), queries.data_ptr(),
        *pointers, rows.data_ptr(), columns.data_ptr(), 0 if table_h is None else (table_h.shape[0] + 1) // 2,
        key_rows, key_columns, starts.shape[0] - 1, num_heads, dim // num_heads, (dim // num_heads) ** -0.5,
        out.data_ptr(), dim,
    )  # fmt: skip
    threads = ctypes.c_int64(torch.get_num_threads())
    words = kernels.bigltl_attend_scratch(ctypes.byref(problem), threads)
    scratch = torch.empty(words, dtype=torch.int32)
    kernels.bigltl_attend(ctypes.byref(problem), ctypes.c_void_p(scratch.data_ptr()), threads)
    return out


# For torch.compile, which cannot look into a foreign function; called directly it would cost some 50 us.
_attend_op = torch.library.custom_op("sam_bigltl::attend", _attend, mutates_args=())


@_attend_op.register_fake
def _(q: Tensor, *_unused: object) -> Tensor:  # what `_attend` returns
    return q.new_empty(q.shape)


def quantize(x: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, float]:
    """Symmetric 8-bit rounding of bfloat16 values, of their LayerNorm if there is one.

    Args:
        x: (rows, channels).

    Returns:
        levels (rows, channels) uint8 with 128 added, and their scale.
    """
    kernels = load()
    x = x.contiguous()
    levels = torch.empty(x.shape, dtype=torch.uint8)
    pointers: list[int | None] = [None, None, None]
    if norm is not None:
        normal = torch.empty_like(x)
        pointers = [tensor.data_ptr() for tensor in (norm.weight, norm.bias, normal)]
    weight, bias, normal_pointer = map(ctypes.c_void_p, pointers)
    scale = kernels.bigltl_quantize(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]), weight, bias,
        ctypes.c_float(0.0 if norm is None else norm.eps), normal_pointer, ctypes.c_void_p(levels.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )  # fmt: skip
    return levels, scale
