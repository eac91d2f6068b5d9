"""The settings that a tuning compares: a number format and a share of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..convert.tuned import FORMATS, Setting, apply, ratio_text
from ..fast.choice import formats

__all__ = ["FORMATS", "RATIOS", "Setting", "apply", "formats_here", "ratio_text", "settings_of"]

RATIOS: tuple[float | str, ...] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625, "auto")


def formats_here(device: torch.device) -> list[tuple[str, bool]]:
    """(dtype, native) of everything that is worth running on this machine."""
    return formats(device)


def settings_of(
    formats: Sequence[tuple[str, bool]],
    ratios: Sequence[float | tuple[float, ...] | str],
    focused: Sequence[float | str] = (),
) -> list[Setting]:
    """Every combination; `focused` are the ratios that are tried with boxes given, too, below 1.0."""
    found = [Setting(dtype, native, ratio) for dtype, native in formats for ratio in ratios]
    below = [ratio for ratio in focused if ratio != 1.0]
    return found + [Setting(dtype, native, ratio, True) for dtype, native in formats for ratio in below]
