"""Labelled crops of the objects of COCO-format annotations, as a folder with one folder a class."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import ArgumentParser, InputError, run_cli


def crop_objects(
    annotations: Path,
    images: Path,
    output: Path,
    side: int,
    margin: float,
    smallest: int,
    classes: Sequence[str] | None,
) -> Counter[str]:
    """Write a square crop around every object whose category is known.

    Args:
        annotations: COCO JSON; where an image says `category_known`, only images of which it is true count.
        images: folder of its images. output: folder to make.
        side: of the crops, pixels. margin: around the box, as a share of its longer side.
        smallest: objects whose box has a shorter side than this many pixels are left out.
        classes: names of the categories to take; None for all.

    Returns:
        crops a class. Raises InputError.
    """
    try:
        data = json.loads(annotations.read_text())
        names = {entry["id"]: entry["name"] for entry in data["categories"]}
        photos = {entry["id"]: entry for entry in data["images"] if entry.get("category_known", True)}
        objects = [entry for entry in data["annotations"] if entry["image_id"] in photos and not entry.get("iscrowd")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{annotations} is no COCO-format JSON with categories ({type(error).__name__}: {error})"
        ) from None
    counts: Counter[str] = Counter()
    by_image: dict[int, list[dict]] = {}
    for entry in objects:
        if min(entry["bbox"][2:]) >= smallest and (classes is None or names.get(entry["category_id"]) in classes):
            by_image.setdefault(entry["image_id"], []).append(entry)
    for image_id, entries in tqdm(by_image.items(), desc="crops", unit="image", disable=None):
        path = images / photos[image_id]["file_name"]
        try:
            photo = Image.open(path).convert("RGB")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error})") from None
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
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these categories (default: all)")

    def run(args: argparse.Namespace) -> None:
        if args.side < 1 or args.smallest < 1 or not 0 <= args.margin < 10:
            raise InputError("--side and --smallest are at least 1 and --margin is not negative")
        counts = crop_objects(
            args.annotations, args.images, args.output, args.side, args.margin, args.smallest, args.classes
        )
        print(f"{sum(counts.values())} crops of {len(counts)} classes in {args.output}: ", end="")
        print(", ".join(f"{name} {count}" for name, count in counts.most_common()))

    run_cli(parser.prog, run, parser.parse_args(argv))
