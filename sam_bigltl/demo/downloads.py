"""What a user takes away: masks, a cut-out, COCO JSON, and the call that gives the same mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from ..modeling.trunk import KeepRatio
from .engine import Engine, Masks
from .photos import Photo
from .pictures import png_bytes
from .scene import Item


def mask_png(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as a PNG, 255 on the object and 0 elsewhere."""
    return png_bytes(mask.astype(np.uint8) * 255)


def cutout_png(image: np.ndarray, mask: np.ndarray) -> bytes:
    """The object of `image` alone, transparent elsewhere, cut to its bounds; an empty mask gives one pixel."""
    alpha = mask.astype(np.uint8) * 255
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(1), slice(1))
    return png_bytes(np.dstack([image, alpha])[part])


def coco_json(photo: Photo, items: Sequence[tuple[Item, np.ndarray, float]], regions: Sequence[dict]) -> bytes:
    """All objects as COCO instances: (object, mask (H, W), predicted IoU), and the records of everything mode.

    Objects of one name are one category; regions are the category "region". `prompt` is what the user pointed at.
    """
    height, width = photo.image.shape[:2]
    names = list(dict.fromkeys([item.name for item, _, _ in items] + ["region"] * bool(regions)))
    annotations: list[dict[str, Any]] = []

    def add(name: str, rle: dict, predicted_iou: float, prompt: dict[str, Any]) -> None:
        counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
        annotations.append({
            "id": len(annotations) + 1, "image_id": 1, "category_id": 1 + names.index(name), "iscrowd": 0,
            "segmentation": {"size": [int(side) for side in rle["size"]], "counts": counts},
            "bbox": [float(value) for value in mask_utils.toBbox(rle)], "area": int(mask_utils.area(rle)),
            "predicted_iou": round(predicted_iou, 6), "prompt": prompt,
        })  # fmt: skip

    for item, mask, iou in items:
        add(item.name, mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))), iou, item.prompt.record())
    for record in regions:
        add("region", record["segmentation"], record["predicted_iou"], {"point_coords": record["point_coords"]})
    return json.dumps({
        "images": [{"id": 1, "file_name": photo.file_name, "width": width, "height": height}],
        "categories": [{"id": 1 + index, "name": name} for index, name in enumerate(names)],
        "annotations": annotations,
    }, indent=1).encode()  # fmt: skip


def python_code(photo: Photo, item: Item, masks: Masks, keep_ratio: KeepRatio, engine: Engine) -> str:
    """The same mask from Python."""
    height, width = photo.image.shape[:2]
    moved = f".to({str(engine.device)!r})" if engine.device.type != "cpu" else ""
    lines = ["import numpy as np"] + ["import cv2"] * photo.was_reduced + [
        "from sam_bigltl import SamPredictor, load_sam",
        "from sam_bigltl.images import read_image",
        "",
        f"sam = load_sam({str(engine.checkpoint.resolve())!r})" + moved,
    ]  # fmt: skip
    if engine.dtype != "float32" or engine.native:
        lines.append(f"sam.image_encoder.optimize({engine.dtype!r}, native={engine.native})")
    if engine.routed:
        lines.append(f"sam.image_encoder.keep_ratio = {keep_ratio!r}")
    lines += ["predictor = SamPredictor(sam)", f"image = read_image({photo.file_name!r})"]
    if photo.was_reduced:
        lines.append(f"image = cv2.resize(image, ({width}, {height}), interpolation=cv2.INTER_AREA)")
    arguments = []
    if item.prompt.points:
        arguments.append(f"point_coords=np.array({[list(point) for point in item.prompt.points]})")
        arguments.append(f"point_labels=np.array({list(item.prompt.labels)})")
    if item.prompt.box is not None:
        arguments.append(f"box=np.array({list(item.prompt.box)})")
    lines += [
        "predictor.set_image(image)",
        f"masks, ious, low_res = predictor.predict({', '.join(arguments)})",
        f"mask = masks[{masks.chosen(item.choice)}]  # {item.name}",
    ]
    return "\n".join(lines) + "\n"
