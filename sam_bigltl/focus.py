"""Prompt-aware routing: tokens in and around boxes that will be prompted count for more in the selection."""

from __future__ import annotations

import torch
from torch import Tensor

# Measured in docs/design_notes.md, "Prompt-aware routing".
WEIGHT = 8.0
MARGIN = 0.1


def box_weights(
    boxes: Tensor, grid: tuple[int, int], patch: int, weight: float = WEIGHT, margin: float = MARGIN
) -> Tensor:
    """Factors on the importance of tokens.

    Args:
        boxes: x0, y0, x1, y1 in pixels of the encoder's input, (n, 4); none leaves everything at 1.
        grid: (rows, columns) of tokens of `patch` pixels a side.
        weight: of a token that a box touches, against 1 elsewhere.
        margin: by which boxes grow on every side, as a share of their width and height.

    Returns:
        (rows, columns) float32 on the device of `boxes`.
    """
    rows, columns = (torch.arange(size, device=boxes.device) * patch for size in grid)  # where each token starts
    more = margin * (boxes[:, 2:] - boxes[:, :2])
    low, high = boxes[:, :2] - more, boxes[:, 2:] + more  # (n, 2) each, x and y
    across = (columns < high[:, :1]) & (columns + patch > low[:, :1])  # (n, columns)
    down = (rows < high[:, 1:]) & (rows + patch > low[:, 1:])  # (n, rows)
    touched = (down[:, :, None] & across[:, None]).any(dim=0)
    return torch.where(touched, weight, 1.0)
