"""Checks of what users pass to the predictor: bad input becomes one line that says what to change.

Strict, they refuse what is most likely a mistake: so do the command line, the demo, the ONNX predictor and
`SamPredictor(strict=True)`. Otherwise they refuse only what `segment_anything` has no answer to: it computes boxes
without area, reversed or outside the image, any label, and one mask input for several prompts.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:  # `onnx_predictor` runs where there is no torch
    from torch import Tensor

    Array = Tensor | np.ndarray

# Points of one prompt. Attention among n of them takes memory as n * n: 20,000 took 14 GB.
MOST_POINTS = 1024


def check_image(image: Any, image_format: str = "RGB", strict: bool = True) -> None:
    """Raise InputError unless `image` is an array of shape (H, W, 3) in a known channel order.

    It must be uint8, or, where not `strict`, may be of floats in [0, 1].
    """
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
    if not isinstance(image, np.ndarray):
        raise InputError(f"the image must be a numpy array, not {type(image).__name__}: use read_image(path)")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"the image must have shape (H, W, 3), not {image.shape}")
    if not strict and image.dtype.kind == "f":
        # SAM has torchvision multiply by 255 and wrap what is too large: noise in place of an image.
        if not (image.min() >= 0 and image.max() <= 1):
            raise InputError("an image of floats must have values from 0 to 1: divide by 255, or make it uint8")
    elif image.dtype != np.uint8:
        raise InputError(f"the image must be uint8 with values 0 to 255, not {image.dtype}")


def check_points(coords: Any, labels: Any, strict: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return points as (N, 2) and labels as (N,) arrays, or raise InputError."""
    coords = _numbers(coords, "point_coords", strict)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise InputError(f"point_coords must have shape (N, 2), x and y in pixels, not {coords.shape}")
    check_count(len(coords))
    if labels is None:
        raise InputError("point_labels must be given with point_coords: 1 for object, 0 for background")
    labels = _numbers(labels, "point_labels", strict)
    if labels.shape != (len(coords),):
        raise InputError(f"point_labels must have shape ({len(coords)},), one per point, not {labels.shape}")
    if strict and not np.isin(labels, (-1, 0, 1)).all():
        raise InputError("point_labels must be 1 (object), 0 (background) or -1 (padding)")
    return coords, labels


def check_box(box: Any, size: tuple[int, ...] | None = None, strict: bool = True) -> np.ndarray:
    """Return one x0, y0, x1, y1 box in pixels as an array of 4, or raise InputError.

    `size` is the image's (H, W); None where it is not known yet.
    """
    box = _numbers(box, "box", strict)
    if box.shape not in ((4,), (1, 4)) and (strict or box.size != 4):  # SAM takes two corners (2, 2), too
        raise InputError(f"box must hold 4 numbers x0, y0, x1, y1, not shape {box.shape}: predict_torch takes many")
    box = box.reshape(4)
    if not strict:
        return box
    x0, y0, x1, y1 = box.tolist()
    shown = f"box {x0:g}, {y0:g}, {x1:g}, {y1:g}"
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"{shown} has no area: give x0 < x1 and y0 < y1 (two corners, not a width and height)")
    if size is not None:
        height, width = size
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"{shown} lies outside the image of {width} x {height} pixels")
    return box


def clip_to_image(coords: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Coordinates (..., 2) in pixels: those that rounding has put outside an image of size (H, W) move onto its edge.

    Raises InputError where one lies outside by a pixel or more: it is of another image, or of one of another size.
    """
    height, width = size
    clipped = np.clip(coords, 0, (width, height))
    far = (np.abs(coords - clipped) >= 1).any(axis=-1)
    if far.any():
        x, y = coords[far][0]
        raise InputError(f"{x:g},{y:g} lies outside the image, which is {width} x {height} pixels")
    return clipped


def check_mask_input(mask: Any, size: tuple[int, int] | None) -> np.ndarray:
    """Return a low-resolution mask as a (1, h, w) array, or raise InputError.

    `size` is its (h, w) where they are checked, as strictly as its numbers; None where `prompts_of_sam` does so.
    """
    mask = _numbers(mask, "mask_input", strict=size is not None)
    if mask.ndim != 3 or mask.shape != (1, *(size or mask.shape[1:])):
        wanted = (1, *size) if size else "(1, h, w)"
        raise InputError(f"mask_input must have shape {wanted}, as predict returns it, not {mask.shape}")
    return mask


def check_prompts(
    coords: Array | None, labels: Array | None, boxes: Array | None, masks: Array | None, mask_size: tuple[int, int]
) -> None:
    """Raise InputError unless shapes are (B, N, 2), (B, N), (B, 4), (B, 1, h, w) and coordinates are finite."""
    if labels is not None and coords is None:
        raise InputError("point_labels need point_coords: give both or neither")
    batch = {}
    if coords is not None:
        if coords.ndim != 3 or coords.shape[2] != 2:
            raise InputError(f"point_coords must have shape (B, N, 2), not {tuple(coords.shape)}")
        check_count(coords.shape[1])
        if labels is None:
            raise InputError("point_labels must be given with point_coords: 1 for object, 0 for background")
        if labels.shape != coords.shape[:2]:
            raise InputError(f"point_labels must have shape {tuple(coords.shape[:2])}, not {tuple(labels.shape)}")
        batch["point_coords"] = len(coords)
    if boxes is not None:
        if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4 or (boxes.ndim == 3 and boxes.shape[1] != 1):
            raise InputError(f"boxes must have shape (B, 4), not {tuple(boxes.shape)}")
        batch["boxes"] = len(boxes)
    if masks is not None:
        if masks.ndim != 4 or masks.shape[1:] != (1, *mask_size):
            raise InputError(f"mask_input must have shape (B, 1, {mask_size[0]}, {mask_size[1]}), "
                             f"not {tuple(masks.shape)}")  # fmt: skip
        batch["mask_input"] = len(masks)
    if len(set(batch.values())) > 1:
        raise InputError("prompts must have one batch size, not " + ", ".join(f"{k} {v}" for k, v in batch.items()))
    if 0 in batch.values():
        raise InputError("there are no prompts: give at least one")
    values: Any
    for name, values in (("point_coords", coords), ("boxes", boxes)):
        if values is not None and not (abs(values) < math.inf).all():
            raise InputError(f"{name} holds NaN or infinity: give finite numbers")


def prompts_of_sam(
    coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None, mask_size: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Prompts of every shape that SAM's prompt encoder takes.

    They come back as (B, N, 2), (B, N), (B, 4), and (B, 1, h, w), or (1, 1, h, w) or (1, h, w) for all prompts. With
    B = 1 there may be any number of masks. Raises InputError where SAM has no answer.
    """
    count = None
    if coords is None:
        labels = None  # SAM does not look at them
    else:
        if coords.ndim != 3 or coords.shape[2] != 2:
            raise InputError(f"point_coords must have shape (B, N, 2), not {tuple(coords.shape)}")
        count = len(coords)
        check_count(coords.shape[1])
        if labels is None:
            raise InputError("point_labels must be given with point_coords: 1 for object, 0 for background")
        if labels.shape != coords.shape[:2]:
            raise InputError(f"point_labels must have shape {tuple(coords.shape[:2])}, not {tuple(labels.shape)}")
    if boxes is not None:
        if boxes.ndim == 0 or boxes.numel() != 4 * (len(boxes) if count is None else count):
            wanted = "(B, 4)" if count is None else f"({count}, 4), as many as point_coords,"
            raise InputError(f"boxes must have shape {wanted} not {tuple(boxes.shape)}")
        boxes = boxes.reshape(-1, 4)
        count = len(boxes)
    if masks is not None:
        # One without its first dimension stays so: SAM normalizes it over rows, not channels.
        one = masks.shape[:1] if masks.ndim == 3 else masks.shape[1:2]
        if masks.ndim not in (3, 4) or one != (1,) or not _is_mask_size(masks, mask_size):
            raise InputError(f"mask_input must have shape (B, 1, {mask_size[0]}, {mask_size[1]}), "
                             f"not {tuple(masks.shape)}")  # fmt: skip
        if count is not None and count != 1 and len(masks) not in (1, count):
            raise InputError(f"mask_input must be one or {count}, as many as the prompts, not {len(masks)}")
        if count is None or len(masks) == 0:
            count = len(masks)
    if count == 0:
        raise InputError("there are no prompts: give at least one")
    return coords, labels, boxes, masks


def check_tensor(values: Any, name: str, strict: bool = True) -> None:
    """Raise InputError unless `values` is a tensor of integers or floating-point numbers, or not `strict` and bool."""
    import torch  # not above: `onnx_predictor` runs without it

    if not isinstance(values, torch.Tensor):
        raise InputError(f"{name} must be a torch.Tensor, not {type(values).__name__}")
    if (strict and values.dtype == torch.bool) or values.is_complex():
        raise InputError(f"{name} must hold integers or floating-point numbers, not {values.dtype}")


def check_image_index(index: Any, count: int) -> None:
    """Raise InputError unless `index` is an integer from 0 to count - 1."""
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < count:
        raise InputError(f"image_index must be an integer from 0 to {count - 1}, not {index!r}")


def check_size(size: Any) -> tuple[int, int]:
    """Return an image's (height, width) in pixels, or raise InputError."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError("the original image size must be two positive integers, height and width")
    return height, width


def at_once(most: int, points: int) -> int:
    """How many prompts of so many points each to decode together: `most`, or fewer that have MOST_POINTS in all."""
    return max(1, min(most, MOST_POINTS // max(1, points)))


def check_count(points: int) -> None:
    """Raise InputError where a prompt has more points than MOST_POINTS."""
    if points > MOST_POINTS:
        raise InputError(f"a prompt of {points} points is too large: give {MOST_POINTS} at most, which is plenty")


def _is_mask_size(mask: Array, size: tuple[int, int]) -> bool:
    """Whether SAM's two convolutions bring a mask (..., h, w) to the size of the embedding, or to one pixel for all."""
    return all(side // 4 in (1, whole // 4) for side, whole in zip(mask.shape[-2:], size))


def _numbers(values: Any, name: str, strict: bool) -> np.ndarray:
    try:
        if hasattr(values, "detach"):  # a tensor, maybe of a device, with a gradient, or bfloat16
            values = values.detach().cpu().double()
        array = np.asarray(values)
        if array.dtype.kind == "c":
            raise TypeError
        if not strict:
            return array if array.dtype.kind in "biuf" else array.astype(np.float64)
        finite = np.isfinite(array).all()
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers") from None
    if not finite:
        raise InputError(f"{name} holds NaN or infinity: give finite numbers")
    return array
