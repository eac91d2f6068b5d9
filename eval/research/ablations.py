"""Changes of the layers that the study measures: attention without the little stream, fusion, other E-blocks.

Each function changes a Sam in place; it trains and evaluates like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sam_bigltl.modeling.attention import SemiCrossAttention, WindowAttention
from sam_bigltl.modeling.routing import Geometry, Selection


# ---------------------------------------------------------------- attention and fusion
class SelectedOnlyAttention(SemiCrossAttention):
    """Self-attention among the selected tokens of a window or image: the little stream is not seen."""

    def routed(self, x: Tensor, little: Tensor, selection: Selection, geometry: Geometry) -> Tensor:
        """x (B, K, C) -> (B, K, C)"""
        batch, count, _ = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.num_heads, -1)
        if self.window and not torch.is_grad_enabled():
            out = SelectedOnlyAttention._in_windows(self, qkv, selection)
        else:
            mask = None
            if self.window:
                window = geometry.token_window[selection.indices]
                mask = (window[:, :, None] != window[:, None, :])[:, None]
            out = _among(self, qkv.permute(2, 0, 3, 1, 4), selection.rows, selection.columns, mask).transpose(1, 2)
        return self.proj(out.reshape(x.shape))

    def _in_windows(self, qkv: Tensor, selection: Selection) -> Tensor:
        """qkv (B, K, 3, h, d) -> (B, K, h, d), window by window: for inference, where time counts."""
        batch, count, _, heads, width = qkv.shape
        rows = qkv.reshape(batch * count, 3, heads, width)
        out = rows.new_empty(len(rows) + 1, heads, width)  # the last row takes the unused slots
        for bucket in selection.buckets:
            own = rows.index_select(0, bucket.source).view(-1, bucket.size, 3, heads, width).permute(2, 0, 3, 1, 4)
            unused = (bucket.target == len(rows)).view(-1, 1, 1, bucket.size)
            lines = (each.view(-1, bucket.size) for each in (bucket.rows, bucket.columns))
            found = _among(self, own, *lines, unused).transpose(1, 2)
            out.index_copy_(0, bucket.target, found.reshape(-1, heads, width))
        return out[:-1].view(batch, count, heads, width)


def _among(attention: SemiCrossAttention, qkv: Tensor, rows: Tensor, columns: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention among tokens at rows and columns (b, n): qkv (3, b, h, n, d) -> (b, h, n, d).

    Args:
        hidden: keys that queries do not see, boolean, broadcast to (b, h, n, n).
    """
    q, k, v = qkv
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    for lines, table in ((rows, attention.rel_pos_h), (columns, attention.rel_pos_w)):
        lines = lines % attention.window if attention.window else lines
        size = (table.shape[0] + 1) // 2
        index = (lines[:, :, None] - lines[:, None, :]).clamp(1 - size, size - 1) + size - 1
        logits = logits + (q @ table.to(q.dtype).t()).gather(-1, index[:, None].expand(-1, q.shape[1], -1, -1))
    if hidden is not None:
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(dim=-1).to(v.dtype) @ v


def attend_to_selected_only(sam: Sam) -> None:
    """Take the little stream out of the big path's keys and values."""
    for block in sam.image_encoder.blocks:
        block.attn.__class__ = SelectedOnlyAttention


def without_fusion(sam: Sam) -> None:
    """Take the little stream out of the big path's residual: gamma is 0 and stays so."""
    for block in sam.image_encoder.blocks:
        with torch.no_grad():
            block.gamma.zero_()
        block.gamma.requires_grad_(False)


# ---------------------------------------------------------------- other E-blocks
class DepthwiseMixer(nn.Module):
    """A depthwise convolution in the place of an E-block's attention.

    Args:
        dim: little width C_E.
        kernel: side of the kernel, odd.
    """

    def __init__(self, dim: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E)"""
        x = self.conv(x.transpose(1, 2).unflatten(2, geometry.grid))
        return self.proj(x.flatten(2).transpose(1, 2))


class GlobalMixer(WindowAttention):
    """Attention of every token to the means of all windows, in the place of an E-block's attention."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E)"""
        batch, count, dim = x.shape
        size = torch.bincount(geometry.token_window, minlength=geometry.num_windows).to(x.dtype)
        means = x.new_zeros(batch, geometry.num_windows, dim).index_add(1, geometry.token_window, x) / size[:, None]
        q = self.qkv(x)[..., :dim]
        k, v = self.qkv(means)[..., dim:].chunk(2, dim=-1)
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, count, dim))


class NoBlock(nn.Module):
    """An E-block that does nothing."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E), returned as it is."""
        return x


def convolve(sam: Sam, kernel: int = 5) -> None:
    """Let E-blocks mix tokens by a depthwise convolution, which adds nothing at first, as their attention does not."""
    _mix_by(sam, lambda dim, _: DepthwiseMixer(dim, kernel))


def mix_globally(sam: Sam) -> None:
    """Let E-blocks attend to the means of all windows, which adds nothing at first."""
    _mix_by(sam, GlobalMixer)


def _mix_by(sam: Sam, make: Callable[[int, int], nn.Module]) -> None:
    """Put `make(little width, heads)`, whose projection adds nothing at first, into every E-block."""
    for block in sam.image_encoder.little_blocks:
        block.attn = make(sam.image_encoder.config.little_dim, block.attn.num_heads)
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)


def without_little_blocks(sam: Sam) -> None:
    """Leave the little stream as `down` makes it at the start of each group."""
    blocks = sam.image_encoder.little_blocks
    for layer in range(len(blocks)):
        blocks[layer] = NoBlock()
