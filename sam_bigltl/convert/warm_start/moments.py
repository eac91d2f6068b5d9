"""Least squares from sums, so that no regression has to hold its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1e-4  # of each feature's variance


class Moments:
    """Sums for regressing y on x with an intercept, in float64.

    Args:
        ridge: penalty on the weights of x, each feature scaled to unit variance. Residual streams have channels that
            are hundreds of times larger than the rest: a penalty that is the same for all would leave the small ones
            out.
    """

    def __init__(self, ridge: float = RIDGE) -> None:
        self.ridge = ridge
        self.weight = 0.0
        self.sums: list[Tensor] = []  # of x, y, x x^T and x y^T

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """x (n, p), y (n, q), and the weight of each row (n,); None weighs all 1."""
        x, y = x.double(), y.double()
        weighted = x if weight is None else x * weight.double()[:, None]
        sum_y = y.sum(0) if weight is None else weight.double() @ y
        sums = [weighted.sum(0), sum_y, weighted.T @ x, weighted.T @ y]
        if self.sums:
            for old, new in zip(self.sums, sums):
                old += new
        else:
            self.sums = sums
        self.weight += len(x) if weight is None else float(weight.sum())

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x (p,) and y (q,), covariances xx (p, p) with the ridge and xy (p, q)."""
        mean_x, mean_y, xx, xy = (total / self.weight for total in self.sums)
        xx = xx - torch.outer(mean_x, mean_x)
        variance = xx.diagonal().clamp(min=0)
        # A feature that never changes has no variance to scale with.
        floor = (variance + mean_x.square()).clamp(min=torch.finfo(xx.dtype).tiny) * 1e-12
        xx = xx + torch.diag(self.ridge * variance + floor)
        return mean_x, mean_y, xx, xy - torch.outer(mean_x, mean_y)

    def solution(self) -> tuple[Tensor, Tensor]:
        """Coefficients (p, q) and intercept (q,)."""
        mean_x, mean_y, xx, xy = self.centred()
        scale = xx.diagonal().sqrt()
        weight = torch.linalg.solve(xx / torch.outer(scale, scale), xy / scale[:, None]) / scale[:, None]
        return weight, mean_y - mean_x @ weight

    def solve(self, layer: nn.Linear) -> None:
        """Make `layer` the regression."""
        weight, bias = self.solution()
        layer.weight.copy_(weight.T)
        if layer.bias is not None:
            layer.bias.copy_(bias)
