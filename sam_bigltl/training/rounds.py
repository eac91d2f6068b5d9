"""Corrective rounds: the next click falls into the error of the predicted mask, and the mask goes back in.

That is how SAM learned: section 3 and appendix A of "Segment Anything" (arXiv 2304.02643). All rounds of a step share
the image embedding.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..modeling.decode import BACKGROUND, FOREGROUND, NOT_A_POINT, decode, embed_prompts
from .losses import MASK_STRIDE

# What a round adds to the prompts before it: a click, a click and the mask of the last round, or that mask alone.
CLICK, CLICK_AND_MASK, MASK = 0, 1, 2
_SHARES = (0.4, 0.45, 0.15)
_STOP = 0.4  # chance that a round is the last
_CENTRES = (
    0.5  # share of clicks at the centre of the error, where evaluation's clicker goes; SAM draws all from anywhere
)


def draw_rounds(most: int, prompts: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rounds after the first one of a step: up to `most` - 1 of them.

    Returns:
        rounds (R,) of the codes above; noise (R, prompts, 2) uniform in [0, 1), from which the clicks are chosen.
    """
    count = min(most, int(rng.geometric(_STOP))) - 1
    kinds = rng.choice(len(_SHARES), size=count, p=_SHARES)
    return {"rounds": kinds.astype(np.int64), "noise": rng.random((count, prompts, 2), dtype=np.float32)}


def decode_with_masks(
    sam: Sam, embeddings: Tensor, position: Tensor, coords: Tensor, labels: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks of prompts some of which hold a mask.

    Args:
        embeddings, position: (B, C, gh, gw). coords: (B, P, T, 2) in the frame; labels: (B, P, T).
        masks: logits (B, P, 4 gh, 4 gw) as mask inputs of all prompts, or None.

    Returns:
        logits (B, P, 4, 4 gh, 4 gw) and predicted IoU (B, P, 4).
    """
    encoder = sam.prompt_encoder
    sparse = embed_prompts(encoder, coords, labels)
    if masks is None:
        return decode(sam.mask_decoder, encoder, embeddings, position, sparse)
    batch, prompts = labels.shape[:2]
    dense = encoder.mask_downscaling(masks.flatten(0, 1)[:, None])  # (B * P, C, gh, gw)
    embeddings, position = (x.repeat_interleave(prompts, dim=0) for x in (embeddings, position))
    sparse = sparse.flatten(0, 1)[:, None]
    logits, iou_pred = decode(sam.mask_decoder, encoder, embeddings, position, sparse, dense=dense)
    return logits.squeeze(1).unflatten(0, (batch, prompts)), iou_pred.squeeze(1).unflatten(0, (batch, prompts))


@torch.no_grad()
def best_masks(logits: Tensor, iou_pred: Tensor) -> Tensor:
    """Of the three outputs for ambiguous prompts the one of highest predicted IoU: (B, P, 4, h, w) -> (B, P, h, w)."""
    return outputs_at(logits.detach(), iou_pred[..., 1:].argmax(dim=-1) + 1)


def outputs_at(logits: Tensor, index: Tensor) -> Tensor:
    """One output of each prompt: logits (B, P, 4, h, w), index (B, P) -> (B, P, h, w)."""
    pick = index[..., None, None, None].expand(*index.shape, 1, *logits.shape[-2:])
    return logits.gather(2, pick).squeeze(2)


@torch.no_grad()
def next_clicks(masks: Tensor, target: Tensor, valid: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A click into the error of each mask.

    Args:
        masks: logits (B, P, h, w); target: share of each mask pixel that the object covers, (B, P, h, w) in [0, 1].
        valid: (B, gh, gw), the tokens that show the photograph.
        noise: (P, 2) in [0, 1).

    Returns:
        x, y in pixels of the crop (B, P, 2), and labels (B, P): NOT_A_POINT where mask and target agree everywhere.
    """
    scale = masks.shape[-1] // valid.shape[-1]
    inside = valid.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)[:, None]
    found, wanted = masks > 0, target > 0.5
    missed = (wanted & ~found & inside).flatten(0, 1).cpu().numpy()
    extra = (found & ~wanted & inside).flatten(0, 1).cpu().numpy()
    chances = noise.cpu().numpy()
    clicks = [_click(missed[i], extra[i], chances[i % len(chances)]) for i in range(len(missed))]
    xy = torch.tensor([click[:2] for click in clicks], dtype=torch.float32, device=masks.device)
    labels = torch.tensor([click[2] for click in clicks], device=masks.device)
    # The middle pixel of a mask pixel: `embed_prompts` adds the half pixel.
    xy = xy * MASK_STRIDE + (MASK_STRIDE - 1) / 2
    return xy.unflatten(0, masks.shape[:2]), labels.unflatten(0, masks.shape[:2])


def _click(missed: np.ndarray, extra: np.ndarray, noise: np.ndarray) -> tuple[int, int, int]:
    """x, y in mask pixels and the label."""
    if noise[0] < _CENTRES:
        of_missed, of_extra = _depth(missed), _depth(extra)
        label = FOREGROUND if of_missed.max() >= of_extra.max() else BACKGROUND
        depth = of_missed if label == FOREGROUND else of_extra
        place = int(depth.argmax()) if depth.max() > 0 else -1
    else:
        places = np.flatnonzero(missed | extra)
        place = int(places[int(noise[1] * len(places))]) if len(places) else -1
        label = FOREGROUND if place >= 0 and missed.flat[place] else BACKGROUND
    if place < 0:
        return 0, 0, NOT_A_POINT
    return place % missed.shape[1], place // missed.shape[1], label


def _depth(region: np.ndarray) -> np.ndarray:
    """Distance of every pixel of `region` to its outside, that of the picture included."""
    return cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
