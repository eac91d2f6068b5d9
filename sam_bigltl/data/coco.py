"""COCO-format instance annotations, checked as they are read: any "instances" JSON, COCO's and LVIS's among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import InputError
from .fields import (
    annotation_name,
    as_id,
    check_name,
    id_key,
    is_crowd,
    is_number,
    known_id,
    located,
    whole_number,
)
from .files import load_json
from .images import MOST_PIXELS, image_size, read_image
from .rle import check_polygons, check_rle


@dataclass(frozen=True)
class Annotation:
    """One object.

    `bbox` is (x, y, width, height) in pixels or None where the JSON has none; `area` is the JSON's own, in square
    pixels, or the mask's where it has none; `segmentation` is a list of polygons or an RLE; `size` is the image's
    (height, width).
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
    train2017/000000391895.jpg, and `flat_name` the last one. `ignore_exif`: whether `read_photo` leaves the pixels as
    they are stored, because the annotations do. `source`: of the image's entry, for sets put together from several.
    """

    id: int | str
    file_name: str
    size: tuple[int, int]
    annotations: list[Annotation] = field(default_factory=list)
    flat_name: str | None = None
    ignore_exif: bool = False
    source: str | None = None


@dataclass(frozen=True)
class Usage:
    """How many annotations are used, and how many are left out for each reason."""

    used: int
    left_out: dict[str, int] = field(default_factory=dict)

    def without(self, reason: str, number: int) -> Usage:
        """With some of those that are used left out as well."""
        return Usage(self.used - number, self.left_out | {reason: self.left_out.get(reason, 0) + number})

    def of(self, images: Sequence[CocoImage], reason: str) -> Usage:
        """With only those of `images` used, the others left out for `reason`."""
        return self.without(reason, self.used - sum(len(image.annotations) for image in images))

    def __add__(self, other: Usage) -> Usage:
        """Of two files together."""
        reasons = {reason: self.left_out.get(reason, 0) + other.left_out.get(reason, 0)
                   for reason in [*self.left_out, *other.left_out]}  # fmt: skip
        return Usage(self.used + other.used, reasons)

    def __str__(self) -> str:
        """Such as `annotations: 36 used, 15 left out (12 marked as crowd, 3 with area < 1)`."""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items() if number)
        left_out = f"{sum(self.left_out.values())} left out ({reasons})" if reasons else "none left out"
        return f"annotations: {self.used} used, {left_out}"


CROWD, SMALL = "marked as crowd", "with area < {:g}"  # reasons


def load_coco(
    path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False,
    folder: str | Path | None = None, ignore_exif: bool = False,
) -> list[CocoImage]:  # fmt: skip
    """Read the instances of a COCO-format JSON, grouped by image. `read_coco` tells what was left out, too.

    Images come in the order of their ids. The defaults are those of EfficientViT-SAM's evaluation. Ids and sizes may be
    written as 7.0, and an id as "7" in one place and 7 in another; an `area` that is missing is the mask's.

    Args:
        crowds: False leaves out annotations with `iscrowd`.
        min_area: annotations with a smaller `area` are left out, square pixels.
        empty_images: whether images with no annotation (left) are kept; a detector's AP needs them.
        folder: of the images, for the sizes of those whose `height` or `width` is missing.
        ignore_exif: whether the annotations are of the pixels as they are stored, not of the upright image.

    Raises:
        InputError: the file is missing, is not COCO-format JSON, holds nothing to use, or one of its annotations is
            unusable (its id is named).
    """
    return read_coco(path, crowds, min_area, empty_images, folder, ignore_exif)[0]


def read_coco(
    path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False,
    folder: str | Path | None = None, ignore_exif: bool = False,
) -> tuple[list[CocoImage], Usage]:  # fmt: skip
    """What `load_coco` returns, and how many annotations it left out."""
    return parse_coco(read_json(path), path, crowds, min_area, empty_images, folder, ignore_exif)


def parse_coco(
    content: dict[str, Any], path: str | Path, crowds: bool = True, min_area: float = 1.0, empty_images: bool = False,
    folder: str | Path | None = None, ignore_exif: bool = False,
) -> tuple[list[CocoImage], Usage]:  # fmt: skip
    """`read_coco` of a file that `read_json` has read already; `path` is for error messages."""
    images: dict[str, CocoImage] = {}
    for entry in content["images"]:
        image = _image(entry, path)
        image.ignore_exif = ignore_exif
        if images.setdefault(str(image.id), image) is not image:
            raise InputError(f"{path}: image id {image.id} appears twice; ids must be unique")
    seen: set[str] = set()
    crowd_count = small_count = 0
    for entry in content["annotations"]:
        where = annotation_name(entry, path, seen)
        area = _area(entry, where)
        if is_crowd(entry, where) and not crowds:
            crowd_count += 1
            continue
        if area is not None and area < min_area:
            small_count += 1
            continue
        owner = _image_of(entry, images)
        if owner is None:
            raise _unknown_image(entry, content["annotations"], images, path)
        _complete_size(owner, folder, path)
        annotation = _annotation(entry, area, owner, where)
        if annotation.area < min_area:  # which was missing
            small_count += 1
            continue
        owner.annotations.append(annotation)
    used = sorted((image for image in images.values() if image.annotations), key=_id_order)
    count = sum(len(image.annotations) for image in used)
    usage = Usage(count, {CROWD: crowd_count, SMALL.format(min_area): small_count})
    if not used:
        kind = "annotation" if crowds else "annotation that is not a crowd"
        raise InputError(
            f"{path} has no {kind} with an area of at least {min_area:g}: nothing is left to use ({usage})"
        )
    for image in used:
        image.annotations.sort(key=_id_order)
    chosen = sorted(images.values(), key=_id_order) if empty_images else used
    for image in chosen:
        _complete_size(image, folder, path)
    return chosen, usage


def check_image_files(images: Sequence[CocoImage], folder: str | Path) -> None:
    """Make sure, before hours of work, that every image's file is there.

    An image that the JSON names by `coco_url` only may lie in its subfolder (train2017, val2017) or else in `folder`
    itself; in the second case its `file_name` is set to the bare name. Backslashes in a name stand for "/" where there
    is no file of the very name.

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
    image.file_name = located(image.file_name, folder)
    if (folder / image.file_name).is_file():
        return True
    if image.flat_name is None or not (folder / image.flat_name).is_file():
        return False
    image.file_name = image.flat_name
    return True


def read_photo(path: Path, image: CocoImage) -> np.ndarray:
    """The pixels of the file at `path`, uint8 RGB (H, W, 3), of the size that the image's annotations are of.

    Raises:
        InputError: it cannot be read, or is of another size.
    """
    pixels = read_image(path, image.ignore_exif)
    if pixels.shape[:2] == image.size:
        return pixels
    height, width = image.size
    what = f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but the annotations say {width} x {height}"
    if image_size(path, not image.ignore_exif) != image.size:
        raise InputError(f"{what}: use the images that were annotated")
    if image.ignore_exif:
        raise InputError(f"{what}, its size once it is turned as its EXIF orientation says: leave out --ignore-exif")
    raise InputError(f"{what}, the size of its pixels before its EXIF orientation turns them: give --ignore-exif")


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


def _image(entry: dict[str, Any], path: str | Path) -> CocoImage:
    """An entry of "images"; its size is (0, 0) where a side is missing."""
    image_id = as_id(entry.get("id"))
    if image_id is None:
        raise InputError(f"{path}: an image has no integer or string 'id' (file_name {entry.get('file_name')!r})")
    where, name, flat_name = f"{path}: image {image_id}", entry.get("file_name"), None
    if not isinstance(name, str) or not name:
        parts = str(entry.get("coco_url", "")).split("/")[-2:]
        if len(parts) < 2 or not all(parts) or ".." in parts:
            raise InputError(f"{where} has no 'file_name' and no usable 'coco_url'; add one")
        name, flat_name = "/".join(parts), parts[1]
    check_name(name, where)
    source = entry.get("source")
    source = source if isinstance(source, str) else None
    sides = [entry.get(side) for side in ("height", "width")]
    if None in sides:
        return CocoImage(image_id, name, (0, 0), flat_name=flat_name, source=source)
    height, width = map(whole_number, sides)
    if height is None or width is None or min(height, width) < 1:
        raise InputError(f"{where} has no positive integer 'height' and 'width'; fix or remove them")
    if height * width > MOST_PIXELS:  # its masks would be as large
        raise InputError(f"{where} is {width} x {height}: images have {MOST_PIXELS} pixels at most")
    return CocoImage(image_id, name, (height, width), flat_name=flat_name, source=source)


def _complete_size(image: CocoImage, folder: str | Path | None, path: str | Path) -> None:
    """Take a size that the JSON lacks from the image's file."""
    if image.size != (0, 0):
        return
    if folder is None:
        raise InputError(f"{path}: image {image.id} has no 'height' and 'width'; add them")
    _locate(image, Path(folder))
    image.size = image_size(Path(folder) / image.file_name, image.ignore_exif)


def _image_of(entry: dict[str, Any], images: dict[str, CocoImage]) -> CocoImage | None:
    key = id_key(entry.get("image_id"))
    return None if key is None else images.get(key)


def _unknown_image(
    entry: dict[str, Any], entries: list[dict[str, Any]], images: dict[str, CocoImage], path: str | Path
) -> InputError:
    unknown = sum(_image_of(other, images) is None for other in entries)
    what = f"annotation {entry['id']} belongs to image {entry.get('image_id')!r}, which is not in 'images'"
    if 2 * unknown > len(entries):
        return InputError(
            f"{path}: {what}, and so it is with {unknown} of {len(entries)} annotations: 'images' seems to belong to "
            "another dataset; give the original file"
        )
    return InputError(f"{path}: {what}; add the image or remove the annotation")


def _area(entry: dict[str, Any], where: str) -> float | None:
    """The annotation's own, or None."""
    area = entry.get("area")
    if area is not None and not is_number(area):
        raise InputError(f"{where} has an 'area' that is no number; fix it, or leave it out")
    return area


def _annotation(entry: dict[str, Any], area: float | None, image: CocoImage, where: str) -> Annotation:
    """An annotation whose id and `iscrowd` are checked."""
    bbox = entry.get("bbox")
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
        raise InputError(f"{where} has a 'bbox' that is not four numbers [x, y, width, height]; fix it")
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = check_polygons(segmentation, where)
    elif isinstance(segmentation, dict):
        segmentation = check_rle(segmentation, image.size, where, image.id)
    else:
        segmentation = None
    if not segmentation:
        raise InputError(f"{where} has no segmentation; add a polygon or an RLE, or remove the annotation")
    box = None if bbox is None else tuple(bbox)
    crowd, category = is_crowd(entry, where), as_id(entry.get("category_id"))
    found = Annotation(known_id(entry["id"]), area or 0.0, box, segmentation, image.size, crowd, category)
    return found if area is not None else replace(found, area=float(coco_mask.area(found.rle())))
