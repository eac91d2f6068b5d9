"""The settings that a tuning compares: a number format and a share of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..convert.tuned import FORMATS, Setting, apply, ratio_text
from ..fast.choice import check, formats

__all__ = ["FORMATS", "RATIOS", "Setting", "apply", "formats_here", "ratio_text", "settings_of"]

RATIOS: tuple[float | str, ...] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625, "auto")


def formats_here(device: torch.device, dtypes: Sequence[str] | None = None) -> list[tuple[str, bool]]:
    """(dtype, native) of everything that is worth running on this machine, or of all that runs in the `dtypes` named.

    Raises InputError for one that does not run.
    """
    found = formats(device)
    if dtypes is None:
        return found
    for dtype in dtypes:
        if dtype not in {own for own, _ in found}:
            check(device, dtype, native=False)
            found.append((dtype, False))  # slow, but asked for
    return [each for each in found if each[0] in dtypes]


def settings_of(
    formats: Sequence[tuple[str, bool]],
    ratios: Sequence[float | tuple[float, ...] | str],
    focused: Sequence[float | str] = (),
) -> list[Setting]:
    """Every combination; `focused` are the ratios that are tried with boxes given, too, below 1.0."""
    found = [Setting(dtype, native, ratio) for dtype, native in formats for ratio in ratios]
    below = [ratio for ratio in focused if ratio != 1.0]
    return found + [Setting(dtype, native, ratio, True) for dtype, native in formats for ratio in below]
