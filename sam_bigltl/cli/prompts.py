"""Boxes, points and keep ratios as words of a command line, and what is said of those that cannot be used."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from ..errors import InputError, in_one_line
from ..predict.prompt import Prompt


def parse_prompts(boxes: Sequence[str], points: Sequence[str]) -> list[Prompt]:
    """One prompt per box, or one of all points, with the box if there is exactly one."""
    if not boxes and not points:
        raise InputError("nothing to segment: give --box X0,Y0,X1,Y1 or --point X,Y")
    if len(boxes) > 1 and points:
        raise InputError("points belong to one object: give them with one --box at most, or leave them out")
    parsed_boxes = []
    for text in boxes:
        values = _numbers(text)
        if values is None or len(values) != 4:
            raise InputError(f"--box {text!r} is not a box: write X0,Y0,X1,Y1, as in --box 10,20,200,180")
        if values[2] <= values[0] or values[3] <= values[1]:
            raise InputError(f"--box {text} has no area: give the top left corner, then the bottom right one")
        x0, y0, x1, y1 = values
        parsed_boxes.append((x0, y0, x1, y1))
    coords, labels = [], []
    for text in points:
        values = _numbers(text)
        if values is None or len(values) not in (2, 3) or (len(values) == 3 and values[2] not in (0, 1)):
            raise InputError(f"--point {text!r} is not a point: write X,Y or X,Y,0 (0: not on the object)")
        coords.append((values[0], values[1]))
        labels.append(int(values[2]) if len(values) == 3 else 1)
    if coords:
        return [Prompt(parsed_boxes[0] if parsed_boxes else None, tuple(coords), tuple(labels))]
    return [Prompt(box) for box in parsed_boxes]


def parse_keep_ratio(text: str) -> float | tuple[float, ...] | str:
    """`auto`, a number in (0, 1], or several separated by commas, one a stage."""
    if text == "auto":
        return text
    values = _numbers(text)
    if values is None or not all(0 < value <= 1 for value in values):
        raise InputError(f"--keep-ratio {text!r}: give a number in (0, 1], one number a stage as in 1,0.5,0.5, or auto")
    return values[0] if len(values) == 1 else tuple(values)


def name_and_exit(wrong: Mapping[str, Iterable[InputError]]) -> NoReturn:
    """Name what could not be done, under a line on each kind of it, and end the process with code 1."""
    for line, errors in wrong.items():
        print(f"{line}:", file=sys.stderr)
        for error in errors:
            print("  " + in_one_line(str(error)), file=sys.stderr)
    sys.exit(1)


def _numbers(text: str) -> list[float] | None:
    """Comma-separated finite numbers, or None where `text` is anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None
