"""The settings that a tuning compares: a number format and a share of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..errors import InputError
from ..fast.native import build
from ..modeling.trunk import Trunk

RATIOS: tuple[float | str, ...] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625, "auto")
FORMATS = (("float32", False), ("bfloat16", False), ("bfloat16", True), ("int8", False), ("int8", True))


@dataclass(frozen=True)
class Setting:
    """How an encoder runs.

    Attributes:
        dtype: of `fast.precision.PRECISIONS`.
        native: whether the C++ kernels compute it.
        keep_ratio: see `BigLittleEncoder`.
        focus: whether every box is encoded for itself, with the big tokens sought in it (`SamPredictor.set_image`,
            `boxes`).
    """

    dtype: str = "float32"
    native: bool = False
    keep_ratio: float | tuple[float, ...] | str = 1.0
    focus: bool = False

    @property
    def format(self) -> str:
        """Such as "int8 with C++ kernels"."""
        return f"{self.dtype} with C++ kernels" if self.native else self.dtype

    @property
    def ratio(self) -> str:
        """The keep_ratio in words: "0.5", "0.5/0.25/0.5" or "auto"."""
        ratio = self.keep_ratio
        return "/".join(f"{each:g}" for each in ratio) if isinstance(ratio, tuple) else ratio_text(ratio)

    def __str__(self) -> str:
        return f"{self.format}, keep_ratio {self.ratio}" + ", boxes given" * self.focus

    def as_json(self) -> dict[str, Any]:
        """For files; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Setting:
        """What `as_json` gave. Raises InputError for anything else."""
        try:
            setting = cls(**content)
            if isinstance(setting.keep_ratio, list):
                setting = replace(setting, keep_ratio=tuple(setting.keep_ratio))
            if setting.format not in {cls(dtype, native).format for dtype, native in FORMATS}:
                raise TypeError
            return setting
        except TypeError:
            raise InputError(f"this is no setting of `sam-bigltl tune`: {str(content)[:100]}") from None


def ratio_text(ratio: float | str) -> str:
    return ratio if isinstance(ratio, str) else f"{ratio:g}"


def formats_here(device: torch.device) -> list[tuple[str, bool]]:
    """(dtype, native) of everything that runs on this machine."""
    if device.type != "cpu":
        return [("float32", False), ("bfloat16", False)]
    formats = [each for each in FORMATS if not each[1]]
    if not torch.backends.mkldnn.is_available():
        formats.remove(("int8", False))
    try:
        build.load()
    except InputError:  # the processor lacks the instructions, or there is no compiler
        return formats
    return list(FORMATS)


def settings_of(
    formats: Sequence[tuple[str, bool]],
    ratios: Sequence[float | tuple[float, ...] | str],
    focused: Sequence[float | str] = (),
) -> list[Setting]:
    """Every combination; `focused` are the ratios that are tried with boxes given, too, below 1.0."""
    found = [Setting(dtype, native, ratio) for dtype, native in formats for ratio in ratios]
    below = [ratio for ratio in focused if ratio != 1.0]
    return found + [Setting(dtype, native, ratio, True) for dtype, native in formats for ratio in below]


def apply(encoder: Trunk, setting: Setting) -> None:
    """Make `encoder` run as `setting` says, in place. Raises InputError where this machine cannot."""
    encoder.optimize(dtype=setting.dtype, native=setting.native)
    encoder.keep_ratio = setting.keep_ratio
