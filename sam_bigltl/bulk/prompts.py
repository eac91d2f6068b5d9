"""What is asked of each photograph, as columns that come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..predict.prompt import Prompt
from ..predict.prompt_checks import check_box, check_points

NAMES = ("key", "file_name", "__key__", "name", "path")  # of the column that names a photograph


@dataclass(frozen=True)
class Asked:
    """One object that is asked for: a prompt, or what is wrong with it, and the detector's category."""

    prompt: Prompt | InputError
    category: int | None = None


ByName = Mapping[str, Sequence[Asked]]


def of_columns(boxes: Any = None, points: Any = None, labels: Any = None) -> list[Asked]:
    """Prompts from the columns of one photograph.

    Args:
        boxes: (N, 4) corners x0, y0, x1, y1 in pixels, each a prompt.
        points: M prompts, each one point (x, y) or several (n, 2).
        labels: of the points of each prompt, one or several; 1, the object, where there are none.
    """
    found = [asked_for(box=box) for box in _list(boxes)]
    points, labels = _list(points), _list(labels)
    if labels and len(labels) != len(points):
        return [*found, Asked(InputError(f"{len(points)} points have {len(labels)} labels: give one of each"))]
    for number, each in enumerate(points):
        found.append(asked_for(points=each, labels=labels[number] if labels else None))
    return found


def of_json(content: Any) -> list[Asked]:
    """Prompts from the JSON beside a photograph in a tar: `boxes`, `points` and `labels`, or SA-1B's annotations.

    Of annotations the boxes are taken, x, y, width and height.
    """
    if not isinstance(content, dict):
        return []
    if not isinstance(content.get("annotations"), list):
        return of_columns(content.get("boxes"), content.get("points"), content.get("labels"))
    return [
        asked_for(xywh=each.get("bbox"), category=each.get("category_id"))
        for each in content["annotations"] if isinstance(each, dict) and each.get("bbox") is not None
    ]  # fmt: skip


def asked_for(
    box: Any = None, xywh: Any = None, points: Any = None, labels: Any = None, category: Any = None
) -> Asked:  # fmt: skip
    """One prompt from a box's corners, from x, y, width and height, or from points and labels; or what is wrong."""
    kind = category if isinstance(category, int) and not isinstance(category, bool) else None
    try:
        if points is None:
            corners = np.asarray(box if xywh is None else xywh, dtype=float)
            if xywh is not None and corners.shape == (4,):
                corners = np.array([*corners[:2], *(corners[:2] + corners[2:])])
            x0, y0, x1, y1 = check_box(corners).reshape(4).tolist()
            return Asked(Prompt((x0, y0, x1, y1)), kind)
        coords = np.asarray(points, dtype=float)
        coords = coords[None] if coords.ndim == 1 else coords
        kinds = np.ones(len(coords)) if labels is None else np.atleast_1d(np.asarray(labels))
        coords, kinds = check_points(coords, kinds)
        pairs = tuple((float(x), float(y)) for x, y in coords)
        return Asked(Prompt(None, pairs, tuple(int(value) for value in kinds)), kind)
    except InputError as error:
        return Asked(error, kind)
    except (TypeError, ValueError):
        return Asked(InputError("is no box (x0, y0, x1, y1) and no points (x, y) of numbers"), kind)


def _list(values: Any) -> list[Any]:
    if values is None:
        return []
    return list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
