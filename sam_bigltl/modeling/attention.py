"""Attention with SAM's decomposed relative positions, for all tokens and for gathered queries.

The bias of a query at row r, column c for a key at row i, column j is `q . Rh[r - i] + q . Rw[c - j]` (MViTv2, as SAM's
image encoder uses it). Only its two factors, (queries, rows) and (queries, columns), are ever stored.

Shapes: B images, N = gh * gw tokens, K selected tokens, h heads, d channels a head, S keys in reach of a query.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from ..fast.quantize import Int8Linear
from .calls import Alone, Place, Routed, is_plain, place_of_call
from .routing import Geometry, Selection

# Without autograd: queries, and logits in all, that are alive at once.
_QUERIES = 512
_LOGITS = 2 * _QUERIES * 4096

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 does not tell


def relative_logits(q: Tensor, table: Tensor, lines: Tensor, num_lines: int) -> Tensor:
    """One factor of the decomposed bias for queries at any positions.

    Args:
        q: unscaled queries (b, h, Q, d).
        table: relative position embeddings (2 * size - 1, d), row `size - 1` being distance 0.
        lines: the row (or column) of each query, (b, Q) or (1, Q).
        num_lines: rows (or columns) that the keys span; at most `size`.

    Returns:
        (b, h, Q, num_lines)
    """
    size = (table.shape[0] + 1) // 2
    by_distance = q @ table.to(q.dtype).t()  # (b, h, Q, 2 * size - 1)
    keys = torch.arange(num_lines, device=q.device)
    index = lines[:, None, :, None] - keys + (size - 1)  # (b, 1, Q, num_lines)
    return by_distance.gather(-1, index.expand(q.shape[0], q.shape[1], -1, -1))


def relative_logits_grid(q: Tensor, table: Tensor, axis: int, resized: bool = False) -> Tensor:
    """The same factor where the queries are a whole grid: fewer products and no gather.

    Args:
        q: unscaled queries (b, h, rows, columns, d).
        table: as above.
        axis: 0 for rows, 1 for columns.
        resized: the table is interpolated to a grid of another size, as SAM does it; else a smaller grid is a part.

    Returns:
        (b, h, rows, columns, rows or columns)
    """
    length = q.shape[2 + axis]
    size = (table.shape[0] + 1) // 2
    if resized:
        relative = get_rel_pos(length, length, table.to(q.dtype))
    else:
        line = torch.arange(length, device=q.device)
        relative = table.to(q.dtype)[line[:, None] - line[None, :] + (size - 1)]  # (length, length, d)
    return torch.einsum("bnhwc,hkc->bnhwk" if axis == 0 else "bnhwc,wkc->bnhwk", q, relative)


def attend(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias) v, with the bias given by its factors.

    Args:
        q: (b, h, Q, d); k, v: (b, h, S, d) with S = rows * columns; rel_h: (b, h, Q, rows); rel_w: (b, h, Q, columns).

    Returns:
        (b, h, Q, d)
    """
    if q.is_cuda:
        return attend_folded(q, k, v, rel_h, rel_w, scale)
    b, h, num_q, d = q.shape
    rows, columns = rel_h.shape[-1], rel_w.shape[-1]
    if _is_exporting() or torch.jit.is_tracing():
        if not isinstance(num_q, int):  # a graph in which their number is an input
            return _attend_at_once(q, k, v, rel_h, rel_w, scale)
        # No buffers: what runs the graph has its own. Some queries at a time, or 1024 px take 12 GB.
        parts = [slice(start, start + _QUERIES) for start in range(0, int(num_q), _QUERIES)]
        return torch.cat(
            [_attend_at_once(q[:, :, part], k, v, rel_h[:, :, part], rel_w[:, :, part], scale) for part in parts], dim=2
        )
    if torch.is_grad_enabled():
        return _attend_at_once(q, k, v, rel_h, rel_w, scale)
    # Without autograd: some heads and queries at a time, in one buffer that starts as the bias, takes the products on
    # top and becomes the weights. Contiguous keys and values, once: bmm would copy them for every part.
    q, k, v = ((x * scale if x is q else x).reshape(b * h, -1, d).contiguous() for x in (q, k, v))
    rel_h, rel_w = rel_h.reshape(b * h, num_q, rows, 1), rel_w.reshape(b * h, num_q, 1, columns)
    out = torch.empty_like(q)
    num_keys = rows * columns
    queries = min(num_q, _QUERIES, max(1, _LOGITS // num_keys))
    heads = min(b * h, max(1, _LOGITS // (queries * num_keys)))
    buffer = q.new_empty(heads * queries * num_keys)
    for first in range(0, b * h, heads):
        head = slice(first, first + heads)
        keys, values = k[head].transpose(1, 2), v[head]
        for start in range(0, num_q, queries):
            part = (head, slice(start, start + queries))
            shape = (*q[part].shape[:2], rows, columns)
            logits = buffer[: math.prod(shape)].view(shape)
            torch.add(rel_h[part], rel_w[part], out=logits)
            logits = logits.flatten(2).baddbmm_(q[part], keys)  # (heads, queries, S)
            out[part] = torch.softmax(logits, dim=-1, out=logits).bmm(values)
    return out.view(b, h, num_q, d)


def _attend_at_once(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """The same with a logit for every query and key."""
    logits = (q * scale) @ k.transpose(-2, -1)
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    return (logits.view_as(bias) + bias).view_as(logits).softmax(dim=-1) @ v


def attend_folded(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """The same as `attend`, by one fused attention, forward and backward, for GPUs.

    No (queries, keys) matrix is ever stored.
    The bias becomes more channels of the product: (scale * q, rel_h, rel_w) . (k, row of the key, column of the key),
    with rows and columns as one-hot vectors.
    """
    b, h, _, d = q.shape
    rows, columns = rel_h.shape[-1], rel_w.shape[-1]
    place = torch.arange(rows * columns, device=q.device)
    one_hot = torch.cat([F.one_hot(place // columns, rows), F.one_hot(place % columns, columns)], dim=-1).to(q.dtype)
    q = torch.cat([q * scale, rel_h.to(q.dtype), rel_w.to(q.dtype)], dim=-1)
    k = torch.cat([k, one_hot.expand(b, h, -1, -1)], dim=-1)
    more = -q.shape[-1] % 8  # kernels want a multiple of 8
    q, k, v = (F.pad(x, (0, q.shape[-1] + more - x.shape[-1])) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d]


def padded_place(layer: nn.Module, x: Tensor, geometry: Geometry) -> Tensor:
    """What `layer`, the qkv of tokens x (..., C), gives for a padded place of a window, (3C,); zeros where none is."""
    if not geometry.padded:
        return x.new_zeros(3 * x.shape[-1])
    if isinstance(layer, (nn.Linear, Int8Linear)) and isinstance(layer.bias, Tensor):
        return layer.bias
    return layer(x.new_zeros(1, 1, 1, x.shape[-1])).flatten()  # of a client's module only its output is known


class SemiCrossAttention(nn.Module):
    """Queries: the selected tokens. Keys and values: every token in reach, big where selected and little elsewhere.

    Its parameters carry the names of `segment_anything`'s encoder attention; `kv_little` is the only new one.

    Args:
        dim: big width C.
        num_heads: heads.
        table_size: tokens a side that the relative positions cover (the window, or the whole grid); 0 for none, which
            is for global attention only.
        window: window side in tokens; 0 attends to the whole image.
        little_dim: little width C_E; 0 for a dense model, which has no little stream.
    """

    rescalable = True  # see `fast.rescale`
    # Relative positions, both or neither.
    rel_pos_h: nn.Parameter | None
    rel_pos_w: nn.Parameter | None

    def __init__(self, dim: int, num_heads: int, table_size: int, window: int, little_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.use_rel_pos = table_size > 0
        self.scale = (dim // num_heads) ** -0.5
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim)
        self.proj: nn.Module = nn.Linear(dim, dim)
        for name in ("rel_pos_h", "rel_pos_w"):
            table = nn.Parameter(torch.zeros(2 * table_size - 1, dim // num_heads)) if table_size else None
            self.register_parameter(name, table)
        if little_dim:
            self.kv_little = nn.Linear(little_dim, 2 * dim)

    @property
    def is_plain(self) -> bool:
        """Whether no client sees or changes what goes in and out of it, so that windows need not be cut first."""
        fused = isinstance(self.qkv, Int8Linear)  # with the norm, which padding must not pass through
        return fused or (
            is_plain(self, SemiCrossAttention) and is_plain(self.qkv, nn.Linear) and is_plain(self.proj, nn.Linear)
        )

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        """Attention among the tokens x (B, H, W, C), or of selected ones (B, 1, K, C) where `place` says so.

        A classifier's are (B, N, C) and (B, K, C). Called by hand it is SAM's: x sees nothing but itself.
        """
        place = place_of_call(self, place)
        if isinstance(place, Routed):
            return self.routed(x, place.little, place.selection, place.geometry)
        geometry = None if isinstance(place, Alone) else place
        qkv = self.qkv(x)  # (B, H, W, 3C)
        windowed = geometry is not None and self.window > 0
        if geometry is None:
            rows, columns = x.shape[1:3]
        elif windowed:
            # The reference pads after the norm, so a padded token's q, k and v are the bias of qkv.
            qkv = geometry.to_windows(qkv.flatten(1, -2), padded_place(self.qkv, x, geometry))
            rows = columns = self.window
        else:
            rows, columns = geometry.grid
        b, n = qkv.shape[0], rows * columns  # windows or images
        q, k, v = qkv.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (b, h, n, d)
        if self.rel_pos_h is None or self.rel_pos_w is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            on_grid = q.reshape(b, self.num_heads, rows, columns, -1)
            other = geometry is None  # a grid of any size
            rel_h = relative_logits_grid(on_grid, self.rel_pos_h, 0, other).flatten(2, 3)  # (b, h, n, rows)
            rel_w = relative_logits_grid(on_grid, self.rel_pos_w, 1, other).flatten(2, 3)
            out = attend(q, k, v, rel_h, rel_w, self.scale)
        out = out.transpose(1, 2).reshape(b, n, -1)
        if windowed:
            assert geometry is not None
            out = geometry.from_windows(out, x.shape[0])
        return self.proj(out.reshape(x.shape))

    def routed(self, x: Tensor, little: Tensor, selection: Selection, geometry: Geometry) -> Tensor:
        """Attention of the selected tokens.

        Args:
            x: normed big states of the selected tokens, (B, K, C) or (B, 1, K, C).
            little: normed little stream of all tokens, (B, N, C_E).
            selection: which K tokens these are.

        Returns:
            of the shape of x
        """
        (batch, num_selected), dim = selection.indices.shape, x.shape[-1]
        padding = padded_place(self.qkv, x, geometry)
        qkv = self.qkv(x).reshape(batch, num_selected, 3 * dim)
        q, kv_big = qkv.split([dim, 2 * dim], dim=-1)
        kv = self.kv_little(little).flatten(0, 1)  # (B * N, 2C)
        # In place: the product that made `kv` does not need it for its gradient.
        kv = kv.index_copy_(0, selection.flat, kv_big.reshape(-1, 2 * dim).to(kv.dtype))
        kv = kv.view(batch, -1, 2 * dim)
        if self.window:
            out = self._windowed(q, kv, padding[dim:], selection, geometry)
        else:
            q = self._heads(q)
            k, v = self._heads(kv[..., :dim]), self._heads(kv[..., dim:])
            if self.rel_pos_h is None or self.rel_pos_w is None:
                out = F.scaled_dot_product_attention(q, k, v)
            else:
                rel_h = relative_logits(q, self.rel_pos_h, selection.rows, geometry.grid[0])
                rel_w = relative_logits(q, self.rel_pos_w, selection.columns, geometry.grid[1])
                out = attend(q, k, v, rel_h, rel_w, self.scale)
            out = out.transpose(1, 2)
        return self.proj(out.reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """(b, n, C) -> (b, h, n, d)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _windowed(self, q: Tensor, kv: Tensor, padding: Tensor, selection: Selection, geometry: Geometry) -> Tensor:
        """q (B, K, C), kv (B, N, 2C) and padding (2C,) -> (B, K, C)"""
        # Buckets have other shapes for every image: no graph of them can be used again.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not torch.is_grad_enabled() and q.device.type == "cpu" and not traced:
            return self._in_buckets(q, kv, padding, selection)
        windows = geometry.to_windows(kv, padding)  # (B * windows, w * w, 2C)
        return self._in_blocks(q, windows, selection, geometry)

    def _in_blocks(self, q: Tensor, windows: Tensor, selection: Selection, geometry: Geometry) -> Tensor:
        """All windows in one batch, as blocks of queries that share a window: for autograd and for CUDA."""
        assert self.rel_pos_h is not None and self.rel_pos_w is not None  # windows have them
        batch, _, dim = q.shape
        blocks = selection.blocks
        num_blocks, size = blocks.window.shape[1], blocks.size
        offset = torch.arange(batch, device=q.device)[:, None] * geometry.num_windows
        kv = windows.index_select(0, (blocks.window + offset).flatten())  # (B * blocks, w * w, 2C)
        q = F.pad(q, (0, 0, 0, 1))  # row K stands for the unused slots
        q = q.gather(1, blocks.source[..., None].expand(-1, -1, dim))  # (B, blocks * size, C)
        q = self._heads(q.view(batch * num_blocks, size, dim))
        k, v = self._heads(kv[..., :dim]), self._heads(kv[..., dim:])
        rel_h = relative_logits(q, self.rel_pos_h, blocks.rows.view(-1, size), self.window)
        rel_w = relative_logits(q, self.rel_pos_w, blocks.columns.view(-1, size), self.window)
        out = attend(q, k, v, rel_h, rel_w, self.scale)  # (B * blocks, h, size, d)
        out = out.transpose(1, 2).reshape(batch, num_blocks * size, dim)
        return out.gather(1, blocks.slot[..., None].expand(-1, -1, dim))

    def _in_buckets(self, q: Tensor, kv: Tensor, padding: Tensor, selection: Selection) -> Tensor:
        """Windows with similar numbers of queries together, keys and values gathered once: for inference on CPU."""
        assert self.rel_pos_h is not None and self.rel_pos_w is not None  # windows have them
        batch, num_selected, dim = q.shape
        q, kv = q.reshape(-1, dim), kv.flatten(0, 1)
        out = q.new_empty(len(q) + 1, dim)  # the last row takes the unused slots
        for bucket in selection.buckets:
            num_windows = len(bucket.source) // bucket.size
            own_q = self._heads(q.index_select(0, bucket.source)[None])  # (1, h, W * size, d)
            rel_h = relative_logits(own_q, self.rel_pos_h, bucket.rows[None], self.window)
            rel_w = relative_logits(own_q, self.rel_pos_w, bucket.columns[None], self.window)
            own_kv = kv.index_select(0, bucket.keys)  # (W * w * w, 2C)
            own_kv[bucket.padding] = padding.to(kv.dtype)
            k, v = own_kv.view(num_windows, -1, 2, self.num_heads, dim // self.num_heads).permute(2, 3, 0, 1, 4)
            own_q, rel_h, rel_w = (x[0].unflatten(1, (num_windows, -1)) for x in (own_q, rel_h, rel_w))
            attended = attend(own_q, k, v, rel_h, rel_w, self.scale)  # (h, W, size, d)
            out.index_copy_(0, bucket.target, attended.permute(1, 2, 0, 3).reshape(-1, dim))
        return out[:-1].view(batch, num_selected, dim)


class WindowAttention(nn.Module):
    """Plain multi-head attention inside windows, of the little stream. Padded positions of a window act as bias keys.

    Args:
        dim: little width C_E.
        num_heads: heads.
    """

    rescalable = True  # see `fast.rescale`

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E); `geometry` holds the little windows."""
        qkv = self.qkv(x)  # (B, N, 3 C_E)
        qkv = geometry.to_windows(qkv, padded_place(self.qkv, x, geometry))  # (B * windows, w * w, 3 C_E)
        b, n, _ = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.proj(geometry.from_windows(out, x.shape[0]))
