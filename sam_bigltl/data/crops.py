"""Labelled crops of the objects of COCO-format annotations, as a folder with one folder a class."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import ArgumentParser, InputError, run_cli
from .coco import CROWD, CocoImage, Usage, read_json, read_photo
from .fields import (  # fmt: skip
    annotation_name,
    as_id,
    check_name,
    id_key,
    is_crowd,
    is_id,
    is_number,
    known_id,
    known_key,
    located,
    whole_number,
)
from .images import MOST_PIXELS, read_image
from .rle import MAX_COORDINATE

MOST_SIDE = 8192


def crop_objects(
    annotations: Path,
    images: Path,
    output: Path,
    side: int,
    margin: float,
    smallest: int,
    classes: Sequence[str] | None,
    by: str = "name",
    most: int | None = None,
    ignore_exif: bool = False,
) -> tuple[Counter[str], Usage]:
    """Write a square crop around every object whose category is known.

    Args:
        annotations: COCO JSON; where an image says `category_known`, only images of which it is true count.
        images: folder of its images. output: folder to make.
        side: of the crops, pixels. margin: around the box, as a share of its longer side.
        smallest: objects whose box has a shorter side than this many pixels are left out.
        classes: names of the classes to take; None for all.
        by: "name" or "supercategory" of the categories: what makes a class.
        most: crops of a class at most: the first of them, one of every photograph before the second of any.
        ignore_exif: whether boxes are in the pixels as they are stored, not in the upright photograph.

    Returns:
        crops a class, and how many annotations are left out. Raises InputError.
    """
    data = read_json(annotations)
    names = _names(data, by, annotations)
    photos = {id_key(entry.get("id")): entry for entry in data["images"]}
    by_class: dict[str, dict[str, list[dict]]] = {}  # then by photograph
    usage = Usage(len(data["annotations"]))
    seen: set[str] = set()
    for entry in data["annotations"]:
        where, image_id = annotation_name(entry, annotations, seen), id_key(entry.get("image_id"))
        reason = None
        if image_id is None or image_id not in photos:
            reason = "of images that are not in the JSON"
        elif not photos[image_id].get("category_known", True):
            reason = "of images whose categories are not known"
        elif is_crowd(entry, where):
            reason = CROWD
        else:
            _check(entry, photos[image_id], where)
            name = names.get(known_key(entry["category_id"]))
            if name is None or (classes is not None and name not in classes):
                reason = "of other classes"
            elif min(entry["bbox"][2:]) < smallest:
                reason = f"narrower than {smallest} pixels"
            else:
                by_class.setdefault(name, {}).setdefault(image_id, []).append(entry)
        if reason:
            usage = usage.without(reason, 1)
    counts: Counter[str] = Counter()
    by_image: dict[str, list[dict]] = {}
    for photographs in by_class.values():
        rounds = (entry for turn in zip_longest(*photographs.values()) for entry in turn if entry is not None)
        for entry in islice(rounds, most):
            by_image.setdefault(known_key(entry["image_id"]), []).append(entry)
    usage = usage.without("beyond --most", usage.used - sum(map(len, by_image.values())))
    for image_id, entries in tqdm(by_image.items(), desc="crops", unit="image", disable=None):
        photo = Image.fromarray(_pixels(photos[image_id], images, ignore_exif))
        for entry in entries:
            if not _overlaps(entry["bbox"], photo):
                where = f"{annotations}: annotation {entry['id']!r} has a 'bbox' {entry['bbox']}"
                raise InputError(
                    f"{where} that lies outside its {photo.width} x {photo.height} photograph or dwarfs it: fix it"
                )
            name = names[known_key(entry["category_id"])]
            folder = output / _folder(name)
            folder.mkdir(parents=True, exist_ok=True)
            crop = _square(photo, entry["bbox"], margin, side)
            crop.save(folder / f"{image_id}_{as_id(entry['id'])}.jpg", quality=92)
            counts[name] += 1
    if not counts:
        raise InputError(f"{annotations} has no objects of known categories that are large enough ({usage})")
    return counts, usage


def _pixels(entry: dict[str, Any], folder: Path, ignore_exif: bool) -> np.ndarray:
    """A photograph, of the size that the JSON says if it does."""
    name = located(entry["file_name"], folder)
    height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
    if height is None or width is None:
        return read_image(folder / name, ignore_exif)
    image = CocoImage(known_id(entry["id"]), name, (height, width), ignore_exif=ignore_exif)
    return read_photo(folder / name, image)


def _overlaps(box: Sequence[float], photo: Image.Image) -> bool:
    """Whether a box (x, y, width, height) shows a part of the photograph and is not far larger than it."""
    x, y, width, height = box
    inside = x < photo.width and y < photo.height and x + width > 0 and y + height > 0
    return inside and max(width, height) <= 2 * max(photo.size)


def _square(photo: Image.Image, box: Sequence[float], margin: float, side: int) -> Image.Image:
    """The square around a box (x, y, width, height), black beyond the photograph, resized to `side`."""
    x, y, width, height = box
    half = max(width, height) * (0.5 + margin)
    if 4 * half**2 > MOST_PIXELS:  # before it is allocated
        scale = MOST_PIXELS**0.5 / (2 * half)
        photo = photo.resize([max(1, round(length * scale)) for length in photo.size], Image.Resampling.BICUBIC)
        x, y, width, height, half = (value * scale for value in (x, y, width, height, half))
    x, y = x + width / 2, y + height / 2  # the middle
    left, top, right, bottom = (round(value) for value in (x - half, y - half, x + half, y + half))
    return photo.crop((left, top, right, bottom)).resize((side, side), Image.Resampling.BICUBIC)


def _names(data: dict[str, Any], by: str, path: Path) -> dict[str, str]:
    """The class of every category, by `id_key`."""
    entries = data.get("categories")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and is_id(entry.get("id")) for entry in entries
    ):
        raise InputError(f"{path} has no 'categories' with an 'id' each: give a COCO-format file with categories")
    folders: dict[str, str] = {}
    for entry in entries:
        name = entry.get(by)
        if not isinstance(name, str) or not _is_file_name(_folder(name)) or name.startswith("."):
            raise InputError(f"{path}: category {entry['id']} has no {by!r} that can be the name of a folder")
        if (other := folders.setdefault(_folder(name), name)) != name:
            raise InputError(f"{path}: the folders of {other!r} and {name!r} would have one name: rename one of them")
    return {known_key(entry["id"]): entry[by] for entry in entries}


def _check(entry: dict[str, Any], photo: dict[str, Any], where: str) -> None:
    """Raise InputError, beginning with `where`, unless an object of `photo` can be cut out."""
    box = entry.get("bbox")
    if not is_id(entry.get("category_id")):
        raise InputError(f"{where} has no 'category_id': add it")
    check_name(photo.get("file_name"), f"{where} is of an image that")
    if not all(_is_file_name(known_key(value)) for value in (entry["id"], entry["image_id"])):
        raise InputError(f"{where} has an id that cannot be part of a file's name")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) and abs(v) <= MAX_COORDINATE for v in box):
        raise InputError(f"{where} has no 'bbox' of four numbers [x, y, width, height]: fix it")


def _folder(name: str) -> str:
    return name.replace(" ", "_").replace("/", "_")


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and Path(text).name == text and len(text) < 100 and text.isprintable()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/object_crops.py`."""
    parser = ArgumentParser(prog="object_crops.py", description=__doc__)
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--side", type=int, default=96, help="of the crops, pixels (96)")
    parser.add_argument("--margin", type=float, default=0.1, help="around the box, as a share of its longer side (0.1)")
    parser.add_argument("--smallest", type=int, default=32, help="least side of a box, pixels (32)")
    parser.add_argument("--by", choices=["name", "supercategory"], default="name", help="what makes a class (name)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes (default: all)")
    parser.add_argument("--most", type=int, help="crops of a class at most (default: all)")
    parser.add_argument("--ignore-exif", action="store_true", help="read images as they are stored, as their boxes do, "
                        "not turned as EXIF says")  # fmt: skip

    def run(args: argparse.Namespace) -> None:
        if min(args.side, args.smallest, 1 if args.most is None else args.most) < 1 or not 0 <= args.margin < 10:
            raise InputError("--side, --smallest and --most are at least 1 and --margin is not negative")
        if args.side > MOST_SIDE:
            raise InputError(f"--side is {MOST_SIDE} at most, not {args.side}")
        counts, usage = crop_objects(
            args.annotations, args.images, args.output, args.side, args.margin, args.smallest, args.classes, args.by,
            args.most, args.ignore_exif,
        )  # fmt: skip
        print(f"{sum(counts.values())} crops of {len(counts)} classes in {args.output}: ", end="")
        print(", ".join(f"{name} {count}" for name, count in counts.most_common()))
        print(usage)

    run_cli(parser.prog, run, parser.parse_args(argv))
