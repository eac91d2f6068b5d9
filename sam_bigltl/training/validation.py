"""Figures of a model in training."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from segment_anything.modeling import Sam
from torch import Tensor

from ..data.coco import check_image_files, read_coco
from ..errors import InputError
from ..evaluation.runner import Plan, evaluate, summary_rows
from ..predict.predictor import SamPredictor


class Validation:
    """Protocol A on evenly spaced images, at each keep ratio, with given weights.

    Args:
        sam: the model in training; a copy of it is evaluated.
        annotations, folder: COCO-format masks and the folder of their images.
        count: images.
        ignore_exif: see `load_coco`.

    Attributes:
        usage: of the annotations, those of images that are not among the `count` included.
    """

    def __init__(
        self, sam: Sam, annotations: Path, folder: Path, count: int, keep_ratios: tuple[float, ...],
        ignore_exif: bool = False,
    ) -> None:  # fmt: skip
        images, usage = read_coco(annotations, folder=folder, ignore_exif=ignore_exif)
        chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
        self.images = [images[index] for index in chosen]
        self.usage = usage.of(self.images, "of images beyond --val-images")
        check_image_files(self.images, folder)
        self.folder = folder
        self.sam = copy.deepcopy(sam).eval()
        self.keep_ratios = sorted(set(keep_ratios), reverse=True)

    def __call__(self, weights: dict[str, Tensor]) -> list[dict]:
        """Rows with keep_ratio, prompt, clicks and mIoU in percent."""
        self.sam.load_state_dict(weights)
        plan = Plan(keep_ratios=tuple(self.keep_ratios), prompts=("box", "point"), clicks=(1,))
        records = evaluate(SamPredictor(self.sam), self.images, self.folder, plan)
        unread = [record.error for record in records if record.error]
        if unread:
            raise InputError(unread[0])
        rows = summary_rows(records, plan)
        keys = ("keep_ratio", "prompt", "clicks", "all", "small", "medium", "large", "instances")
        return [{key: round(row[key], 3) if isinstance(row[key], float) else row[key] for key in keys} for row in rows]
