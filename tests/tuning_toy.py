"""A tuning made by hand: rows of plausible figures, masks that differ, names of all kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from helpers import picture
from little_models import dense_config, dense_sam

from sam_bigltl.tuning.result import Disagreement, Row, Tuned
from sam_bigltl.tuning.settings import FORMATS, RATIOS, Setting

HOSTILE = ["<script>alert(1)</script>.jpg", "caf\udce9 & 'co'.jpg", '\U0001f408 "cat".png', "a\nb\u202e.jpg"]
_SPEED = {("float32", False): 1.3, ("float32", True): 1.7, ("bfloat16", False): 2.1, ("bfloat16", True): 4.6,
          ("int8", False): 3.4, ("int8", True): 6.8}  # fmt: skip
_LOSS = {"float32": 0.0, "bfloat16": 0.006, "int8": 0.02}


def row(setting: Setting, seconds: float, agreement: float, **changes: Any) -> Row:
    """A row of which only time and agreement matter."""
    figures = dict(
        speedup=0.4 / seconds, worst=agreement**4, above_90=agreement**2,
        by_size={"small": agreement**2, "medium": agreement, "large": None},
        by_prompt={"box": agreement**0.9, "point": agreement**1.1}, switched=0.03, embedding_error=1 - agreement,
        score_drift=0.3 * (1 - agreement), prompts=320,
    )  # fmt: skip
    return Row(setting, seconds, agreement=agreement, **(figures | changes))


def rows(original: float = 0.4) -> list[Row]:
    """Every setting, with `original` seconds of the original's encoder."""
    found = []
    for dtype, native in FORMATS:
        for ratio in RATIOS:
            share = 0.31 if ratio == "auto" else float(ratio)
            seconds = original / _SPEED[dtype, native] * (0.16 + 0.84 * share)
            agreement = (1 - _LOSS[dtype]) * (1 - 0.17 * (1 - share) ** 1.5 - 0.9 * max(0, 0.2 - share))
            found.append(row(Setting(dtype, native, ratio), seconds, agreement, speedup=original / seconds))
    for ratio in (0.5, 0.25):
        given = Setting("int8", True, ratio, True)
        near = next(each for each in found if each.setting == replace(given, focus=False))
        found.append(
            replace(near, setting=given, agreement=near.agreement + 0.02, unfocused=near.agreement,
                    by_prompt={"box": near.agreement + 0.02, "point": None}, switched=None)
        )  # fmt: skip
    return sorted(found, key=lambda each: (each.seconds, -each.agreement))


def disagreement(name: str, kind: str, seed: int, size: tuple[int, int] = (90, 140)) -> Disagreement:
    """Two overlapping ellipses on smooth noise."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    masks = [((x - width * cx) / (0.22 * width)) ** 2 + ((y - height / 2) / (0.3 * height)) ** 2 < 1
             for cx in (0.45, 0.45 + 0.06 * (seed + 1))]  # fmt: skip
    iou = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    box = (0.23 * width, 0.2 * height, 0.67 * width, 0.8 * height)
    prompt = box if kind == "box" else (0.45 * width, 0.5 * height)
    return Disagreement(name, picture(height, width, seed), kind, prompt, masks[0], masks[1], iou)


def tuned(target: float = 0.95, **changes: Any) -> Tuned:
    """A tuning whose model is a tiny Sam."""
    found = rows()
    good = [each for each in found if each.agreement >= target and not each.setting.focus]
    chosen = good[0] if good else max((r for r in found if not r.setting.focus), key=lambda each: each.agreement)
    fields: dict[str, Any] = dict(
        sam=dense_sam(dense_config(little_dim=8)), setting=chosen.setting, reached=bool(good), target=target,
        rows=found, reference_seconds=0.4,
        photographs={"fit": [f"fit {n}.jpg" for n in range(3)], "measure": HOSTILE[:],
                     "skipped": {"<b>half.png": "it is cut short & broken", "caf\udce9.gif": "no picture"}},
        about={"checkpoint": "runs/<mine>.safetensors", "model": "bigltl_mini", "original": "segment_anything",
               "machine": "some processor", "threads": 2, "torch": "2.15.0"},
        stages=[{"keep_ratio": "0.5", "fitted": 0.91, "trained": 0.94, "fitted_error": 0.2, "trained_error": 0.1}],
        worst=[disagreement(name, kind, seed) for seed, (name, kind) in
               enumerate(zip(HOSTILE, ("box", "point", "box", "point")))],
    )  # fmt: skip
    return Tuned(**(fields | changes))
