"""SAM's automatic mask generator, on this package's predictor, with the work of masks that are thrown away left out.

`segment_anything` draws three masks for every point, brings all of them to the image's size and then drops most. Here a
mask is drawn only where its predicted IoU passes, and a few at a time come to the image's size, to be measured and
compressed before the next ones.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    MaskData,
    batched_mask_to_box,
    calculate_stability_score,
    is_box_near_crop_edge,
    uncrop_masks,
)
from segment_anything.utils.transforms import ResizeLongestSide

from ..errors import InputError
from ..modeling import unchanged
from .decoding import draw_masks
from .predictor import SamPredictor
from .prompt_checks import check_image
from .resize import ResizeLongestSideFloat32

_PIXELS = 2**23  # of masks that are alive at the image's size at once
_PREDICTOR = {name: getattr(SamPredictor, name) for name in ("predict_torch", "read_prompts", "prompts_at_once")}


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

    It also runs in bfloat16 and on MPS. Memory is bounded by `points_per_batch` image embeddings and by a few masks.

    `predictor` may be replaced by any with the interface of `segment_anything.SamPredictor`. The work is SAM's own, in
    full, where it is, or where something of the model is no longer SAM's (see `SamPredictor`).
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
        """See `segment_anything.SamAutomaticMaskGenerator`: the arguments and their defaults are its own.

        Raises InputError, which names the argument, where they leave nothing to do.
        """
        if (points_per_side is None) == (point_grids is None):
            raise InputError("give exactly one of points_per_side and point_grids")
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise InputError(f"output_mode must be binary_mask, uncompressed_rle or coco_rle, not {output_mode!r}")
        _check_integer("points_per_batch", points_per_batch, 1)
        _check_integer("crop_n_layers", crop_n_layers, 0)
        if not 0 <= crop_overlap_ratio <= 1:
            raise InputError(f"crop_overlap_ratio is in [0, 1], not {crop_overlap_ratio}")
        if point_grids is None:
            _check_points_per_side(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        else:
            _check_grids(point_grids, crop_n_layers)
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
        """Masks of everything in `image`, RGB (H, W, 3), as the list of records that SAM's generator returns.

        Raises InputError when `image` is no array of uint8, nor of floats in [0, 1].
        """
        check_image(image, strict=False)
        return super().generate(image)

    def _process_batch(
        self, points: np.ndarray, im_size: tuple[int, ...], crop_box: list[int], orig_size: tuple[int, ...]
    ) -> MaskData:
        if not _is_plain(self.predictor):
            return super()._process_batch(points, im_size, crop_box, orig_size)
        low_res, iou, point = self._drawn(points, im_size)
        at_once = max(1, _PIXELS // (im_size[0] * im_size[1]))
        data = MaskData()
        for start in range(0, max(1, len(low_res)), at_once):  # without masks there is one empty part
            part = slice(start, start + at_once)
            data.cat(self._measured(low_res[part], iou[part], point[part], im_size, crop_box, orig_size))
        return data

    def _drawn(self, points: np.ndarray, im_size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Low-resolution logits (n, h, w) of the masks whose predicted IoU (n,) passes, and their points (n, 2)."""
        predictor = self.predictor
        coords = torch.as_tensor(predictor.transform.apply_coords(points, im_size), device=predictor.device)
        labels = torch.ones(len(coords), dtype=torch.int, device=coords.device)
        low_res, scores, kept = [], [], []
        for part in torch.arange(len(coords), device=coords.device).split(predictor.prompts_at_once(len(coords))):
            image, kernels, iou = predictor.read_prompts((coords[part, None], labels[part, None]))
            kernels, iou = kernels[:, 1:], iou[:, 1:].float()  # the three of an ambiguous prompt
            keep = iou > self.pred_iou_thresh if self.pred_iou_thresh > 0.0 else torch.ones_like(iou, dtype=torch.bool)
            rows = keep.any(dim=1)
            masks = draw_masks(predictor.model, image[rows], kernels[rows], predictor.features.shape[-2:])
            low_res.append(masks[keep[rows]].float())
            scores.append(iou[keep])
            kept.append(keep.cpu())
        point = torch.as_tensor(points)[:, None].expand(-1, 3, -1)[torch.cat(kept)]
        return torch.cat(low_res), torch.cat(scores), point

    def _measured(
        self,
        low_res: torch.Tensor,
        iou: torch.Tensor,
        points: torch.Tensor,
        im_size: tuple[int, ...],
        crop_box: list[int],
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """Masks at the image's size: stability, box and run lengths of those that pass."""
        model = self.predictor.model
        logits = model.postprocess_masks(low_res[:, None], self.predictor.input_size, im_size)[:, 0]
        data = MaskData(iou_preds=iou, points=points)
        data["stability_score"] = calculate_stability_score(logits, model.mask_threshold, self.stability_score_offset)
        data["masks"] = logits > model.mask_threshold
        if self.stability_score_thresh > 0.0:
            data.filter(data["stability_score"] >= self.stability_score_thresh)
        data["boxes"] = batched_mask_to_box(data["masks"])
        height, width = orig_size
        data.filter(~is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, width, height]))
        data["rles"] = [
            _run_lengths(mask) for mask in uncrop_masks(data["masks"], crop_box, height, width).cpu().numpy()
        ]
        del data["masks"]
        return data

    def _process_crop(
        self, image: np.ndarray, crop_box: list[int], crop_layer_idx: int, orig_size: tuple[int, ...]
    ) -> MaskData:
        x0, y0, x1, y1 = crop_box
        if x0 >= x1 or y0 >= y1:  # of an image with fewer pixels than crops
            return MaskData()
        data = super()._process_crop(image, crop_box, crop_layer_idx, orig_size)
        if len(data["rles"]) == 0:  # SAM's tensor has lost its second dimension, which fails when no crop has masks
            data["crop_boxes"] = torch.zeros((0, 4), dtype=torch.int64)
        return data


def _is_plain(predictor: Any) -> bool:
    """Whether the masks of a predictor may be computed without its `predict_torch`."""
    return (
        isinstance(predictor, SamPredictor)
        and unchanged.has_methods(predictor, _PREDICTOR)
        and unchanged.is_plain(predictor.model)
        and len(predictor.embedding_of(0)) == 1
    )


def _check_integer(name: str, value: Any, least: int) -> None:
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise InputError(f"{name} is an integer of at least {least}, not {value!r}")


def _check_points_per_side(points_per_side: Any, layers: int, factor: Any) -> None:
    """Raise InputError unless every layer of crops has points, int(points_per_side / factor**layer) a side."""
    if not isinstance(points_per_side, (int, float, np.number)) or not 1 <= points_per_side < np.inf:
        raise InputError(f"points_per_side is at least 1, not {points_per_side!r}")
    if not isinstance(factor, (int, float, np.number)) or not 0 < factor < np.inf:
        raise InputError(f"crop_n_points_downscale_factor is positive, not {factor!r}")
    if layers and points_per_side / factor**layers < 1:
        raise InputError(
            f"crop_n_points_downscale_factor {factor} leaves no point of points_per_side {points_per_side} in layer "
            f"{layers} of crop_n_layers: give more points, fewer layers or a smaller factor"
        )


def _check_grids(grids: Any, layers: int) -> None:
    if len(grids) <= layers:
        raise InputError(f"point_grids has {len(grids)} grids, but crop_n_layers {layers} needs {layers + 1}")
    for layer, grid in enumerate(grids[: layers + 1]):
        try:
            points = np.asarray(grid, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
            raise InputError(f"point_grids[{layer}] must hold points in [0, 1], finite, of shape (N, 2)")


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as the uncompressed RLE of COCO: runs down the columns, the first one of background."""
    pixels = mask.T.ravel()
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(starts, prepend=0, append=pixels.size).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}
