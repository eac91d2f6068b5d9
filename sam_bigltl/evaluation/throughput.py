"""Prompts per second of the evaluation against a plain loop of `segment_anything`'s `set_image` and `predict`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor as PlainPredictor

from ..data.coco import CocoImage, check_image_files, read_coco, read_photo
from ..errors import ArgumentParser, run_cli
from .metrics import mask_iou
from .models import predictor_of_checkpoint
from .prompts import Clicker, box_xyxy
from .runner import Plan, check_keep_ratios, encode_masks, evaluate


def plain_loop(predictor: PlainPredictor, image: CocoImage, folder: Path, clicks: int) -> dict[tuple, np.ndarray]:
    """What a script without this package does for protocol A: boxes and RITM's clicks, one `predict` after another.

    Returns:
        boolean (H, W) masks by (annotation id, number of clicks), 0 clicks being the box.
    """
    predictor.set_image(read_photo(folder / image.file_name, image))
    masks = {}
    for annotation in image.annotations:
        target = annotation.mask()

        def predict(name: int, target: np.ndarray = target, key: Any = annotation.id, **prompt: np.ndarray) -> None:
            found, scores, _ = predictor.predict(**prompt)
            masks[key, name] = found[int(np.argmax(scores))]
            mask_iou(masks[key, name], target)

        assert annotation.bbox is not None
        predict(0, box=box_xyxy(annotation.bbox))
        clicker, last = Clicker(target), np.zeros_like(target)
        for count in range(1, clicks + 1):
            coords, labels = clicker.click(last)
            predict(count, point_coords=coords, point_labels=labels)
            last = masks[annotation.id, count]
    return masks


def main(argv: Sequence[str] | None = None) -> None:
    """Alternate the two image by image, compare every mask, and print both rates and their ratio."""
    parser = ArgumentParser(prog="throughput.py", description=__doc__)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--keep-ratio", type=float, default=1.0)
    parser.add_argument("--clicks", type=int, default=0, metavar="N", help="1 to N clicks after the box (0)")
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size)
    parser.add_argument("--limit", type=int, default=40, help="images (40)")
    parser.add_argument("--ignore-exif", action="store_true", help="read images as they are stored")
    run_cli("throughput.py", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    images, usage = read_coco(args.annotations, folder=args.images, ignore_exif=args.ignore_exif)
    images = images[: args.limit]
    usage = usage.of(images, "of images beyond --limit")
    check_image_files(images, args.images)
    ours = predictor_of_checkpoint(args.checkpoint, torch.device("cpu"), "float32")
    check_keep_ratios(ours, (args.keep_ratio,))
    ours.model.image_encoder.keep_ratio = args.keep_ratio
    _measure(args, images, PlainPredictor(ours.model), ours)
    print(usage)


def _measure(args: argparse.Namespace, images: Sequence[CocoImage], plain: PlainPredictor, ours: Any) -> None:
    prompts = ("box", "point") if args.clicks else ("box",)
    plan = Plan(
        keep_ratios=(args.keep_ratio,), prompts=prompts, clicks=tuple(range(1, args.clicks + 1)),
        batch_size=args.batch_size, workers=0,
    )  # fmt: skip
    evaluate(ours, images[:2], args.images, plan, progress=False)  # warm-up
    seconds, count, same, encode = [0.0, 0.0], 0, 0, 0.0
    for image in images:
        start = time.perf_counter()
        expected = plain_loop(plain, image, args.images, args.clicks)
        middle = time.perf_counter()
        (record,) = evaluate(ours, [image], args.images, plan, progress=False)
        seconds = [seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle]
        encode += sum(record.encode_seconds)
        masks = {(result.annotation_id, result.clicks): result.counts for result in record.results}
        encoded = dict(zip(expected, encode_masks(list(expected.values())), strict=True))
        count += len(expected)
        same += sum(encoded[key] == masks[key] for key in expected)
    print(f"{len(images)} images, {count} prompts; identical masks: {same}")
    for name, spent in zip(("plain loop", "evaluation"), seconds):
        print(f"{name}: {spent:.2f} s, {count / spent:.1f} prompts/s, {1e3 * spent / count:.2f} ms a prompt")
    plain_rest, rest = (spent - encode for spent in seconds)
    print(f"ratio: {seconds[0] / seconds[1]:.2f}; without the encoder's {encode:.2f} s: {plain_rest / rest:.2f}")
