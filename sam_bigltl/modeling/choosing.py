"""Which tokens are chosen: the router that scores them, the best of them, and the gate that teaches the router."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def stable_order(x: Tensor, descending: bool = False) -> Tensor:
    """Indices that sort each row, equal values by index: (B, n) -> (B, n)."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # the old exporter has no stable sort; TopK is one
        return x.topk(int(x.shape[1]), dim=1, largest=descending).indices
    return x.sort(dim=1, descending=descending, stable=True).indices


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """The `count` highest scores of each row, equal scores by index, as ascending indices: (B, N) -> (B, count)."""
    order = stable_order(scores, descending=True)
    return order[:, :count].sort(dim=1).values


class Router(nn.Module):
    """Importance of every token: softmax over the image of a linear layer on the little stream.

    Args:
        little_dim: C_E.
    """

    def __init__(self, little_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(little_dim, 1, bias=False)  # a bias would not change a softmax

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N), computed in float32 under autocast too: in bfloat16 tokens would tie."""
        if type(self.score) is nn.Linear:
            logits = (little.float() * self.score.weight.float()).sum(dim=-1)
        else:  # a client's
            logits = self.score(little).float().squeeze(-1)
        return logits.softmax(dim=1)


def straight_through_gate(scores: Tensor, indices: Tensor) -> Tensor:
    """A gate of value 1 whose gradient reaches the router, (B, K, 1).

    It is the logarithm of the score that the gradient sees: its slope is 1 in the router's logit, whatever the score. A
    gate on the score itself feeds back: the more important a token, the steeper, until the gradient explodes (measured
    in docs/design_notes.md).
    """
    chosen = scores.gather(1, indices).clamp(min=torch.finfo(scores.dtype).tiny).log()
    return (1 + (chosen - chosen.detach()))[..., None]
