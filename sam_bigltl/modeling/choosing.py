"""Which tokens are chosen: the router that scores them, and the two ways to choose by its scores."""

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


def dither_order(grid: tuple[int, int], device: torch.device | str) -> Tensor:
    """The place of each token in the order of ordered dithering (Bayer's matrix), (N,), all different.

    Any run of that order is spread evenly: a quarter of all tokens is every second one of every second row.
    """
    matrix = torch.zeros(1, 1, dtype=torch.long, device=device)
    while len(matrix) < max(grid):
        above, below = (4 * matrix, 4 * matrix + 2), (4 * matrix + 3, 4 * matrix + 1)
        matrix = torch.cat([torch.cat(above, dim=1), torch.cat(below, dim=1)])
    return matrix[: grid[0], : grid[1]].flatten().argsort().argsort()


LEAST = 0.1  # importance, in units of the mean, under which a token waits until all others had a turn


def tokens_in_turn(scores: Tensor, count: int, turn: int, order: Tensor) -> Tensor:
    """`count` tokens of each row for the selection number `turn`, as ascending indices: (B, N) -> (B, count).

    Each selection takes the next ones of `order`, so that all have been selected before any is again. Tokens of hardly
    any importance, as the padding beside a photograph is, come last.

    Args:
        scores: importance, (B, N), summing to 1.
        order: place of each token, (N,), all different.
    """
    tokens = int(scores.shape[1])
    waits = scores * tokens < LEAST
    queue = stable_order((order + tokens * waits).float())  # (B, N); float32 holds these whole numbers
    others = (tokens - waits.sum(dim=1, keepdim=True)).clamp(min=1)
    place = torch.arange(count, device=scores.device).expand(len(scores), -1)
    place = torch.where(place < others, (place + turn * count) % others, place)
    return queue.gather(1, place).sort(dim=1).values


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
