"""Prompt-aware routing: tokens in and around boxes that will be prompted count for more in the selection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.encoder import BigLittleEncoder
from .prompt_checks import check_box
from .resize import ResizeLongestSideFloat32

# From 3 to a million, and from 0 to 0.25, they do the same (docs/design_notes.md, "Prompt-aware routing").
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


def focus_on(boxes: Sequence, sizes: Sequence[tuple[int, int]], encoder: nn.Module) -> Tensor:
    """The `focus` of the encoder for a batch of images: factors on the importance of tokens, (B, N).

    Args:
        boxes: of every image, (n, 4) each, in its pixels. sizes: (H, W) of every image.

    Raises:
        InputError: an encoder that does not route, or boxes that cannot be used.
    """
    if not isinstance(encoder, BigLittleEncoder) or encoder.is_dense:
        raise InputError("this encoder computes every token: leave boxes out of set_image")
    if len(boxes) != len(sizes):
        raise InputError(f"boxes are needed for each of the {len(sizes)} images, but {len(boxes)} are given")
    transform = ResizeLongestSideFloat32(encoder.img_size)
    grid, patch, weights = (encoder.config.side, encoder.config.side), encoder.config.patch_size, []
    for own, size in zip(boxes, sizes):
        checked = np.stack([check_box(box, size) for box in own]) if len(own) else np.zeros((0, 4))
        frame = torch.as_tensor(transform.apply_boxes(checked, size)).to(torch.float32)
        weights.append(box_weights(frame, grid, patch).flatten())
    return torch.stack(weights).to(encoder.pos_embed.device)
