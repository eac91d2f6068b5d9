"""Depthwise convolution kernels rounded to bfloat16 so that each keeps its sum.

Neighbouring pixels are nearly alike, so what rounding does to an image is mostly what it does to a kernel's sum: each
weight goes to one of the two values beside it, the nearest except where the sum wants another one. In a stem whose
first layers are depthwise, that is most of what bfloat16 costs. It takes no time: the weights are bfloat16 either way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def round_kernels(module: nn.Module) -> None:
    """Make the float32 weights of depthwise convolutions inside `module` values of bfloat16, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.weight[0].numel() > 1:
            if layer.weight.dtype == torch.float32:
                layer.weight.copy_(with_their_sum(layer.weight.flatten(1)).view_as(layer.weight))


def with_their_sum(weights: Tensor) -> Tensor:
    """Rows of weights (n, k) -> float32 values that bfloat16 holds, whose sums are near those of `weights`."""
    rounded = weights.bfloat16().float()
    other = _neighbour(rounded, towards=weights)  # on the other side of the weight
    for _ in range(weights.shape[1]):
        missing = (weights - rounded).sum(dim=1, keepdim=True)
        gain = missing.abs() - (missing - (other - rounded)).abs()
        best = gain.argmax(dim=1, keepdim=True)
        better = gain.gather(1, best) > 0
        if not better.any():
            break
        swap = better & (torch.arange(weights.shape[1], device=weights.device) == best)
        rounded, other = torch.where(swap, other, rounded), torch.where(swap, rounded, other)
    return rounded


def _neighbour(rounded: Tensor, towards: Tensor) -> Tensor:
    """The next value of bfloat16 on the side of `towards`; the value itself where that is equal."""
    limit = torch.where(towards > rounded, torch.inf, -torch.inf).bfloat16()
    return torch.where(towards == rounded, rounded, torch.nextafter(rounded.bfloat16(), limit).float())
