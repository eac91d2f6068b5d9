"""What one object is asked for with; without torch, which the processes that only read photographs do not load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .prompt_checks import check_box, clip_to_image


@dataclass(frozen=True)
class Prompt:
    """What one object is asked for with, in pixels: a box, points (N, 2) with labels (N,), or both."""

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `SamPredictor.predict`."""
        arguments = {} if self.box is None else {"box": np.array(self.box)}
        if self.points:
            arguments |= {"point_coords": np.array(self.points), "point_labels": np.array(self.labels)}
        return arguments

    def clipped(self, size: tuple[int, int]) -> Prompt:
        """The prompt with what rounding has put outside an image of size (H, W) on its edge.

        Raises InputError where more of it lies outside.
        """
        box, points = self.box, self.points
        if box is not None:
            check_box(box, size)
            box = tuple(clip_to_image(np.array(box).reshape(2, 2), size).ravel().tolist())
        if points:
            points = tuple(map(tuple, clip_to_image(np.array(points), size).tolist()))
        return Prompt(box, points, self.labels)

    def record(self) -> dict[str, Any]:
        """The prompt as JSON."""
        record: dict[str, Any] = {} if self.box is None else {"box": list(self.box)}
        if self.points:
            record |= {"point_coords": [list(point) for point in self.points], "point_labels": list(self.labels)}
        return record

    def __str__(self) -> str:
        parts = [] if self.box is None else ["box " + ",".join(f"{value:g}" for value in self.box)]
        if self.points:
            parts.append(f"{len(self.points)} point" + "s" * (len(self.points) > 1))
        return " + ".join(parts)


def usable(
    prompts: Sequence[Prompt | InputError], size: tuple[int, int], where: str = ""
) -> tuple[list[Prompt], list[InputError]]:
    """Of the prompts of an image of size (H, W) those that can be used, and what is wrong with the others.

    `where` is the image's name, for messages. A prompt that is known to be wrong is an InputError already.
    """
    good, bad = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            if isinstance(prompt, InputError):
                raise prompt
            prompt.clipped(size)
            good.append(prompt)
        except InputError as error:
            bad.append(InputError(f"{where}, prompt {number}: {error}") if where else error)
    return good, bad
