"""The router in closed form: which tokens the little path serves worst."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .moments import Moments


def fit_router(score: nn.Linear, little: list[Tensor], errors: list[Tensor], kind: str, weights: list[Tensor]) -> None:
    """Fit scores to the errors of tokens.

    "log" regresses the log of the error. "share" makes the softmax over an image, which is what the router is, as close
    as it can be to each token's share of the image's error (least cross-entropy, by Newton's method).

    Args:
        score: C_E -> 1, without bias.
        little: of each image, (N, C_E).
        errors: of each image, (N,), not negative; 0 where a token must not count.
        weights: of the tokens, (N,).
    """
    moments = Moments()
    for x, error, weight in zip(little, errors, weights):
        log = error.clamp(min=1e-12).log()[:, None]
        if kind == "log":
            moments.add(x, log, weight)
        else:
            inside = weight == 1
            moments.add(x[inside] - x[inside].mean(dim=0), log[inside] - log[inside].mean())
    moments.solve(score)
    if kind == "log":
        return
    solution = score.weight[0].double()
    value, gradient, curvature = _entropy(solution, little, errors)
    for _ in range(20):
        ridge = torch.diag(curvature.diagonal() * 1e-4 + 1e-12)
        step = torch.linalg.solve(curvature + ridge, gradient)
        length = 1.0
        while length > 1e-3:
            tried = solution - length * step
            found = _entropy(tried, little, errors)
            if found[0] < value:
                break
            length /= 2
        else:
            break
        gain = value - found[0]
        solution, (value, gradient, curvature) = tried, found
        if gain < 1e-6 * abs(value):
            break
    score.weight.copy_(solution[None])


def _entropy(solution: Tensor, little: list[Tensor], errors: list[Tensor]) -> tuple[float, Tensor, Tensor]:
    """Mean cross-entropy over the images, its gradient (C_E,) and its second derivative (C_E, C_E)."""
    value, gradient = 0.0, torch.zeros_like(solution)
    curvature = torch.zeros(len(solution), len(solution), dtype=solution.dtype, device=solution.device)
    for x, error in zip(little, errors):
        x, share = x.double(), error.double()
        share = share / share.sum().clamp(min=1e-300)
        logits = x @ solution
        log = logits.log_softmax(dim=0)
        value -= float(share @ log)
        guess = log.exp()
        gradient += x.T @ (guess - share)
        mean = guess @ x
        curvature += (x * guess[:, None]).T @ x - torch.outer(mean, mean)
    count = len(little)
    return value / count, gradient / count, curvature / count
