"""A mask at the photograph's own size, in memory that does not grow with its pixels.

`SamPredictor.predict` brings the logits of all masks to that size at once: 60 megapixels are 720 MB of float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from .rle import Rle, RunLengths

_STRIPE = 2**20  # pixels that are computed at once


@torch.no_grad()
def full_size_mask(
    low_res: torch.Tensor, side: int, input_size: tuple[int, int], size: tuple[int, int], threshold: float = 0.0
) -> Rle:
    """What `Sam.postprocess_masks` and the threshold make of the logits of one mask.

    SAM's two interpolations treat rows and columns apart, so that the columns can be done first and the rows for a few
    columns at a time. Such stripes also follow one another in COCO's RLE, which runs down the columns. Where no logit
    of a stripe is above the threshold no mixture of them is, and nothing is computed.

    Args:
        low_res: (h, w).
        side: of the model's frame, to which the logits are brought first.
        input_size: (H, W) of the photograph in it.
        size: (H, W) of the photograph.
    """
    height, width = size
    frame = F.interpolate(low_res.float().cpu()[None, None], (side, side), mode="bilinear", align_corners=False)
    frame = frame[..., : input_size[0], : input_size[1]]
    wide = F.interpolate(frame, (input_size[0], width), mode="bilinear", align_corners=False)
    runs = RunLengths()
    step = max(1, _STRIPE // height)
    for left in range(0, width, step):
        stripe = wide[..., left : left + step]
        columns = stripe.shape[-1]
        if not bool((stripe > threshold).any()):
            runs.add_zeros(height * columns)
            continue
        logits = F.interpolate(stripe, (height, columns), mode="bilinear", align_corners=False)[0, 0]
        runs.add(np.ascontiguousarray((logits > threshold).numpy().T).ravel())
    return runs.rle(height, width)
