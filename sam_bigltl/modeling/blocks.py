"""The two blocks of a big.LITTLE layer: the P-block on the selected tokens, the E-block on all of them."""

from __future__ import annotations

import torch
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from .attention import SemiCrossAttention, WindowAttention
from .routing import Geometry, Selection

GAMMA_INIT = 1e-4  # the paper's Algorithm 1


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, each image loses x with probability `rate`.

    Not torchvision's, whose usage counter breaks the graph of torch.compile.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, c), scaled so that its mean stays"""
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class PBlock(nn.Module):
    """SAM's encoder block, which can also run on selected tokens only.

    Args:
        dim: big width C.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over C.
        table_size, window: see `SemiCrossAttention`.
        little_dim: little width C_E; 0 for a dense model.
        drop_path: how often training skips what one half of the block adds, per image (stochastic depth).
    """

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
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SemiCrossAttention(dim, num_heads, table_size, window, little_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        if little_dim:
            self.norm_little = nn.LayerNorm(little_dim, eps=1e-6)
            self.up = nn.Linear(little_dim, dim)
            self.gamma = nn.Parameter(torch.full((dim,), GAMMA_INIT))

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """All tokens, x (B, N, C) -> (B, N, C): the block of the dense model."""
        x = x + self.drop_path(self.attn(self.norm1(x), geometry))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def routed(
        self, x: Tensor, little: Tensor, selection: Selection, geometry: Geometry, gate: Tensor | None
    ) -> Tensor:
        """Selected tokens, x (B, K, C) -> (B, K, C).

        Args:
            little: little stream of all tokens before this layer's E-block, (B, N, C_E).
            gate: factor on what the block adds, (B, K, 1), or None outside training.
        """
        added = self.drop_path(self.attn.routed(self.norm1(x), self.norm_little(little), selection, geometry))
        x = x + (added if gate is None else gate * added)
        x = x + self.gamma * self.up(selection.gather(little))
        added = self.drop_path(self.mlp(self.norm2(x)))
        return x + (added if gate is None else gate * added)


class EBlock(nn.Module):
    """A small pre-norm ViT block with windowed attention, on all tokens.

    Args:
        dim: little width C_E.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over C_E.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=round(dim * mlp_ratio))

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E); `geometry` holds the little windows."""
        x = x + self.attn(self.norm1(x), geometry)
        return x + self.mlp(self.norm2(x))
