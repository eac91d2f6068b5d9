"""Protocol A: the loop of EfficientViT-SAM's evaluation (arXiv 2402.05008), over keep ratios, prompts and clicks.

One `set_image` per image and keep ratio; one `predict` per annotation (per click for points) with
`multimask_output=True`; the mask with the highest predicted IoU counts, thresholded at 0 at the image's own
resolution. Annotations are decoded one by one and not in batches: the masks are then those that a user gets, and on
a CPU a batch is slower (100 ms for one box, 150 ms each in a batch of 64).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from sam_bigltl.bench import synchronize
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.datasets import Annotation, CocoImage
from sam_bigltl.evaluation.metrics import mask_iou, summarize
from sam_bigltl.evaluation.prompts import Clicker, box_xyxy
from sam_bigltl.images import read_image


class Predictor(Protocol):
    """What the loop needs of `segment_anything.SamPredictor`: an image, then prompts on it."""

    model: Any
    device: torch.device

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None: ...

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class InstanceResult:
    """One instance under one setting. `clicks` is 0 for a box; `iou` and `predicted_iou` are fractions."""

    image_id: int | str
    annotation_id: int | str
    area: float
    keep_ratio: float | str
    prompt: str
    clicks: int
    iou: float
    predicted_iou: float


@dataclass
class _Tally:
    """What has been measured so far of one (keep ratio, prompt, clicks)."""

    ious: array = field(default_factory=lambda: array("d"))
    areas: array = field(default_factory=lambda: array("d"))
    total: float = 0.0  # of the IoUs, for the progress bar
    seconds: float = 0.0

    def add(self, iou: float, area: float, seconds: float) -> None:
        self.ious.append(iou)
        self.areas.append(area)
        self.total += iou
        self.seconds += seconds


def evaluate(
    predictor: Predictor,
    images: Sequence[CocoImage],
    folder: str | Path,
    keep_ratios: Sequence[float | str] = (1.0,),
    prompts: Sequence[str] = ("box",),
    clicks: Sequence[int] = (1, 3, 5),
    on_result: Callable[[InstanceResult], None] | None = None,
) -> list[dict[str, Any]]:
    """Run protocol A and return its summary, one row per keep ratio, prompt and number of clicks.

    Args:
        predictor: a `SamPredictor`; its `model.image_encoder.keep_ratio` is set to each ratio in turn.
        images: what `load_coco` returns.
        folder: where the images' files are.
        keep_ratios: values in (0, 1] or "auto"; a dense encoder takes only 1.0.
        prompts: "box", "point" or both.
        clicks: the numbers of clicks at which IoU is recorded; max(clicks) rounds are run.
        on_result: called with every instance's result as it comes, so that nothing piles up here.

    Returns:
        Dicts with keep_ratio, prompt, clicks (0 for a box); all, small, medium, large (mIoU in percent, None where a
        split is empty); instances, images; seconds (encoder and decoder time of this row alone: every row counts its
        own encoding, and a row of k clicks the first k predictions).

    Raises:
        InputError: a file cannot be read, an image's size is not the JSON's, an annotation has no box although
            "box" is asked for, or the encoder is dense and a ratio is not 1.0.
    """
    encoder = predictor.model.image_encoder
    check_keep_ratios(encoder, keep_ratios)
    if "box" in prompts:
        _check_boxes(images)
    settings = [(prompt, count) for prompt in prompts for count in ([0] if prompt == "box" else sorted(clicks))]
    tallies = {(ratio, *setting): _Tally() for ratio in keep_ratios for setting in settings}

    # disable=None: no bar where stderr is not a terminal, so that logs and error messages stay one line each.
    with tqdm(images, unit="image", disable=None) as bar:
        for image in bar:
            pixels = _read_pixels(image, Path(folder))
            for ratio in keep_ratios:
                if not _is_dense(encoder):
                    encoder.keep_ratio = ratio
                encode_seconds = _timed(predictor.device, predictor.set_image, pixels)[1]
                for prompt, count in settings:
                    tallies[ratio, prompt, count].seconds += encode_seconds
                for annotation in image.annotations:
                    for prompt, count, iou, predicted, seconds in _predictions(predictor, annotation, settings):
                        tallies[ratio, prompt, count].add(iou, annotation.area, seconds)
                        if on_result is not None:
                            on_result(
                                InstanceResult(
                                    image.id, annotation.id, annotation.area, ratio, prompt, count, iou, predicted
                                )
                            )
            if not bar.disable:
                bar.set_postfix_str(_running_miou(tallies), refresh=False)

    return [
        {
            "keep_ratio": ratio,
            "prompt": prompt,
            "clicks": count,
            **summarize(tally.ious, tally.areas),
            "instances": len(tally.ious),
            "images": len(images),
            "seconds": round(tally.seconds, 3),
        }
        for (ratio, prompt, count), tally in tallies.items()
    ]


def check_keep_ratios(encoder: Any, keep_ratios: Sequence[float | str]) -> None:
    """Raise InputError if the encoder is dense (it has no little stream) and a ratio other than 1.0 is asked for."""
    if _is_dense(encoder) and any(ratio != 1.0 for ratio in keep_ratios):
        raise InputError(
            "this checkpoint's encoder is dense (it has no little stream): evaluate it at --keep-ratio 1.0, or convert "
            "it with `sam-bigltl convert`"
        )


def _is_dense(encoder: Any) -> bool:
    return getattr(encoder, "is_dense", True)  # segment_anything's own encoder does not have the attribute


def _check_boxes(images: Sequence[CocoImage]) -> None:
    for image in images:
        for annotation in image.annotations:
            if annotation.bbox is None:
                raise InputError(f"annotation {annotation.id} has no 'bbox', which --prompts box needs; add it")
            x0, y0, x1, y1 = box_xyxy(annotation.bbox)
            height, width = image.size
            if x1 <= max(x0, 0) or y1 <= max(y0, 0) or x0 >= width or y0 >= height:
                raise InputError(
                    f"annotation {annotation.id} has a 'bbox' {list(annotation.bbox)} (x, y, width, height) that is "
                    f"empty or outside its {height} x {width} image; fix it"
                )


def _read_pixels(image: CocoImage, folder: Path) -> np.ndarray:
    pixels = read_image(folder / image.file_name)
    if pixels.shape[:2] != image.size:
        raise InputError(
            f"{folder / image.file_name} is {pixels.shape[0]} x {pixels.shape[1]} (height x width), but the "
            f"annotations say {image.size[0]} x {image.size[1]}; use the images that were annotated"
        )
    return pixels


def _predictions(
    predictor: Predictor, annotation: Annotation, settings: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, int, float, float, float]]:
    """Yield (prompt, clicks, iou, predicted IoU, seconds spent predicting) of one annotation for every setting."""
    target, device = annotation.mask(), predictor.device
    counts = [count for prompt, count in settings if prompt == "point"]
    for kind in dict.fromkeys(prompt for prompt, _ in settings):
        if kind == "box":
            (mask, predicted), seconds = _timed(device, _best_mask, predictor, box=box_xyxy(annotation.bbox))
            yield "box", 0, mask_iou(mask, target), predicted, seconds
            continue
        clicker, mask, total = Clicker(target), np.zeros_like(target), 0.0
        for count in range(1, max(counts) + 1):
            coords, labels = clicker.click(mask)
            (mask, predicted), seconds = _timed(
                device, _best_mask, predictor, point_coords=coords, point_labels=labels
            )
            total += seconds
            if count in counts:
                yield "point", count, mask_iou(mask, target), predicted, total


def _best_mask(predictor: Predictor, **prompt: np.ndarray) -> tuple[np.ndarray, float]:
    """The (H, W) boolean mask of the three that the model believes in most, and its predicted IoU."""
    masks, scores, _ = predictor.predict(**prompt, multimask_output=True)
    best = int(scores.argmax())
    return masks[best], float(scores[best])


def _timed(device: torch.device, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """The function's result and its wall-clock seconds, the device's work included."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    synchronize(device)
    return result, time.perf_counter() - start


def _running_miou(tallies: dict[tuple[float | str, str, int], _Tally]) -> str:
    """Such as `mIoU box@0.5 71.2, point@0.5 60.1`; for points, the largest number of clicks."""
    latest = {f"{prompt}@{ratio}": tally for (ratio, prompt, _), tally in tallies.items()}
    return "mIoU " + ", ".join(f"{name} {100 * tally.total / len(tally.ious):.1f}" for name, tally in latest.items())
