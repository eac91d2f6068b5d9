"""`sam-bigltl segment`: masks of one photograph, from boxes or points, as pictures and COCO JSON.

`segment_folder` does the same for many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils

from ..data.files import whole_file
from ..data.images import write_image
from ..errors import InputError
from ..fast.devices import synchronize
from ..modeling.routing import Route
from .predictor import SamPredictor
from .prompt import Prompt
from .visualize import overlay, routing_picture


@dataclass(frozen=True)
class Segment:
    """One mask (H, W) bool, the IoU that the model predicts for it, its prompt, and the decoder's milliseconds."""

    mask: np.ndarray
    predicted_iou: float
    prompt: Prompt
    decoder_ms: float


def load_predictor(checkpoint: str | None, device: torch.device, precision: str, native: bool = False) -> SamPredictor:
    """A predictor of the given weights (None: the shipped ones), its encoder in `precision` (a key of PRECISIONS)."""
    from ..convert.registry import default_checkpoint
    from ..convert.sam import load_sam

    sam = load_sam(checkpoint or default_checkpoint()).to(device)
    sam.image_encoder.compute_in(precision, native)
    return SamPredictor(sam, strict=True)


def set_routing(
    predictor: SamPredictor, keep_ratio: float | tuple[float, ...] | str | None, focus: bool = False
) -> None:
    """Set the encoder's keep_ratio (None: as it is); InputError where it, or `focus`, is not for this encoder."""
    encoder = predictor.model.image_encoder
    if keep_ratio is not None:
        if not hasattr(encoder, "keep_ratio"):
            raise InputError("this checkpoint has a plain ViT encoder: leave --keep-ratio out, or convert it first")
        encoder.keep_ratio = keep_ratio
    if focus and getattr(encoder, "is_dense", True):
        raise InputError("this checkpoint's encoder computes every token: leave --focus out, or convert it first")


def segment_image(
    predictor: SamPredictor,
    image: np.ndarray,
    prompts: Sequence[Prompt],
    answer: Callable[[Sequence[Prompt]], list[list[Segment]]],
    focus: bool,
) -> tuple[list[Segment], list[Route], float]:
    """Encode `image` and let `answer` segment what the prompts ask for; with `focus` anew for every box.

    Returns:
        the segments in the order of the prompts; the route of every encoding, where the encoder routes; their
        milliseconds.
    """
    shared: dict[Any, list[int]] = {}  # the prompts of an encoding
    for index, prompt in enumerate(prompts):
        shared.setdefault(prompt.box if focus else None, []).append(index)
    found: dict[int, list[Segment]] = {}
    routes, milliseconds = [], 0.0
    for box, indices in shared.items():
        encode = partial(predictor.set_image, image, boxes=None if box is None else [box])
        milliseconds += timed(encode, predictor.device)[0]
        routes += [] if predictor.route is None else [predictor.route]
        found |= zip(indices, answer([prompts[index] for index in indices]), strict=True)
    return [segment for index in sorted(found) for segment in found[index]], routes, milliseconds


def segment_prompt(predictor: SamPredictor, prompt: Prompt, all_masks: bool = False) -> list[Segment]:
    """The mask with the highest predicted IoU of the image that is set, or all three, best first."""
    arguments = prompt.clipped(predictor.original_size).arguments()
    milliseconds, (masks, scores, _) = timed(lambda: predictor.predict(**arguments), predictor.device)
    return ranked(masks, scores, prompt, milliseconds, all_masks)


def ranked(
    masks: np.ndarray, scores: np.ndarray, prompt: Prompt, milliseconds: float, all_masks: bool
) -> list[Segment]:
    """Of masks (3, H, W) with predicted IoUs (3,) the best one, or all, best first."""
    order = np.argsort(-scores, kind="stable")[: None if all_masks else 1]
    return [Segment(masks[i].copy(), float(scores[i]), prompt, milliseconds) for i in order]  # lets the others go


def write_pictures(
    folder: Path, file_name: str, image: np.ndarray, routes: Sequence[Route], segments: Sequence[Segment]
) -> list[Path]:
    """Write overlay, masks and a picture of every route. Returns the paths."""
    stem = Path(file_name).stem
    pictures = {f"{stem}_overlay.png": draw_segments(image, segments)}
    for number, segment in enumerate(segments, start=1):
        pictures[f"{stem}_mask_{number}.png"] = segment.mask.astype(np.uint8) * 255
    for number, route in enumerate(routes, start=1):
        pictures[f"{stem}_routing{f'_{number}' * (len(routes) > 1)}.png"] = routing_picture(image, route)
    for name, picture in pictures.items():
        write_image(folder / name, picture)
    return [folder / name for name in pictures]


def masks_path(folder: Path, file_name: str) -> Path:
    """Where the masks of a photograph go."""
    return folder / f"{Path(file_name).stem}_masks.json"


def write_masks(folder: Path, file_name: str, segments: Sequence[Segment]) -> Path:
    """Write the masks as COCO-style records, whole or not at all. Returns the path."""
    path = masks_path(folder, file_name)
    with whole_file(path) as file:
        file.write(json.dumps([annotation(file_name, segment) for segment in segments], indent=2) + "\n")
    return path


def draw_segments(image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """The photograph with the masks and the prompts that gave them."""
    first = {segment.prompt: index for index, segment in reversed(list(enumerate(segments)))}
    boxes = [s.prompt.box if first[s.prompt] == index else None for index, s in enumerate(segments)]
    points = [point for prompt in first for point in prompt.points]
    labels = [label for prompt in first for label in prompt.labels]
    return overlay(image, [segment.mask for segment in segments], boxes, points, labels)


def annotation(file_name: str, segment: Segment) -> dict[str, Any]:
    """One mask as a COCO-style record; `size` is [height, width], `bbox` x, y, width, height in pixels."""
    rle = mask_utils.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
    size = [int(value) for value in rle["size"]]
    return {
        "file_name": file_name,
        "size": size,
        "segmentation": {"size": size, "counts": rle["counts"].decode("ascii")},
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "area": int(mask_utils.area(rle)),
        "predicted_iou": segment.predicted_iou,
        "prompt": segment.prompt.record(),
    }


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Milliseconds that `function()` took, work queued on `device` included, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3, result
