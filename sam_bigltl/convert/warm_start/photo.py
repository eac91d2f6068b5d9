"""Where the photograph is in the square frame that the encoder gets."""

from __future__ import annotations

import torch
from torch import Tensor


def photo_tokens(image: Tensor, patch: int) -> Tensor:
    """The tokens that hold a part of the photograph, boolean (gh, gw); all, where the frame is empty.

    Args:
        image: preprocessed, (1, 3, S, S), with zeros at the right and below as `Sam.preprocess` adds them.
        patch: side of a token, pixels.
    """
    filled = (image[0] != 0).any(dim=0)  # (S, S)
    lines = [filled.any(dim=axis).nonzero() for axis in (1, 0)]
    rows, columns = (int(line.max()) // patch + 1 if len(line) else 0 for line in lines)
    tokens = torch.zeros(filled.shape[0] // patch, filled.shape[1] // patch, dtype=torch.bool, device=image.device)
    tokens[:rows, :columns] = True
    return tokens if rows and columns else ~tokens
