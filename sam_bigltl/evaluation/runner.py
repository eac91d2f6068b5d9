"""The evaluation loop: every image once, encoded once for each keep_ratio, its instances prompted together."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ..data.coco import Annotation, CocoImage, read_photo
from ..errors import InputError
from ..fast.devices import synchronize
from .decoding import Prediction, Predictor, Prompt, PromptLoop, RoutedPredictor, decoder_for
from .detections import Detection
from .journal import ImageRecord
from .metrics import mask_iou, summarize
from .prompts import (  # fmt: skip
    CentreRandomClicker,
    Clicker,
    RandomClicker,
    box_xyxy,
    in_frame,
    instance_rng,
    resampled,
    tight_box,
)
from .protocols import PROTOCOLS, Protocol
from .results import InstanceResult


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        protocol: how instances are prompted and scored.
        keep_ratios: values in (0, 1] or "auto"; 1.0 only for an encoder without a little path.
        prompts: any of "box", "point" and "detector".
        clicks: numbers of clicks at which IoU is taken, for "point".
        seed: of the random clicks.
        batch_size: prompts decoded at once; 0 makes one `predict` a prompt, as a user would.
        workers: threads that read images ahead; 0 reads them in turn.
        focus: tell the encoder the boxes that will be prompted, for prompt-aware routing: "image", all of an image's at
            once; "box", one encoding for each of them; or None.
    """

    protocol: Protocol = PROTOCOLS["A"]
    keep_ratios: tuple[float | str, ...] = (1.0,)
    prompts: tuple[str, ...] = ("box",)
    clicks: tuple[int, ...] = (1, 3, 5)
    seed: int = 0
    batch_size: int = 8
    workers: int = 1
    focus: str | None = None

    def steps(self, prompt: str) -> list[int]:
        """Numbers of points at which IoU is taken, ascending."""
        return sorted(set(self.protocol.refine if prompt == "box" else self.clicks))

    def settings(self) -> list[tuple[float | str, str, int]]:
        """(keep_ratio, prompt, clicks) of every row of the summary, in its order."""
        return [
            (ratio, prompt, count)
            for ratio in self.keep_ratios for prompt in self.prompts if prompt != "detector"
            for count in self.steps(prompt)
        ]  # fmt: skip


@dataclass
class _Instance:
    """An annotation in the course of being prompted."""

    annotation: Annotation
    target: np.ndarray  # what it is scored against
    box: np.ndarray | None
    clicker: Any
    prediction: Prediction | None = None
    points: int = 0  # of the prompt that gave the prediction

    @property
    def predicted(self) -> Prediction:
        """The prediction, once there is one."""
        assert self.prediction is not None
        return self.prediction


@dataclass
class _Tally:
    """What the progress bar shows."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, record: ImageRecord) -> None:
        for result in record.results:
            name = f"{result.prompt}{result.clicks or ''}@{result.keep_ratio}"
            self.sums[name] += result.iou
            self.counts[name] += 1

    def __str__(self) -> str:
        return "mIoU " + ", ".join(f"{name} {100 * self.sums[name] / n:.1f}" for name, n in self.counts.items())


def evaluate(
    predictor: Predictor,
    images: Sequence[CocoImage],
    folder: str | Path,
    plan: Plan,
    on_record: Callable[[ImageRecord], None] | None = None,
    detections: dict[int | str, list[Detection]] | None = None,
    progress: bool = True,
) -> list[ImageRecord]:
    """Measure `images` as `plan` says and return their records.

    Args:
        predictor: anything with SamPredictor's interface; its `model.image_encoder.keep_ratio` is set to each ratio.
        images: what `load_coco` returns.
        folder: where the images' files are.
        on_record: called with each image's record as it is made.
        detections: boxes of a detector by image id, for the prompt "detector".
        progress: whether to show a bar, where stderr is a terminal.

    Raises:
        InputError: an annotation has no usable box although boxes are asked for, or the encoder is dense and a ratio
            is not 1.0. An image that cannot be read is not an exception but a record with `error`.
    """
    check_keep_ratios(predictor, plan.keep_ratios)
    if plan.focus or ("box" in plan.prompts and plan.protocol.box == "json"):
        _check_boxes(images)
    records = []
    decoder, tally = decoder_for(predictor, plan.batch_size), _Tally()
    # disable=None: no bar where stderr is not a terminal, so that logs and error messages stay one line each.
    with tqdm(total=len(images), unit="image", disable=None if progress else True) as bar:
        for image, pixels in _read_ahead(images, Path(folder), plan.workers):
            if isinstance(pixels, InputError):
                record = ImageRecord(image.id, [], {}, [], [], error=str(pixels))
            else:
                found = (detections or {}).get(image.id, [])
                record = _image_record(decoder, image, pixels, plan, found)
            records.append(record)
            if on_record is not None:
                on_record(record)
            bar.update()
            if not bar.disable:
                tally.add(record)
                bar.set_postfix_str(str(tally), refresh=False)
    return records


def summary_rows(records: Sequence[ImageRecord], plan: Plan) -> list[dict[str, Any]]:
    """One row per keep ratio, prompt and number of clicks.

    Returns:
        Dicts with keep_ratio, prompt, clicks (0 for a box alone); all, small, medium, large (mIoU in percent, None
        where a split is empty); instances, images; seconds (encoder and decoder time of this row alone: every row
        counts its own encoding, and a row of k clicks the first k predictions); encoder_ms (median of the images, all
        encodings of each).
    """
    ious, areas = defaultdict(list), defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    encode: dict[Any, list[float]] = {ratio: [] for ratio in plan.keep_ratios}
    read = [record for record in records if record.error is None]
    for record in read:
        for ratio, spent in zip(plan.keep_ratios, record.encode_seconds):
            encode[ratio].append(spent)
        for key, spent in record.decode_seconds.items():
            seconds[key] += spent
        for result in record.results:
            key = _key(result.keep_ratio, result.prompt, result.clicks)
            ious[key].append(result.iou)
            areas[key].append(result.area)
    rows = []
    for ratio, prompt, count in plan.settings():
        key = _key(ratio, prompt, count)
        rows.append({
            "keep_ratio": ratio, "prompt": prompt, "clicks": count, **summarize(ious[key], areas[key]),
            "instances": len(ious[key]), "images": len(read),
            "seconds": round(sum(encode[ratio]) + seconds[key], 3),
            "encoder_ms": round(1e3 * median(encode[ratio]), 2) if encode[ratio] else None,
        })  # fmt: skip
    return rows


def check_keep_ratios(predictor: Predictor, keep_ratios: Sequence[float | str]) -> None:
    """Raise InputError if the encoder is dense (it has no little path) and a ratio other than 1.0 is asked for."""
    if not _routes(predictor) and any(ratio != 1.0 for ratio in keep_ratios):
        raise InputError(
            "this model's encoder is dense (it has no little path): evaluate it at --keep-ratio 1.0, "
            "or convert it with `sam-bigltl convert`"
        )


def _routes(predictor: Predictor) -> TypeGuard[RoutedPredictor]:
    encoder = getattr(getattr(predictor, "model", None), "image_encoder", None)
    return not getattr(encoder, "is_dense", True)  # others' encoders do not have the attribute


def _check_boxes(images: Sequence[CocoImage]) -> None:
    for image in images:
        for annotation in image.annotations:
            if annotation.bbox is None:
                raise InputError(
                    f"annotation {annotation.id} has no 'bbox', which --prompts box needs; add it, or use --box tight"
                )
            x0, y0, x1, y1 = box_xyxy(annotation.bbox)
            height, width = image.size
            if x1 <= max(x0, 0) or y1 <= max(y0, 0) or x0 >= width or y0 >= height:
                raise InputError(
                    f"annotation {annotation.id} has a 'bbox' {list(annotation.bbox)} (x, y, width, height) that is "
                    f"empty or outside its {height} x {width} image; fix it"
                )


def _read_ahead(
    images: Sequence[CocoImage], folder: Path, workers: int
) -> Iterator[tuple[CocoImage, np.ndarray | InputError]]:
    """The images in order with their pixels, or with what is wrong with them; some are read while others are used."""

    def read(image: CocoImage) -> np.ndarray | InputError:
        try:
            return read_photo(folder / image.file_name, image)
        except InputError as error:
            return error

    if not workers:
        for image in images:
            yield image, read(image)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for image in images:
            ahead.append((image, pool.submit(read, image)))
            if len(ahead) > 2 * workers:
                first, pixels = ahead.popleft()
                yield first, pixels.result()
        for image, pixels in ahead:
            yield image, pixels.result()


def _image_record(
    decoder: PromptLoop, image: CocoImage, pixels: np.ndarray, plan: Plan, detections: Sequence[Detection]
) -> ImageRecord:
    predictor = decoder.predictor
    record = ImageRecord(image.id, [], {}, [], [])
    targets = [annotation.mask() for annotation in image.annotations]
    for ratio in plan.keep_ratios:
        if _routes(predictor):
            predictor.model.image_encoder.keep_ratio = ratio
        if plan.focus:
            record.encode_seconds.append(_run_focused(decoder, record, ratio, plan, image, targets, pixels))
            continue
        record.encode_seconds.append(_timed(predictor, predictor.set_image, pixels)[1])
        for prompt in plan.prompts:
            if prompt == "detector":
                _run_detector(decoder, record, ratio, plan, detections)
            else:
                instances = _instances(image, targets, prompt, plan, _frame_side(predictor))
                _run_prompts(decoder, record, ratio, prompt, plan, instances)
    return record


def _run_focused(
    decoder: PromptLoop, record: ImageRecord, ratio: float | str, plan: Plan, image: CocoImage,
    targets: Sequence[np.ndarray], pixels: np.ndarray,
) -> float:  # fmt: skip
    """Prompt all instances with their boxes, which the encoder is told before; returns the seconds of encoding."""
    predictor, seconds = cast(RoutedPredictor, decoder.predictor), 0.0
    instances = _instances(image, targets, "box", plan, _frame_side(predictor))
    for group in [[each] for each in instances] if plan.focus == "box" else [instances]:
        encode = partial(predictor.set_image, boxes=[each.box for each in group if each.box is not None])
        seconds += _timed(predictor, encode, pixels)[1]
        _run_prompts(decoder, record, ratio, "box", plan, group)
    return seconds


def _frame_side(predictor: Predictor) -> int:
    """Side of the square that the model scales images and prompts into, pixels: SAM's where it does not tell."""
    return int(getattr(getattr(predictor, "transform", None), "target_length", 1024))


def _instances(image: CocoImage, targets: Sequence[np.ndarray], prompt: str, plan: Plan, side: int) -> list[_Instance]:
    protocol, instances = plan.protocol, []
    for annotation, target in zip(image.annotations, targets, strict=True):
        if not target.any() and (protocol.box == "tight" or (protocol.click_policy != "ritm" and prompt == "point")):
            continue  # there is no box around nothing, and no pixel of it to click
        rng = instance_rng(plan.seed, image.id, annotation.id)
        clicker: Any
        if protocol.click_policy == "ritm":
            clicker = Clicker(target)
        elif protocol.click_policy == "random":
            clicker = RandomClicker(target, rng)
        else:
            clicker = CentreRandomClicker(target, in_frame(target, side), side, rng, centre=prompt == "point")
        box = None
        if prompt == "box":
            if protocol.box == "tight":
                box = tight_box(target).astype(np.float64)
            else:
                assert annotation.bbox is not None
                box = box_xyxy(annotation.bbox)
        scored = resampled(target, side) if protocol.resampled_target else target
        instances.append(_Instance(annotation, scored, box, clicker))
    return instances


def _run_prompts(
    decoder: PromptLoop, record: ImageRecord, ratio: float | str, prompt: str, plan: Plan, instances: list[_Instance]
) -> None:
    """Prompt all instances of an image, point after point, and write down the IoUs that the plan asks for."""
    protocol, wanted, seconds = plan.protocol, plan.steps(prompt), 0.0
    for step in range(0 if prompt == "box" else 1, wanted[-1] + 1):
        if protocol.click_policy == "random" and step not in wanted:
            _add_clicks(instances)  # no prediction changes where these clicks go
            continue
        if step:
            _add_clicks(instances)
        due = [each for each in instances if each.prediction is None or len(each.clicker.coords) != each.points]
        prompts = [_prompt(each, protocol) for each in due]
        predictions, spent = _timed(decoder.predictor, decoder.run, prompts, protocol.mask_select)
        seconds += spent
        for each, prediction in zip(due, predictions, strict=True):
            each.prediction, each.points = prediction, len(each.clicker.coords)
        if step in wanted:
            key = _key(ratio, prompt, step)
            record.decode_seconds[key] = record.decode_seconds.get(key, 0.0) + seconds
            scored = [each for each in instances if not (protocol.skip_empty and _empty(each))]
            counts = encode_masks([each.predicted.mask for each in scored])
            record.results += [
                InstanceResult(
                    record.image_id, each.annotation.id, each.annotation.area, ratio, prompt, step,
                    mask_iou(each.predicted.mask, each.target), each.predicted.predicted_iou, rle,
                )
                for each, rle in zip(scored, counts, strict=True)
            ]  # fmt: skip


def _empty(each: _Instance) -> bool:
    return not (each.target.any() or each.predicted.mask.any())


def _add_clicks(instances: Sequence[_Instance]) -> None:
    for each in instances:
        if each.prediction is None:
            each.clicker.click(np.zeros_like(each.target))
        else:
            each.clicker.click(each.prediction.mask, each.prediction.logits)


def _prompt(each: _Instance, protocol: Protocol) -> Prompt:
    coords, labels = each.clicker.all() if each.clicker.coords else (None, None)
    feedback = each.prediction.logits if protocol.mask_feedback and each.prediction is not None else None
    return Prompt(each.box, coords, labels, feedback, each.target if protocol.mask_select == "oracle" else None)


def _run_detector(
    decoder: PromptLoop, record: ImageRecord, ratio: float | str, plan: Plan, detections: Sequence[Detection]
) -> None:
    prompts = [Prompt(box=box_xyxy(detection.bbox)) for detection in detections]
    select = plan.protocol.mask_select
    predictions, spent = _timed(decoder.predictor, decoder.run, prompts, select)
    record.decode_seconds[_key(ratio, "detector", 0)] = spent
    counts = encode_masks([prediction.mask for prediction in predictions])
    record.detections += [
        (ratio, index, prediction.predicted_iou, rle)
        for index, (prediction, rle) in enumerate(zip(predictions, counts, strict=True))
    ]


def encode_masks(masks: Sequence[np.ndarray]) -> list[str]:
    """Boolean (H, W) masks of one image as the `counts` of compressed RLEs."""
    if not masks:
        return []
    stacked = np.asfortranarray(np.stack(masks, axis=-1).astype(np.uint8))
    return [rle["counts"].decode("ascii") for rle in coco_mask.encode(stacked)]


def _key(ratio: float | str, prompt: str, clicks: int) -> str:
    return f"{ratio}/{prompt}/{clicks}"


def _timed(predictor: Any, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The function's result and its wall-clock seconds, the device's work included."""
    start = time.perf_counter()
    result = function(*args)
    synchronize(torch.device(getattr(predictor, "device", "cpu")))
    return result, time.perf_counter() - start
