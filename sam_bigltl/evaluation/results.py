"""What an evaluation measures of one instance."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class InstanceResult:
    """One instance under one setting.

    Attributes:
        area: the annotation's own, square pixels.
        keep_ratio: of the encoder, or "auto".
        prompt: "box" or "point".
        clicks: points given so far; 0 for a box alone, and after a box the number of corrective points.
        iou, predicted_iou: fractions.
        counts: the predicted mask as compressed RLE (`counts` of COCO's format) at the image's own size.
    """

    image_id: int | str
    annotation_id: int | str
    area: float
    keep_ratio: float | str
    prompt: str
    clicks: int
    iou: float
    predicted_iou: float
    counts: str = field(repr=False, default="")
