"""The router in closed form: which tokens the little path serves worst."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .moments import Moments

_STEPS = 20  # of Newton's method, at most
_RIDGE = 1e-4  # of the curvature


def fit_router(score: nn.Linear, little: list[Tensor], errors: list[Tensor]) -> None:
    """Bring the router's softmax over an image as close as it can be to each token's share of the image's error.

    That is the least cross-entropy, which is convex: Newton's method, from the regression of the log of the error.

    Args:
        score: C_E -> 1, without bias.
        little: of each image, (N, C_E).
        errors: of each image, (N,), not negative; 0 where a token must not count.
    """
    logs = Moments()
    for x, error in zip(little, errors):
        counts = error > 0
        if counts.any():
            inside, log = x[counts], error[counts].log()[:, None]
            logs.add(inside - inside.mean(dim=0), log - log.mean())
    if not logs.sums:  # nothing is wrong anywhere
        return
    solution = logs.solution()[0][:, 0]
    value, gradient, curvature = _entropy(solution, little, errors)
    for _ in range(_STEPS):
        ridge = torch.diag(curvature.diagonal() * _RIDGE + 1e-12)
        step = torch.linalg.solve(curvature + ridge, gradient)
        lengths = (0.5**halvings for halvings in range(10))
        tries = ((tried, _entropy(tried, little, errors)) for tried in (solution - length * step for length in lengths))
        better = next(((tried, found) for tried, found in tries if found[0] < value), None)
        if better is None:
            break
        gain = value - better[1][0]
        solution, (value, gradient, curvature) = better
        if gain < 1e-7 * abs(value):
            break
    score.weight.copy_(solution[None])


def _entropy(solution: Tensor, little: list[Tensor], errors: list[Tensor]) -> tuple[float, Tensor, Tensor]:
    """Mean cross-entropy over the images, its gradient (C_E,) and its second derivative (C_E, C_E)."""
    value, gradient = 0.0, torch.zeros_like(solution)
    curvature = torch.zeros(len(solution), len(solution), dtype=solution.dtype, device=solution.device)
    for x, error in zip(little, errors):
        x, share = x.double(), error.double()
        share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        log = (x @ solution).log_softmax(dim=0)
        guess = log.exp()
        mean = guess @ x
        value -= float(share @ log)
        gradient += x.T @ (guess - share)
        curvature += (x * guess[:, None]).T @ x - torch.outer(mean, mean)
    count = len(little)
    return value / count, gradient / count, curvature / count
