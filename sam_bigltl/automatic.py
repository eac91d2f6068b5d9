"""SAM's automatic mask generator, on this package's predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData
from segment_anything.utils.transforms import ResizeLongestSide

from .errors import InputError
from .predictor import ResizeLongestSideFloat32, SamPredictor
from .prompt_checks import check_image


class _GridTransform(ResizeLongestSideFloat32):
    """Coordinates in float32 that give the embeddings that SAM's generator gets from float64."""

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        # SAM's generator sends float64 points, which MPS does not have. The prompt encoder adds half a pixel, divides
        # by the image size, then rounds. Rounded after that same half pixel, float32 points give the same embeddings to
        # the bit where the size is a power of two (1024), and to one rounding (6e-8) where it is not (448).
        exact = ResizeLongestSide.apply_coords(self, coords, original_size)
        return (exact + 0.5).astype(np.float32) - np.float32(0.5)


class SamAutomaticMaskGenerator(segment_anything.SamAutomaticMaskGenerator):
    """Masks of everything in an image, from a grid of points: `segment_anything`'s arguments, methods and results.

    It also runs in bfloat16 and on MPS.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        """See `segment_anything.SamAutomaticMaskGenerator`: the arguments and their defaults are its own."""
        if (points_per_side is None) == (point_grids is None):
            raise InputError("give exactly one of points_per_side and point_grids")
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise InputError(f"output_mode must be binary_mask, uncompressed_rle or coco_rle, not {output_mode!r}")
        super().__init__(
            model,
            points_per_side,
            points_per_batch,
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
            crop_n_layers,
            crop_nms_thresh,
            crop_overlap_ratio,
            crop_n_points_downscale_factor,
            point_grids,
            min_mask_region_area,
            output_mode,
        )
        self.predictor = SamPredictor(model)
        self.predictor.transform = _GridTransform(model.image_encoder.img_size)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Masks of everything in `image`, uint8 RGB (H, W, 3), as the list of records that SAM's generator returns.

        Raises InputError when `image` is not such an array.
        """
        check_image(image)
        return super().generate(image)

    def _process_crop(
        self, image: np.ndarray, crop_box: list[int], crop_layer_idx: int, orig_size: tuple[int, ...]
    ) -> MaskData:
        data = super()._process_crop(image, crop_box, crop_layer_idx, orig_size)
        if len(data["rles"]) == 0:  # SAM's tensor has lost its second dimension, which fails when no crop has masks
            data["crop_boxes"] = torch.zeros((0, 4), dtype=torch.int64)
        return data
