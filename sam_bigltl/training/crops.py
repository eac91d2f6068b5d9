"""Labelled crops of the objects of COCO-format annotations, as a folder with one folder a class."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import ArgumentParser, InputError, run_cli
from ..images import read_image


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
) -> Counter[str]:
    """Write a square crop around every object whose category is known.

    Args:
        annotations: COCO JSON; where an image says `category_known`, only images of which it is true count.
        images: folder of its images. output: folder to make.
        side: of the crops, pixels. margin: around the box, as a share of its longer side.
        smallest: objects whose box has a shorter side than this many pixels are left out.
        classes: names of the classes to take; None for all.
        by: "name" or "supercategory" of the categories: what makes a class.
        most: crops of a class at most: the first of them, one of every photograph before the second of any.

    Returns:
        crops a class. Raises InputError.
    """
    try:
        data = json.loads(annotations.read_text())
        names = {entry["id"]: entry[by] for entry in data["categories"]}
        photos = {entry["id"]: entry for entry in data["images"] if entry.get("category_known", True)}
        objects = [entry for entry in data["annotations"] if entry["image_id"] in photos and not entry.get("iscrowd")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{annotations} is no COCO-format JSON with categories ({type(error).__name__}: {error})"
        ) from None
    by_class: dict[str, dict[int, list[dict]]] = {}  # then by photograph
    for entry in objects:
        name = names.get(entry["category_id"])
        if min(entry["bbox"][2:]) >= smallest and name is not None and (classes is None or name in classes):
            by_class.setdefault(name, {}).setdefault(entry["image_id"], []).append(entry)
    counts: Counter[str] = Counter()
    by_image: dict[int, list[dict]] = {}
    for name, photographs in by_class.items():
        rounds = (entry for turn in zip_longest(*photographs.values()) for entry in turn if entry is not None)
        for entry in islice(rounds, most):
            by_image.setdefault(entry["image_id"], []).append(entry)
    for image_id, entries in tqdm(by_image.items(), desc="crops", unit="image", disable=None):
        path = images / photos[image_id]["file_name"]
        photo = Image.fromarray(read_image(path))
        for entry in entries:
            x, y, width, height = entry["bbox"]
            half = max(width, height) * (0.5 + margin)
            middle = x + width / 2, y + height / 2
            box = tuple(
                round(value) for value in (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
            )
            name = names[entry["category_id"]]
            folder = output / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            crop = photo.crop(box).resize((side, side), Image.Resampling.BICUBIC)  # beyond the photograph it is black
            crop.save(folder / f"{image_id}_{entry['id']}.jpg", quality=92)
            counts[name] += 1
    if not counts:
        raise InputError(f"{annotations} has no objects of known categories that are large enough")
    return counts


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

    def run(args: argparse.Namespace) -> None:
        if min(args.side, args.smallest, 1 if args.most is None else args.most) < 1 or not 0 <= args.margin < 10:
            raise InputError("--side, --smallest and --most are at least 1 and --margin is not negative")
        counts = crop_objects(
            args.annotations, args.images, args.output, args.side, args.margin, args.smallest, args.classes, args.by,
            args.most,
        )  # fmt: skip
        print(f"{sum(counts.values())} crops of {len(counts)} classes in {args.output}: ", end="")
        print(", ".join(f"{name} {count}" for name, count in counts.most_common()))

    run_cli(parser.prog, run, parser.parse_args(argv))
