"""What the page asks for, as values that are right: its messages may be forged, and are bytes that may be anything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from ..data.fields import is_number
from ..errors import InputError
from ..modeling.trunk import KeepRatio
from ..predict.prompt import Prompt

MOST_BYTES = 2**16  # of a message: 64 points take under 4 KB
MOST_POINTS = 64
MOST_POINTS_PER_SIDE = 64
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Message:
    """One message of the page.

    Its methods raise InputError of one line for what is missing or wrong.
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, content: bytes) -> Message:
        """The message in the body of a request: a JSON object."""
        try:
            values = json.loads(content, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise InputError("the page sent no JSON that can be read: reload it") from None
        if not isinstance(values, dict):
            raise InputError("the page sent no JSON object: reload it")
        return cls(values)

    @property
    def key(self) -> str:
        """Of a photograph."""
        value = self.values.get("key")
        if not isinstance(value, str) or not _KEY.fullmatch(value):
            raise InputError("the page sent a wrong key of a photograph: open the photograph again")
        return value

    @property
    def keep_ratio(self) -> KeepRatio:
        """In (0, 1], or "auto"."""
        value = self.values.get("keep_ratio")
        if value == "auto":
            return "auto"
        ratio = _number(value)
        if ratio is None or not 0 < ratio <= 1:
            raise InputError("the page sent a wrong keep_ratio: it is a number above 0 and up to 1, or auto")
        return ratio

    @property
    def choice(self) -> int:
        """Which of the three masks."""
        return self.integer("choice", 0, 2)

    def prompt(self, size: tuple[int, int]) -> Prompt:
        """Points and a box on a photograph of size (H, W): what lies outside is moved to its edge."""
        given = self.values.get("prompt")
        if not isinstance(given, dict):
            raise InputError("the page sent no prompt: reload it")
        points, labels, box = given.get("points", []), given.get("labels", []), given.get("box")
        if not isinstance(points, list) or not isinstance(labels, list) or len(points) != len(labels):
            raise InputError("the page sent a wrong prompt: it needs a label for every point")
        if len(points) > MOST_POINTS:
            raise InputError(f"an object takes {MOST_POINTS} points at most: remove some, or start a new object")
        if any(isinstance(label, bool) or label not in (0, 1) for label in labels):
            raise InputError("the page sent a wrong label: it is 1 on the object and 0 on the background")
        if not points and box is None:
            raise InputError("the page sent an empty prompt: click on the object, or draw a box around it")
        places = tuple(_place(point, size) for point in points)
        return Prompt(None if box is None else _box(box, size), places, tuple(map(int, labels)))

    def integer(self, name: str, least: int, most: int) -> int:
        """A whole number."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"the page sent a wrong {name}: it is a whole number from {least} to {most}")
        return value

    def share(self, name: str) -> float:
        """A number from 0 to 1."""
        value = _number(self.values.get(name))
        if value is None or not 0 <= value <= 1:
            raise InputError(f"the page sent a wrong {name}: it is a number from 0 to 1")
        return value


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else, integers that no float can hold among it."""
    return float(value) if is_number(value) else None


def _place(point: Any, size: tuple[int, int]) -> tuple[float, float]:
    numbers = [_number(value) for value in point] if isinstance(point, list) and len(point) == 2 else [None]
    if None in numbers:
        raise InputError("the page sent a wrong point: it is two numbers, x and y in pixels")
    x, y = (number for number in numbers if number is not None)
    return min(max(x, 0.0), float(size[1])), min(max(y, 0.0), float(size[0]))


def _box(box: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4:
        raise InputError("the page sent a wrong box: it is four numbers, two opposite corners in pixels")
    (x0, y0), (x1, y1) = _place(box[:2], size), _place(box[2:], size)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x1 <= x0 or y1 <= y0:
        raise InputError("that box has no area: drag from one corner of the object to the opposite one")
    return x0, y0, x1, y1


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON
