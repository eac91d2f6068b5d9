"""E-blocks in closed form: hidden units of the teacher's MLP, seen through the little stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .moments import Moments

STEPS = 20  # of alternating least squares; 60 gave the same error


def teacher_units(little_block: Any, block: Any, moments: Moments) -> None:
    """Give an E-block's MLP the hidden units of the big block's that matter most.

    Args:
        little_block: the E-block; its `lin1` is set.
        block: the big block of the same layer.
        moments: of the big block's units before their activation, on the E-block's normed stream.
    """
    weight, bias = moments.solution()  # (C_E, 4C), (4C,)
    _, mean_y, xx, _ = moments.centred()
    spread = ((weight.T @ xx) * weight.T).sum(dim=1).clamp(min=0).sqrt()  # of what the stream tells of each unit
    points = mean_y[:, None] + spread[:, None] * torch.linspace(-2, 2, 9, dtype=spread.dtype, device=spread.device)
    mass = torch.linspace(-2, 2, 9, dtype=spread.dtype, device=spread.device).square().div(-2).softmax(dim=0)
    active = block.mlp.act(points.float()).double()
    mean = active @ mass
    # What is not linear in the unit: the linear part is in the stream already.
    centred, line = active - mean[:, None], (points - mean_y[:, None]) / spread.clamp(min=1e-12)[:, None]
    slope = (centred * line) @ mass / (line.square() @ mass).clamp(min=1e-12)
    bent = (centred - slope[:, None] * line).square() @ mass
    worth = bent.sqrt() * block.mlp.lin2.weight.double().norm(dim=0)
    lin1 = little_block.mlp.lin1
    chosen = worth.topk(min(lin1.out_features, len(worth))).indices
    lin1.weight[: len(chosen)].copy_(weight[:, chosen].T)
    lin1.bias[: len(chosen)].copy_(bias[chosen])


def fit_block(little_block: Any, states: list[Any], metric: Tensor, ridge: float) -> None:
    """Fit the second layer of an E-block's MLP to what the tokens lack, and move the little streams past the block.

    `up` is linear and comes later: both are found in turn, each by least squares, from the same sums.

    Args:
        states: with `little` (N, C_E), `lack` (N, C), `weight` (N,).
        metric: weight of each channel of the lack, (C,).
    """
    mlp, norm = little_block.mlp, little_block.norm2
    moments = Moments(ridge)
    for state in states:
        hidden = mlp.act(mlp.lin1(norm(state.little)))
        moments.add(torch.cat([state.little, hidden], dim=1), state.lack, state.weight)
    width = mlp.lin2.out_features
    mean, _, xx, xy = moments.centred()
    xy = xy * metric.double()
    scale = xx[width:, width:].diagonal().sqrt()
    little, cross = xx[:width, :width], xx[:width, width:] / scale
    inner = xx[width:, width:] / torch.outer(scale, scale)
    hidden_y = xy[width:] / scale[:, None]
    second = torch.zeros(len(scale), width, dtype=xx.dtype, device=xx.device)  # (hidden, C_E), scaled
    for _ in range(STEPS):
        half = cross @ second
        stream = little + half + half.T + second.T @ inner @ second  # covariance of the stream after the block
        stream = stream + torch.diag(stream.diagonal() * ridge)
        up = torch.linalg.solve(stream, xy[:width] + second.T @ hidden_y)  # (C_E, C)
        gram = up @ up.T
        gram = gram + torch.eye(width, dtype=gram.dtype, device=gram.device) * gram.diagonal().mean() * 1e-3
        wanted = torch.linalg.solve(gram, up @ (hidden_y - cross.T @ up).T)  # (C_E, hidden)
        second = torch.linalg.solve(inner, wanted.T)
    second = second / scale[:, None]
    mlp.lin2.weight.copy_(second.T)
    mlp.lin2.bias.copy_(-mean[width:] @ second)
    for state in states:
        state.little = state.little + mlp(norm(state.little))
