"""The three published ways to score promptable segmentation, as sets of ingredients.

Their numbers cannot be compared with each other (EfficientViT-SAM's 77.4 for SAM ViT-H on COCO boxes is not EdgeSAM's
77.3), so a result always names its protocol, and every ingredient can be changed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

MASK_SELECT = ("argmax", "first", "oracle")
BOXES = ("json", "tight")
CLICK_POLICIES = ("ritm", "centre-random", "random")


@dataclass(frozen=True)
class Protocol:
    """How one instance is prompted and scored.

    Attributes:
        name: "A", "B" or "C"; a changed ingredient does not change it, results list all of them.
        source: whose published evaluation it follows.
        mask_select: "argmax" (of three masks the one with the highest predicted IoU), "first" (the single mask
            output) or "oracle" (the one of three that fits best).
        box: "json" (the annotation's own) or "tight" (around its mask).
        click_policy: "ritm" (farthest point of the larger error), "centre-random" (centre of the mask, then random
            points of the error) or "random" (uniform points of the mask, whatever was predicted).
        crowds: whether crowd annotations are scored.
        min_area: annotations with less `area` are left out, square pixels.
        refine: numbers of corrective points after a box at which IoU is taken; 0 is the box alone.
        mask_feedback: whether each further prediction of an instance is given the logits of the one before.
        resampled_target: score against the mask brought into the model's frame and back, as EdgeSAM's code does.
        skip_empty: leave out an instance whose target and predicted mask are both empty, which otherwise counts 0.
    """

    name: str
    source: str
    mask_select: str
    box: str
    click_policy: str
    crowds: bool
    min_area: float = 1.0
    refine: tuple[int, ...] = (0,)
    mask_feedback: bool = False
    resampled_target: bool = False
    skip_empty: bool = False


PROTOCOLS = {
    "A": Protocol("A", "EfficientViT-SAM, arXiv 2402.05008", "argmax", "json", "ritm", crowds=True),
    # The published numbers are of the single mask; a box is followed by one and two random points of the error.
    "B": Protocol(
        "B", "EdgeSAM, arXiv 2312.06660", "first", "json", "centre-random", crowds=False, min_area=0.0,
        refine=(0, 1, 2), resampled_target=True, skip_empty=True,
    ),
    # No code was released: crowds, which the paper does not mention, are left out.
    "C": Protocol("C", "EfficientSAM, arXiv 2312.00863", "argmax", "tight", "random", crowds=False),
}  # fmt: skip
