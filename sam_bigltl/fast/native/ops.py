"""The native kernels as functions of tensors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from . import levels
from .ragged import Ragged

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int16": 3}  # `FormatId` of formats.h
ACTIVATIONS = {"none": 0, "gelu": 1}
_LONGEST_LINE = 256  # rows or columns of keys; the constants of attention.h
_CHANNELS = 256
_LARGEST_WINDOW = 256  # places, of `windows`: its rows stay in the second level cache
_FEWEST_WINDOWS = 16  # for threads to share; not by their number, on which no bit of a result depends
_PANEL = 64  # a multiple of `kPanel` of every level
_CHUNK = 768  # hidden units of an MLP that are in the cache at a time
_SUM = 2**31 - 2**16  # of integers

_i64, _i32, _f32, _ptr = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


def _fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Packed(ctypes.Structure):
    """Mirrors `Packed` of product.h."""

    _fields_ = _fields(
        (_ptr, "words scales bias"), (_i64, "inputs outputs chunk"), (_i32, "format weight_levels row_levels")
    )


class _Linear(ctypes.Structure):
    """Mirrors `Linear` of linear.h."""

    _fields_ = _fields(
        (_ptr, "x"), (_i64, "x_stride"), (_ptr, "source"), (_i64, "rows"), (_Packed, "weights"),
        (_ptr, "norm_weight norm_bias"), (_f32, "eps"), (_i32, "activation"), (_ptr, "residual"),
        (_i64, "residual_stride"), (_ptr, "out"), (_i64, "out_stride"), (_ptr, "target"), (_i32, "half"),
    )  # fmt: skip


class _Attention(ctypes.Structure):
    """Mirrors `Attention` of attention.h."""

    _fields_ = _fields(
        (_ptr, "q"), (_i64, "q_stride"), (_ptr, "big"), (_i64, "big_stride num_big"), (_ptr, "little"),
        (_i64, "little_stride"), (_ptr, "padding keys starts queries table_h table_w rows columns"),
        (_i64, "size key_rows key_columns windows heads d"), (_f32, "scale"), (_ptr, "out"), (_i64, "out_stride"),
        (_i32, "half format"),
    )  # fmt: skip


class _Finish(ctypes.Structure):
    """Mirrors `Finish` of block.h."""

    _fields_ = _fields(
        (_ptr, "attended"), (_i64, "attended_stride"), (_ptr, "x"), (_i64, "x_stride rows"), (_Packed, "proj"),
        (_ptr, "little"), (_i64, "little_stride"), (_ptr, "little_rows"), (_Packed, "up"),
        (_ptr, "norm_weight norm_bias"), (_f32, "eps"), (_Packed, "lin1 lin2"), (_ptr, "out"),
        (_i64, "out_stride"),
    )  # fmt: skip


def has_fast_integers() -> bool:
    """Whether 16-bit integer products are faster than float32 ones."""
    return not str(levels.level()).startswith("neon")


@cache
def has(name: str) -> bool:
    """Whether this processor's level has products of a format of FORMATS."""
    return bool(levels.function("has")(_i32(FORMATS[name])))


class _Window(ctypes.Structure):
    """Mirrors `Window` of window.h."""

    _fields_ = _fields(
        (_ptr, "x"), (_i64, "stride"), (_ptr, "keys starts queries places"), (_i64, "key_places windows heads d"),
        (_f32, "scale"), (_ptr, "padding norm1_weight norm1_bias"), (_f32, "eps1"), (_Packed, "qkv"), (_Finish, "rest"),
        (_i32, "format"),
    )  # fmt: skip


class Norm:
    """A LayerNorm as the kernels read it: float32, contiguous."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight = norm.weight.detach().float().contiguous()
        self.bias = norm.bias.detach().float().contiguous()
        self.eps = norm.eps


@dataclass
class Packed:
    """Weights of a linear layer in the kernels' layout.

    Attributes:
        problem: what the kernels are given.
        inputs, outputs: of the layer.
        kept: memory that `problem` points into.
    """

    problem: _Packed
    inputs: int
    outputs: int
    kept: tuple[Tensor, ...]

    @property
    def stored(self) -> torch.dtype:
        """In which its results are kept between kernels: halves where products are rounded more than these are."""
        return torch.float32 if self.problem.format == FORMATS["float32"] else torch.float16


def pack(weight: Tensor, bias: Tensor | None, dtype: str, chunked: bool = False) -> Packed:
    """Weights (out, in) and their bias in the layout of the kernels.

    Args:
        dtype: "float32", "bfloat16", "int8", or "int16" (about 12 bits for weights and activations).
        chunked: the second layer of an MLP, whose inputs come some at a time.
    """
    weight = weight.detach().float().contiguous()
    outputs, inputs = weight.shape
    chunk = inputs
    if chunked and inputs > _CHUNK:
        parts = -(-inputs // _CHUNK)
        chunk = -(-inputs // parts // _PANEL) * _PANEL
    weight_levels = rows = 0
    if dtype == "int8":
        weight_levels, rows = 127, levels.function("byte_levels")()
    elif dtype == "int16":
        weight_levels = rows = min(8191, int((_SUM / chunk) ** 0.5))
    problem = _Packed(None, None, None, inputs, outputs, chunk, FORMATS[dtype], weight_levels, rows)
    pointer = ctypes.byref(problem)
    words = torch.empty(levels.function("packed_words", _i64)(pointer), dtype=torch.int32)
    scales = torch.empty(levels.function("packed_scales", _i64)(pointer))
    problem.words, problem.scales = words.data_ptr(), scales.data_ptr()
    biases = torch.empty_like(scales)
    problem.bias = biases.data_ptr()
    bias = None if bias is None else bias.detach().float().contiguous()
    levels.function("pack")(_ptr(weight.data_ptr()), _ptr(_pointer(bias)), pointer)
    return Packed(problem, inputs, outputs, (words, scales, biases))


def _threads() -> ctypes.c_int64:
    return _i64(torch.get_num_threads())


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _norm(norm: Norm | None) -> tuple[int | None, int | None, float]:
    return (None, None, 0.0) if norm is None else (norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


def linear(
    packed: Packed, x: Tensor, norm: Norm | None = None, source: Tensor | None = None, activation: str = "none",
    residual: Tensor | None = None, out: Tensor | None = None, target: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """A linear layer on rows.

    Args:
        x: (n, in) float32, rows at any stride.
        norm: of the rows before it.
        source: rows of x to take, int64 (R,); None for all in order.
        activation: of ACTIVATIONS.
        residual: added to the result, (rows of out, out) float32.
        out: where to write; made where it is None.
        target: rows of `out` to write, int64 (R,); None for all in order.
        dtype: float32 or, without an activation, float16: of an `out` that is made.

    Returns:
        out, (R, out) where it is made
    """
    rows = len(x) if source is None else len(source)
    if out is None:
        out = torch.empty(rows, packed.outputs, dtype=dtype)
    assert activation == "none" or out.dtype == torch.float32
    problem = _Linear(
        x.data_ptr(), x.stride(0), _pointer(source), rows, packed.problem, *_norm(norm), ACTIVATIONS[activation],
        _pointer(residual), 0 if residual is None else residual.stride(0), out.data_ptr(), out.stride(0),
        _pointer(target), out.dtype == torch.float16,
    )  # fmt: skip
    levels.function("linear")(ctypes.byref(problem), _threads())
    return out


def fits(channels: int, side: int) -> bool:
    """Whether `attend` takes heads of `channels` and grids of keys of at most `side` rows and columns."""
    return channels <= _CHANNELS and side <= _LONGEST_LINE


def attend(
    q: Tensor, big: Tensor, little: Tensor, padding: Tensor, ragged: Ragged, tables: tuple[Tensor, Tensor] | None,
    num_heads: int, dtype: str = "float32",
) -> Tensor:  # fmt: skip
    """Attention of ragged windows; softmax in float32.

    Args:
        q: (queries, C), float32 or float16, as keys and values; rows at any stride.
        big, little: the two parts of the table of keys and values that `ragged.keys` numbers, each (rows, 2C).
        padding: keys and values of a padded place, (2C,).
        tables: relative positions along rows and columns, each (2 * size - 1, d), or None.
        dtype: of the products, "float32" or "int16".

    Returns:
        (queries, C) float32
    """
    count, dim = q.shape
    d = dim // num_heads
    out = torch.empty(count, dim)
    padding = padding.to(q.dtype).contiguous()
    if tables is not None:
        tables = (tables[0].float().contiguous(), tables[1].float().contiguous())
    table_h, table_w = tables or (None, None)
    problem = _Attention(
        q.data_ptr(), q.stride(0), big.data_ptr(), big.stride(0), big.shape[0], little.data_ptr(), little.stride(0),
        padding.data_ptr(), ragged.keys.data_ptr(), ragged.starts.data_ptr(), ragged.queries.data_ptr(),
        _pointer(table_h), _pointer(table_w), ragged.rows.data_ptr(), ragged.columns.data_ptr(),
        0 if table_h is None else (table_h.shape[0] + 1) // 2, *ragged.grid, ragged.starts.shape[0] - 1, num_heads, d,
        d**-0.5, out.data_ptr(), dim, q.dtype == torch.float16, FORMATS[dtype],
    )  # fmt: skip
    levels.function("attend")(ctypes.byref(problem), _threads())
    return out


_NOTHING = _Packed()


def finish(
    attended: Tensor, x: Tensor, proj: Packed, norm: Norm, lin1: Packed, lin2: Packed,
    up: Packed | None = None, little: Tensor | None = None, little_rows: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What a block does after its attention: x + proj(attended) + up(little), then x + lin2(gelu(lin1(norm(x)))).

    Args:
        attended: (R, width of the heads) float32.
        x: (R, C) float32.
        up: gamma included; None without a little stream.
        little: (n, C_E) float32, whose rows `little_rows`, int64 (R,), belong to those of x.
        out: where to write, may be x; made where it is None.

    Returns:
        (R, C)
    """
    out = torch.empty_like(x) if out is None else out
    problem = _Finish(
        attended.data_ptr(), attended.stride(0), x.data_ptr(), x.stride(0), len(x), proj.problem, _pointer(little),
        0 if little is None else little.stride(0), _pointer(little_rows), _NOTHING if up is None else up.problem,
        *_norm(norm), lin1.problem, lin2.problem, out.data_ptr(), out.stride(0),
    )  # fmt: skip
    levels.function("finish")(ctypes.byref(problem), _threads())
    return out


def fits_windows(ragged: Ragged) -> bool:
    """Whether `windows` takes blocks of these windows: small ones, enough for threads to share."""
    places = ragged.grid[0] * ragged.grid[1]
    return ragged.places is not None and places <= _LARGEST_WINDOW and len(ragged.starts) > _FEWEST_WINDOWS


def windows(
    x: Tensor, ragged: Ragged, norm1: Norm, qkv: Packed, padding: Tensor, num_heads: int, proj: Packed,
    norm2: Norm, lin1: Packed, lin2: Packed, dtype: str = "float32",
) -> Tensor:  # fmt: skip
    """A whole block without relative positions, window by window; see `fits_windows`.

    Args:
        x: (R, C) float32.
        padding: keys and values of a padded place, (2C,) float32.
        dtype: of the attention's products, "float32" or "int16".

    Returns:
        (R, C)
    """
    out, dim = x.clone(), proj.inputs
    rest = _Finish(
        proj=proj.problem, norm_weight=norm2.weight.data_ptr(), norm_bias=norm2.bias.data_ptr(), eps=norm2.eps,
        lin1=lin1.problem, lin2=lin2.problem,
    )  # fmt: skip
    problem = _Window(
        out.data_ptr(), out.stride(0), ragged.keys.data_ptr(), ragged.starts.data_ptr(), ragged.queries.data_ptr(),
        _pointer(ragged.places), ragged.keys.shape[1], ragged.starts.shape[0] - 1, num_heads, dim // num_heads,
        (dim // num_heads) ** -0.5, padding.data_ptr(), *_norm(norm1), qkv.problem, rest, FORMATS[dtype],
    )  # fmt: skip
    levels.function("windows")(ctypes.byref(problem), _threads())
    return out
