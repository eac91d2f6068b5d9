"""Between the two streams: from C-wide tokens to the little stream, and back where tokens were not selected."""

from __future__ import annotations

from torch import Tensor, nn

from .kernels import Kernels, without_kernels
from .routing import Router, Selection


class Transition(nn.Module):
    """What one group of layers adds to the blocks: into the little stream, the router, and back to C-wide tokens.

    Args:
        dim, little_dim: widths C and C_E.
        enters: whether the little stream starts here; else it goes on from the group before, and there is no `down`.
    """

    def __init__(self, dim: int, little_dim: int, enters: bool = True) -> None:
        super().__init__()
        if enters:
            self.down = nn.Linear(dim, little_dim)
        self.router = Router(little_dim)
        self.up = nn.Linear(little_dim, dim)
        self.kernels = Kernels()

    def enter(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> little stream (B, N, C_E), of the dtype of x"""
        packed = self.kernels.transition(self, x)
        if packed is not None:
            return packed.down(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return without_kernels(self, lambda x, _: self.down(x), x, None) if self.kernels.dtype else self.down(x)

    def estimate(self, x: Tensor, little: Tensor) -> Tensor:
        """x (B, N, C) + the up-projection of the little stream, which a token keeps beside what big blocks of earlier
        stages gave it (measured in docs/design_notes.md)."""
        if self.kernels.dtype:
            return x + without_kernels(self, lambda x, _: self.up(x), little, None)
        return x + self.up(little)

    def leave(self, x: Tensor, little: Tensor, selected: Tensor, selection: Selection) -> Tensor:
        """`estimate` where tokens were not selected, `selected` (B, K, C) where they were; for inference."""
        packed = self.kernels.transition(self, x)
        if packed is None:
            return selection.scatter_(self.estimate(x, little), selected)
        rows = (
            x.flatten(0, 1),
            little.flatten(0, 1),
            selected.reshape(-1, x.shape[-1]),
            selection.flat,
            selection.rest,
        )
        return packed.up(*rows).view_as(x)
