"""What a tuning measured and chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from segment_anything.modeling import Sam

from .settings import Setting

SIZES = ("small", "medium", "large")  # of COCO, by the area of the original's mask


@dataclass(frozen=True)
class Row:
    """One setting against the original, over all prompts of the measured photographs.

    Attributes:
        setting: what was measured.
        seconds: median of an encoder pass.
        speedup: the median of the original's encoder passes over it, from the same rounds.
        agreement: mean IoU of its masks with the original's, 0 to 1.
        worst: 5th percentile of that IoU.
        above_90: share of prompts with an IoU above 0.9.
        by_size: mean IoU of small, medium and large objects; None where there is none.
        by_prompt: mean IoU of "box" and "point"; None where there is none.
        switched: share of the points for which another of the three masks has the highest predicted IoU.
        embedding_error: squared error of the image embedding over the original's variance, mean over photographs.
        score_drift: mean absolute difference of the predicted IoU.
        prompts: how many.
        unfocused: with `setting.focus`, the mean IoU that the same prompts have without boxes given.
    """

    setting: Setting
    seconds: float
    speedup: float
    agreement: float
    worst: float
    above_90: float
    by_size: dict[str, float | None]
    by_prompt: dict[str, float | None]
    switched: float | None
    embedding_error: float
    score_drift: float
    prompts: int
    unfocused: float | None = None


@dataclass(frozen=True)
class Disagreement:
    """A prompt for which two models differ.

    Attributes:
        photograph: its key.
        pixels: uint8 RGB (H, W, 3).
        kind: "box" or "point". prompt: x0, y0, x1, y1, or x, y, in pixels.
        original, tuned: bool masks (H, W).
        iou: of them.
    """

    photograph: str
    pixels: np.ndarray = field(repr=False)
    kind: str
    prompt: tuple[float, ...]
    original: np.ndarray = field(repr=False)
    tuned: np.ndarray = field(repr=False)
    iou: float


@dataclass
class Tuned:
    """What `tune` returns.

    Attributes:
        sam: the big.LITTLE model, running as `setting` says.
        setting: the fastest with at least the wanted agreement; the most faithful where none has it.
        reached: whether it has.
        target: the wanted mean agreement.
        rows: every setting that was measured, the fastest first; those with boxes given are among them but are never
            chosen.
        reference_seconds: median of the original's encoder passes.
        photographs: names of those that it was fitted to ("fit") and measured on ("measure"), and of those that cannot
            be used, with the reason ("skipped").
        about: the model and the machine in words: "checkpoint", "model", "original" (whose encoder was timed),
            "machine", "threads", "torch", and what else was set.
        stages: what training, if any, did to the agreement: one row a ratio, before and after.
        worst: the largest disagreements of the chosen setting.
        path: of the safetensors file that was written, which holds the setting; None without an output folder.
    """

    sam: Sam
    setting: Setting
    reached: bool
    target: float
    rows: list[Row]
    reference_seconds: float
    photographs: dict[str, Any]
    about: dict[str, Any]
    stages: list[dict[str, Any]] = field(default_factory=list)
    worst: Sequence[Disagreement] = ()
    path: Path | None = None

    @property
    def row(self) -> Row:
        """What was measured of the chosen setting."""
        return next(row for row in self.rows if row.setting == self.setting)

    def front(self) -> list[Row]:
        """The rows that no other row beats in both time and agreement, the fastest first; without boxes given."""
        best, found = -1.0, []
        for row in sorted(self.rows, key=lambda row: (row.seconds, -row.agreement)):
            if not row.setting.focus and row.agreement > best:
                best = row.agreement
                found.append(row)
        return found
