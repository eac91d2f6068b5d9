"""COCO-format instance annotations, checked as they are read: any "instances" JSON, not only COCO's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam_bigltl.errors import InputError

MAX_COORDINATE = 1e6  # pycocotools walks a polygon's edges pixel by pixel, also outside the image


@dataclass(frozen=True)
class Annotation:
    """One object.

    `bbox` is (x, y, width, height) in pixels or None where the JSON has none; `area` is the JSON's own, in square
    pixels; `segmentation` is a list of polygons or an RLE; `size` is the image's (height, width).
    `load_coco` has checked them: pycocotools may crash on a broken segmentation.
    """

    id: int | str
    area: float
    bbox: tuple[float, float, float, float] | None
    segmentation: list[list[float]] | dict[str, Any] = field(repr=False)
    size: tuple[int, int]
    iscrowd: bool = False

    def mask(self) -> np.ndarray:
        """The object as a boolean (height, width) mask, decoded anew at each call: masks are not kept in memory."""
        height, width = self.size
        if isinstance(self.segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(self.segmentation, height, width))
        elif isinstance(self.segmentation["counts"], list):
            rle = coco_mask.frPyObjects(self.segmentation, height, width)
        else:
            rle = self.segmentation
        return coco_mask.decode(rle).astype(bool)


@dataclass
class CocoImage:
    """One image with its annotations, in the order of their ids. `size` is (height, width) in pixels."""

    id: int | str
    file_name: str
    size: tuple[int, int]
    annotations: list[Annotation] = field(default_factory=list)


def load_coco(path: str | Path) -> list[CocoImage]:
    """Read the instances of a COCO-format JSON, grouped by image.

    Images come in the order of their ids, those without any instance left out. As in EfficientViT-SAM's evaluation,
    annotations with `area` < 1 are skipped and crowds are kept.

    Raises:
        InputError: the file is missing, is not COCO-format JSON, holds nothing to evaluate, or one of its
            annotations is unusable (its id is named).
    """
    content = _read_json(Path(path))
    images: dict[int | str, CocoImage] = {}
    for entry in content["images"]:
        image = _image(entry, path)
        if image.id in images:
            raise InputError(f"{path}: image id {image.id} appears twice; ids must be unique")
        images[image.id] = image
    for entry in content["annotations"]:
        if _area(entry, path) < 1:
            continue
        image = images.get(entry["image_id"]) if _is_id(entry.get("image_id")) else None
        if image is None:
            raise InputError(
                f"{path}: annotation {entry['id']} belongs to image {entry.get('image_id')!r}, which is not in "
                "'images'; add the image or remove the annotation"
            )
        image.annotations.append(_annotation(entry, image, path))
    used = sorted((image for image in images.values() if image.annotations), key=_id_order)
    if not used:
        raise InputError(f"{path} has no annotation with an area of at least 1; there is nothing to evaluate")
    for image in used:
        image.annotations.sort(key=_id_order)
    return used


def check_image_files(images: Sequence[CocoImage], folder: str | Path) -> None:
    """Make sure, before hours of work, that every image's file is there.

    Raises:
        InputError: the folder, or a file (the first missing one is named), does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist; give the folder that holds the images to --images")
    missing = [image.file_name for image in images if not (folder / image.file_name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images)} image files are missing in {folder}, the first is {missing[0]}; "
            "check --images"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"annotations file {path} does not exist; check --annotations") from None
    except OSError as error:
        raise InputError(f"annotations file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); give a COCO-format instances file") from error
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path} is not COCO format: it needs a list {key!r}; give a COCO instances file")
        if not entries:
            raise InputError(f"{path} has no {key}; there is nothing to evaluate")
    return content


def _id_order(item: CocoImage | Annotation) -> tuple[bool, int | str]:
    return isinstance(item.id, str), item.id


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _image(entry: dict[str, Any], path: str | Path) -> CocoImage:
    if not _is_id(entry.get("id")):
        raise InputError(f"{path}: an image has no integer or string 'id' (file_name {entry.get('file_name')!r})")
    name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: image {entry['id']} has no 'file_name'; add it")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{path}: image {entry['id']} has no positive integer 'height' and 'width'; add them")
    return CocoImage(entry["id"], name, size)


def _area(entry: dict[str, Any], path: str | Path) -> float:
    if not _is_id(entry.get("id")):
        raise InputError(f"{path}: an annotation of image {entry.get('image_id')!r} has no integer or string 'id'")
    if not _is_number(entry.get("area")):
        raise InputError(f"{path}: annotation {entry['id']} has no number 'area', which the size splits need; add it")
    return entry["area"]


def _annotation(entry: dict[str, Any], image: CocoImage, path: str | Path) -> Annotation:
    where = f"{path}: annotation {entry['id']}"
    bbox = entry.get("bbox")
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        raise InputError(f"{where} has a 'bbox' that is not four numbers [x, y, width, height]; fix it")
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = _polygons(segmentation, where)
    elif isinstance(segmentation, dict):
        _check_rle(segmentation, image, where)
    if not segmentation:
        raise InputError(f"{where} has no segmentation; add a polygon or an RLE, or remove the annotation")
    box = None if bbox is None else tuple(bbox)
    return Annotation(entry["id"], entry["area"], box, segmentation, image.size, bool(entry.get("iscrowd")))


def _polygons(polygons: list[Any], where: str) -> list[list[float]]:
    """The polygons that enclose something: real files hold some of under three points (pycocotools: a box)."""
    for polygon in polygons:
        pairs = isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_is_number, polygon))
        if not pairs or any(abs(value) > MAX_COORDINATE for value in polygon):
            raise InputError(f"{where} has a polygon that is not a list of x, y pairs in pixels; fix it")
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _check_rle(rle: dict[str, Any], image: CocoImage, where: str) -> None:
    height, width = image.size
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or not isinstance(counts, (list, str)) or not counts:
        raise InputError(f"{where} has no segmentation that can be read: an RLE needs 'size' and 'counts'; fix it")
    if size != [height, width]:
        raise InputError(
            f"{where} has a segmentation of size {size}, but its image {image.id} is [{height}, {width}] "
            "(height, width); make them agree"
        )
    # pycocotools does not check this: it reads or writes past its buffer.
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise InputError(f"{where} has a segmentation whose RLE counts do not fill {height} x {width} pixels; fix it")


def _run_lengths(counts: str) -> list[int]:
    """The run lengths in a compressed RLE string; [] if it is not one.

    Little-endian groups of 5 bits in characters from "0" on, bit 5 set where another group follows, bit 4 of the last
    one being the sign; from the fourth run on, the difference to the run before the last (pycocotools' maskApi.c).
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64:
            return []
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs if shift == 0 else []
