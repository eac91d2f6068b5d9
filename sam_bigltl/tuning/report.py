"""What a tuning leaves in its folder: `tune.json`, `tune.png` and `report.html`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .. import __version__
from ..data.files import whole_file
from .page import page
from .plot import check_matplotlib, plot
from .result import Disagreement, Tuned
from .sentence import sentence, verdict
from .table import table

__all__ = ["as_json", "check_matplotlib", "plot", "sentence", "table", "write_report"]

JSON, PLOT, PAGE = "tune.json", "tune.png", "report.html"
VERSION = 1  # of tune.json


def write_report(tuned: Tuned, folder: str | PathLike[str]) -> Path:
    """Write `tune.png`, `report.html` and, once they are there, `tune.json`; each whole or not at all.

    Returns the path of the page. Raises InputError where matplotlib is missing or a file cannot be written.
    """
    folder = Path(folder)
    plot(tuned, folder / PLOT)
    with whole_file(folder / PAGE) as stream:
        stream.write(page(tuned))
    with whole_file(folder / JSON) as stream:
        json.dump(as_json(tuned), stream, indent=2, allow_nan=False)
        stream.write("\n")
    return folder / PAGE


def as_json(tuned: Tuned) -> dict[str, Any]:
    """Everything of a tuning but the model, in plain values; the fields are explained in docs/tune.md."""
    front = {row.setting for row in tuned.front()}
    return plain(
        {
            "version": VERSION,
            "sam_bigltl": __version__,
            "sentence": verdict(tuned),
            "setting": tuned.setting.as_json(),
            "reached": tuned.reached,
            "target": tuned.target,
            "model": None if tuned.path is None else str(tuned.path),
            "original_seconds": tuned.reference_seconds,
            "rows": [
                asdict(row) | {"front": row.setting in front, "chosen": row.setting == tuned.setting}
                for row in tuned.rows
            ],
            "stages": tuned.stages,
            "worst": [_disagreement(found) for found in tuned.worst],
            "photographs": tuned.photographs,
            "about": tuned.about,
        }
    )


def _disagreement(found: Disagreement) -> dict[str, Any]:
    return {
        "photograph": found.photograph, "kind": found.kind, "prompt": found.prompt, "iou": found.iou,
        "original": _rle(found.original), "tuned": _rle(found.tuned),
    }  # fmt: skip


def _rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a bool mask (H, W)."""
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def plain(value: Any) -> Any:
    """`value` as JSON has it: numbers that are not finite become null, numpy's become Python's, others text."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
