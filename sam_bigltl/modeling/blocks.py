"""The two blocks of a big.LITTLE layer: the P-block on the selected tokens, the E-block on all of them."""

from __future__ import annotations

import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn

from .attention import SemiCrossAttention, WindowAttention
from .calls import ALONE, Alone, Place, Routed, call, place_of_call
from .kernels import Kernels, without_kernels
from .layouts import all_tokens, selected_tokens
from .routing import Geometry, Selection

GAMMA_INIT = 1e-4  # the paper's Algorithm 1
LITTLE = ("norm_little", "up", "gamma")  # what a P-block has for the little stream, beside its attention's kv_little


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, each image loses x with probability `rate`.

    Not torchvision's, whose usage counter breaks the graph of torch.compile.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., c), scaled so that its mean stays; as it is where nothing before it learns"""
        frozen = torch.is_grad_enabled() and not x.requires_grad
        if not self.training or self.rate == 0.0 or frozen:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class PBlock(nn.Module):
    """SAM's encoder block, which can also run on selected tokens only.

    Called by hand, `block(x)` on (B, H, W, C), it is SAM's own. Where an attention was replaced, wrapped or hooked, or
    its `qkv` or `proj`, it gets what SAM gives it: windows (B * windows, w, w, C), padded ones included.

    Args:
        dim: big width C.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over C.
        table_size, window: see `SemiCrossAttention`.
        little_dim: little width C_E; 0 for a dense model.
        drop_path: how often training skips what one half of the block adds, per image (stochastic depth).
    """

    rescalable = True  # see `fast.rescale`

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        table_size: int,
        window: int,
        little_dim: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SemiCrossAttention(dim, num_heads, table_size, window, little_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=round(dim * mlp_ratio))
        self.kernels = Kernels()
        self.drop_path = DropPath(drop_path)
        if little_dim:
            self.norm_little = nn.LayerNorm(little_dim, eps=1e-6)
            self.up = nn.Linear(little_dim, dim)
            self.gamma = nn.Parameter(torch.full((dim,), GAMMA_INIT))

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        """Tokens to tokens.

        Args:
            x: all tokens of a grid (B, H, W, C); or, where `place` says so, selected ones (B, 1, K, C). A classifier's
                are (B, N, C) and (B, K, C).
            place: where they lie; None in a call by hand.

        Returns:
            of the shape of x.
        """
        place = place_of_call(self, place)
        return self._in_kernels(x, place) if self.kernels.dtype else self._in_torch(x, place)

    def _in_torch(self, x: Tensor, place: Place | None) -> Tensor:
        if isinstance(place, Routed):
            return self.routed(x, place.little, place.selection, place.geometry, place.gate)
        x = x + self.drop_path(self._attention(self.norm1(x), place))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _in_kernels(self, x: Tensor, place: Place | None) -> Tensor:
        """`forward` where C++ kernels are on, for tokens of any dtype; without them where they cannot compute it."""
        packed = None if place is None or isinstance(place, Alone) else self.kernels.packed(self, x, place)
        if packed is None:
            return without_kernels(self, self._in_torch, x, place)
        rows, whole = x.reshape(-1, x.shape[-1]), not self.window_size
        if isinstance(place, Geometry):
            return packed.dense(rows, all_tokens(place, len(x), whole)).view_as(x)
        assert isinstance(place, Routed)
        selection, little = place.selection, place.little.flatten(0, 1)
        layout = selected_tokens(selection, whole)
        return packed.routed(rows, layout, little, selection.flat, selection.rest).view_as(x)

    def _attention(self, x: Tensor, geometry: Geometry | Alone | None) -> Tensor:
        if isinstance(geometry, Geometry) and (not self.window_size or getattr(self.attn, "is_plain", False)):
            return call(self.attn, x, geometry, SemiCrossAttention)
        if not self.window_size:
            return call(self.attn, x, ALONE, SemiCrossAttention)
        windows, padded = window_partition(x, self.window_size)
        windows = call(self.attn, windows, ALONE, SemiCrossAttention)
        return window_unpartition(windows, self.window_size, padded, x.shape[1:3])

    def routed(
        self, x: Tensor, little: Tensor, selection: Selection, geometry: Geometry, gate: Tensor | None
    ) -> Tensor:
        """Selected tokens, x (B, K, C) or (B, 1, K, C) -> the same shape.

        Args:
            little: little stream of all tokens before this layer's E-block, (B, N, C_E).
            gate: factor on what the block adds, (B, K, 1), or None outside training.
        """
        place = Routed(self.norm_little(little), selection, geometry)
        if gate is not None:
            gate = gate.view(*x.shape[:-1], 1).to(x.dtype)  # it is 1 exactly: float32 would only widen the tokens
        added = self.drop_path(call(self.attn, self.norm1(x), place, SemiCrossAttention))
        x = x + (added if gate is None else gate * added)
        x = x + self.gamma * self.up(selection.gather(little).view(*x.shape[:-1], -1))
        added = self.drop_path(self.mlp(self.norm2(x)))
        return x + (added if gate is None else gate * added)


class EBlock(nn.Module):
    """A small pre-norm ViT block with windowed attention, on all tokens.

    Args:
        dim: little width C_E.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over C_E.
    """

    rescalable = True  # see `fast.rescale`

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=round(dim * mlp_ratio))
        self.kernels = Kernels()

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E); `geometry` holds the little windows."""
        if self.kernels.dtype:
            packed = self.kernels.packed(self, x, geometry)
            if packed is None:
                return without_kernels(self, self._in_torch, x, geometry)
            return packed.dense(x.flatten(0, 1), all_tokens(geometry, len(x), geometry.whole)).view_as(x)
        return self._in_torch(x, geometry)

    def _in_torch(self, x: Tensor, geometry: Geometry) -> Tensor:
        x = x + self.attn(self.norm1(x), geometry)
        return x + self.mlp(self.norm2(x))
