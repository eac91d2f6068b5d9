"""How sure everything mode must be of a mask, for the weights that are loaded.

SAM's thresholds (0.88 for the predicted IoU, 0.95 for the stability) suit SAM's published weights. Weights that saw
less are less sure of their masks, and honest about it: the best masks of the shipped ones have predicted IoUs of 0.5 to
0.9, from photograph to photograph. So the thresholds are found from what the weights say of a grid of points on some
photographs:

* predicted IoU: the upper quartile of all masks of the grid, of the photograph of which the weights are least sure;
* stability: the median of the masks that pass that, likewise.

Neither is above SAM's own. Sure weights keep SAM's thresholds, others let the better eighth of their masks through
where they are least sure, and more elsewhere; what is found twice goes in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid, calculate_stability_score

from .decoding import draw_masks
from .predictor import SamPredictor

SAMS = 0.88, 0.95  # predicted IoU, stability
_MEASURED = 8  # of the grid here: its 192 masks a photograph are enough, in half of the time
_AT_ONCE = 16


def find_thresholds(sam: Sam, images: Iterable[np.ndarray]) -> tuple[float, float]:
    """Predicted IoU and stability for these weights, from photographs (H, W, 3) uint8; SAM's own without any."""
    return thresholds(grid_scores(sam, image) for image in images)


def thresholds(scores: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Predicted IoU and stability, rounded down to hundredths, from those of all masks of each photograph (N,)."""
    found = list(scores)
    iou = min([SAMS[0], *(float(np.quantile(ious, 0.75)) for ious, _ in found)])
    passed = [stabilities[ious >= iou] for ious, stabilities in found]
    stability = min([SAMS[1], *(float(np.median(each)) for each in passed)])
    return _rounded(iou), _rounded(stability)


@torch.no_grad()
def grid_scores(sam: Sam, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted IoUs and stabilities of the masks of all points of a grid; the masks stay at the decoder's size."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    size = image.shape[:2]
    points = torch.as_tensor(predictor.transform.apply_coords(build_point_grid(_MEASURED) * size[::-1], size))
    ious, stabilities = [], []
    for part in points.to(predictor.device).split(_AT_ONCE):
        labels = torch.ones(len(part), 1, dtype=torch.int, device=part.device)
        found, kernels, iou = predictor.read_prompts((part[:, None], labels))
        logits = draw_masks(sam, found, kernels[:, 1:], predictor.features.shape[-2:]).float()
        ious.append(iou[:, 1:].float().flatten().cpu().numpy())
        stability = calculate_stability_score(logits.flatten(0, 1), sam.mask_threshold, 1.0)
        stabilities.append(stability.nan_to_num(0.0).cpu().numpy())  # where a mask is empty
    return np.concatenate(ious), np.concatenate(stabilities)


def _rounded(value: float) -> float:
    return max(0, math.floor(value * 100 + 1e-6)) / 100
