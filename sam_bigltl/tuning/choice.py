"""What was measured, as rows, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .agreement import Measured, summarise
from .result import Row
from .settings import Setting

ByPhotograph = Mapping[str, Measured]


def rows(measured: Mapping[Setting, ByPhotograph], reference: float, seconds: Mapping[Setting, float]) -> list[Row]:
    """A row a setting, the fastest first; `reference` are the seconds of the original."""
    found = []
    for setting, own in measured.items():
        row = summarise(setting, list(own.values()), seconds[setting], reference)
        if setting.focus:
            row = replace(row, unfocused=_unfocused(own, measured.get(replace(setting, focus=False), {})))
        found.append(row)
    return sorted(found, key=lambda row: (row.seconds, -row.agreement))


def _unfocused(focused: ByPhotograph, others: ByPhotograph) -> float | None:
    """Mean IoU without boxes given, over the prompts that were measured with them."""
    ious = [others[key].ious[index] for key, own in focused.items() if key in others for index in own.indices]
    return float(np.mean(ious)) if ious else None


def choose(found: Sequence[Row], target: float) -> tuple[Setting, bool]:
    """The fastest with at least the target's mean agreement, and whether there is one: else the most faithful."""
    candidates = [row for row in found if not row.setting.focus]
    good = [row for row in candidates if row.agreement >= target]
    if good:
        return min(good, key=lambda row: (row.seconds, -row.agreement)).setting, True
    return max(candidates, key=lambda row: (row.agreement, -row.seconds)).setting, False


def stages(before: Mapping[Setting, ByPhotograph], after: Mapping[Setting, ByPhotograph]) -> list[dict[str, Any]]:
    """Agreement and embedding error of each ratio in float32, fitted and trained."""
    table = []
    for setting, own in before.items():
        fitted, trained = (summarise(setting, list(part.values()), 1.0, 1.0) for part in (own, after.get(setting, own)))
        table.append({
            "keep_ratio": setting.ratio, "fitted": fitted.agreement, "trained": trained.agreement,
            "fitted_error": fitted.embedding_error, "trained_error": trained.embedding_error,
        })  # fmt: skip
    return table
