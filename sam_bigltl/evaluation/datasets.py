"""COCO-format instance annotations, checked as they are read: any "instances" JSON, COCO's and LVIS's among them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.files import load_json
from sam_bigltl.images import MOST_PIXELS

MAX_COORDINATE = 1e6  # pycocotools walks a polygon's edges pixel by pixel, also outside the image


@dataclass(frozen=True)
class Annotation:
    """One object.

    `bbox` is (x, y, width, height) in pixels or None where the JSON has none; `area` is the JSON's own, in square
    pixels; `segmentation` is a list of polygons or an RLE; `size` is the image's (height, width).
    `load_coco` has checked them: pycocotools may crash on a broken segmentation. `category_id` is as in the JSON, None
    where there is none.
    """

    id: int | str
    area: float
    bbox: tuple[float, float, float, float] | None
    segmentation: list[list[float]] | dict[str, Any] = field(repr=False)
    size: tuple[int, int]
    iscrowd: bool = False
    category_id: int | str | None = None

    def rle(self) -> dict[str, Any]:
        """The object as pycocotools' compressed RLE, made anew at each call."""
        height, width = self.size
        if isinstance(self.segmentation, list):
            return coco_mask.merge(coco_mask.frPyObjects(self.segmentation, height, width))
        if isinstance(self.segmentation["counts"], list):
            return coco_mask.frPyObjects(self.segmentation, height, width)
        return self.segmentation

    def mask(self) -> np.ndarray:
        """The object as a boolean (height, width) mask, decoded anew at each call: masks are not kept in memory."""
        return coco_mask.decode(self.rle()).astype(bool)


@dataclass
class CocoImage:
    """One image with its annotations, in the order of their ids. `size` is (height, width) in pixels.

    Where the JSON has no `file_name` (LVIS), it is the last two parts of `coco_url`, such as
    train2017/000000391895.jpg, and `flat_name` the last one.
    """

    id: int | str
    file_name: str
    size: tuple[int, int]
    annotations: list[Annotation] = field(default_factory=list)
    flat_name: str | None = None


@dataclass(frozen=True)
class Skipped:
    """How many annotations were left out, and why: as crowds, or (of the others) for an `area` under `min_area`."""

    crowds: int
    small: int
    min_area: float

    def __str__(self) -> str:
        """Such as `skipped: 12 crowds, 3 with area < 1`."""
        parts = [f"{self.crowds} crowd{'s' * (self.crowds != 1)}"] if self.crowds else []
        parts += [f"{self.small} with area < {self.min_area:g}"] if self.small else []
        return "skipped: " + (", ".join(parts) or "none")


def load_coco(
    path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False
) -> list[CocoImage]:
    """Read the instances of a COCO-format JSON, grouped by image. `read_coco` tells what was skipped, too.

    Images come in the order of their ids. The defaults are those of EfficientViT-SAM's evaluation.

    Args:
        crowds: False leaves out annotations with `iscrowd`.
        min_area: annotations with a smaller `area` are left out, square pixels.
        empty_images: whether images with no annotation (left) are kept; a detector's AP needs them.

    Raises:
        InputError: the file is missing, is not COCO-format JSON, holds nothing to evaluate, or one of its
            annotations is unusable (its id is named).
    """
    return read_coco(path, crowds, min_area, empty_images)[0]


def read_coco(
    path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False
) -> tuple[list[CocoImage], Skipped]:
    """What `load_coco` returns, and how many annotations it left out."""
    return parse_coco(read_json(path), path, crowds, min_area, empty_images)


def parse_coco(
    content: dict[str, Any], path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False
) -> tuple[list[CocoImage], Skipped]:
    """`read_coco` of a file that `read_json` has read already; `path` is for error messages."""
    images: dict[int | str, CocoImage] = {}
    for entry in content["images"]:
        image = _image(entry, path)
        if image.id in images:
            raise InputError(f"{path}: image id {image.id} appears twice; ids must be unique")
        images[image.id] = image
    crowd_count = small_count = 0
    for entry in content["annotations"]:
        area = _area(entry, path)
        if entry.get("iscrowd") and not crowds:
            crowd_count += 1
            continue
        if area < min_area:
            small_count += 1
            continue
        image = _image_of(entry, images)
        if image is None:
            raise _unknown_image(entry, content["annotations"], images, path)
        image.annotations.append(_annotation(entry, image, path))
    used = sorted((image for image in images.values() if image.annotations), key=_id_order)
    if not used:
        kind = "annotation" if crowds else "annotation that is not a crowd"
        raise InputError(f"{path} has no {kind} with an area of at least {min_area:g}; there is nothing to evaluate")
    for image in used:
        image.annotations.sort(key=_id_order)
    chosen = sorted(images.values(), key=_id_order) if empty_images else used
    return chosen, Skipped(crowd_count, small_count, min_area)


def check_image_files(images: Sequence[CocoImage], folder: str | Path) -> None:
    """Make sure, before hours of work, that every image's file is there.

    An image that the JSON names by `coco_url` only may lie in its subfolder (train2017, val2017) or else in `folder`
    itself; in the second case its `file_name` is set to the bare name.

    Raises:
        InputError: the folder, or a file (the first missing one is named), does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist; give the folder that holds the images to --images")
    missing = [image for image in images if not _locate(image, folder)]
    if not missing:
        return
    hint = "check --images"
    subfolders = sorted({image.file_name.split("/")[0] for image in missing if image.flat_name})
    if subfolders:
        hint += f", which must hold {' and '.join(subfolders)}"
    if 2 * len(missing) > len(images):
        hint += ": the JSON seems to belong to another dataset or folder"
    raise InputError(
        f"{len(missing)} of {len(images)} image files are missing in {folder}, the first is {missing[0].file_name}; "
        f"{hint}"
    )


def _locate(image: CocoImage, folder: Path) -> bool:
    """Whether the image's file is there; see `check_image_files`."""
    if (folder / image.file_name).is_file():
        return True
    if image.flat_name is None or not (folder / image.flat_name).is_file():
        return False
    image.file_name = image.flat_name
    return True


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of a COCO-format JSON: a dict with non-empty lists of dicts "images" and "annotations".

    Raises:
        InputError: the file is missing or holds something else.
    """
    content = load_json(path, "annotations", "check --annotations", "give a COCO-format instances file")
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path} is not COCO format: it needs a list {key!r}; give a COCO instances file")
        if not entries:
            raise InputError(f"{path} has no {key}; there is nothing to evaluate")
    return content


def _id_order(item: CocoImage | Annotation) -> tuple[bool, int | str]:
    return isinstance(item.id, str), item.id


def is_id(value: Any) -> bool:
    """Whether it can be the id of an image, an annotation or a category."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _image(entry: dict[str, Any], path: str | Path) -> CocoImage:
    if not is_id(entry.get("id")):
        raise InputError(f"{path}: an image has no integer or string 'id' (file_name {entry.get('file_name')!r})")
    name, flat_name, size = entry.get("file_name"), None, (entry.get("height"), entry.get("width"))
    if not isinstance(name, str) or not name:
        parts = str(entry.get("coco_url", "")).split("/")[-2:]
        if len(parts) < 2 or not all(parts) or ".." in parts:
            raise InputError(f"{path}: image {entry['id']} has no 'file_name' and no usable 'coco_url'; add one")
        name, flat_name = "/".join(parts), parts[1]
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{path}: image {entry['id']} has no positive integer 'height' and 'width'; add them")
    if size[0] * size[1] > MOST_PIXELS:  # its masks would be as large
        raise InputError(
            f"{path}: image {entry['id']} is {size[1]} x {size[0]}: images have {MOST_PIXELS} pixels at most"
        )
    return CocoImage(entry["id"], name, size, flat_name=flat_name)


def _image_of(entry: dict[str, Any], images: dict[int | str, CocoImage]) -> CocoImage | None:
    return images.get(entry["image_id"]) if is_id(entry.get("image_id")) else None


def _unknown_image(
    entry: dict[str, Any], entries: list[dict[str, Any]], images: dict[int | str, CocoImage], path: str | Path
) -> InputError:
    unknown = sum(_image_of(other, images) is None for other in entries)
    what = f"annotation {entry['id']} belongs to image {entry.get('image_id')!r}, which is not in 'images'"
    if 2 * unknown > len(entries):
        return InputError(
            f"{path}: {what}, and so it is with {unknown} of {len(entries)} annotations: 'images' seems to belong to "
            "another dataset; give the original file"
        )
    return InputError(f"{path}: {what}; add the image or remove the annotation")


def _area(entry: dict[str, Any], path: str | Path) -> float:
    if not is_id(entry.get("id")):
        raise InputError(f"{path}: an annotation of image {entry.get('image_id')!r} has no integer or string 'id'")
    if not is_number(entry.get("area")):
        raise InputError(f"{path}: annotation {entry['id']} has no number 'area', which the size splits need; add it")
    return entry["area"]


def _annotation(entry: dict[str, Any], image: CocoImage, path: str | Path) -> Annotation:
    where = f"{path}: annotation {entry['id']}"
    bbox = entry.get("bbox")
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
        raise InputError(f"{where} has a 'bbox' that is not four numbers [x, y, width, height]; fix it")
    segmentation, category = entry.get("segmentation"), entry.get("category_id")
    if isinstance(segmentation, list):
        segmentation = _polygons(segmentation, where)
    elif isinstance(segmentation, dict):
        check_rle(segmentation, image, where)
    else:
        segmentation = None
    if not segmentation:
        raise InputError(f"{where} has no segmentation; add a polygon or an RLE, or remove the annotation")
    box = None if bbox is None else tuple(bbox)
    crowd, category = bool(entry.get("iscrowd")), category if is_id(category) else None
    return Annotation(entry["id"], entry["area"], box, segmentation, image.size, crowd, category)


def _polygons(polygons: list[Any], where: str) -> list[list[float]]:
    """The polygons that enclose something: real files hold some of under three points (pycocotools: a box)."""
    for polygon in polygons:
        pairs = isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(is_number, polygon))
        if not pairs or any(abs(value) > MAX_COORDINATE for value in polygon):
            raise InputError(f"{where} has a polygon that is not a list of x, y pairs in pixels; fix it")
    return [polygon for polygon in polygons if len(polygon) >= 6]


def check_rle(rle: dict[str, Any], image: CocoImage, where: str) -> None:
    """Raise InputError, beginning with `where`, unless `rle` is an RLE, compressed or not, of the image's size."""
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
