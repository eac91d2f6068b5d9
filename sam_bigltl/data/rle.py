"""Segmentations out of JSON, checked before pycocotools sees them: it may crash on broken ones."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .fields import is_number, whole_number

MAX_COORDINATE = 1e6  # pycocotools walks a polygon's edges pixel by pixel, also outside the image


def check_polygons(polygons: list[Any], where: str) -> list[list[float]]:
    """The polygons that enclose something: real files hold some of under three points (pycocotools: a box).

    Raises InputError, beginning with `where`, if one is no list of x, y pairs.
    """
    for polygon in polygons:
        pairs = isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(is_number, polygon))
        if not pairs or any(abs(value) > MAX_COORDINATE for value in polygon):
            raise InputError(f"{where} has a polygon that is not a list of x, y pairs in pixels; fix it")
    return [polygon for polygon in polygons if len(polygon) >= 6]


def check_rle(rle: dict[str, Any], size: tuple[int, int], where: str, image: object) -> dict[str, Any]:
    """An RLE of the size (H, W), compressed or not; integers written as 24.0 become 24, which pycocotools needs.

    `where` and `image`, an id, are for messages. Raises InputError, beginning with `where`, for anything else.
    """
    height, width = size
    own, counts = rle.get("size"), rle.get("counts")
    if not isinstance(own, list) or not isinstance(counts, (list, str)) or not counts:
        raise InputError(f"{where} has no segmentation that can be read: an RLE needs 'size' and 'counts'; fix it")
    if own != [height, width]:
        raise InputError(
            f"{where} has a segmentation of size {own}, but its image {image} is [{height}, {width}] "
            "(height, width); make them agree"
        )
    # pycocotools does not check this: it reads or writes past its buffer.
    given = list(map(whole_number, counts)) if isinstance(counts, list) else _run_lengths(counts)
    runs = [run for run in given if run is not None and run >= 0]
    if len(runs) != len(given) or sum(runs) != height * width:
        raise InputError(f"{where} has a segmentation whose RLE counts do not fill {height} x {width} pixels; fix it")
    return {"size": [height, width], "counts": runs if isinstance(counts, list) else counts}


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
