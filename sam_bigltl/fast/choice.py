"""Which number format an encoder computes in, and whether the C++ kernels do it: the one place that decides."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..errors import InputError, SlowFormat
from .devices import device_name
from .native import levels
from .native.caps import WrongLevel
from .precision import PRECISIONS, check_precision
from .processor import multiplies_bfloat16, multiplies_int8

# What "auto" takes at each level of the C++ kernels: the fastest format that keeps masks, as int8 does as well as
# bfloat16 (docs/masks.md). Of Arm's levels only correctness was measured.
AUTO = {
    "avx2": "int8",
    "avx2_vnni": "int8",
    "avx2_vnni_vl": "int8",
    "avx512": "int8",
    "avx512_vnni": "int8",
    "avx512_bf16": "int8",
    "neon": "float32",
    "neon_dot": "int8",
    "neon_i8mm": "int8",
}
# The levels whose kernels have a format; formats that are not here are in all of them.
_ONLY_IN = {"bfloat16": ("avx512_bf16",)}
# Formats that run in the kernels where nobody said whether; float32 by name is torch's own, as SAM computes it.
_KERNELS_UNASKED = ("bfloat16", "int8")

Native = bool | Literal["auto"]


@dataclass(frozen=True)
class Choice:
    """What an encoder computes in.

    Attributes:
        dtype: of `PRECISIONS`.
        native: whether the C++ kernels compute it.
        line: what "auto" chose, on what, and why, in one line; empty where nothing was left to it.
    """

    dtype: str
    native: bool
    line: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.dtype} with C++ kernels" if self.native else self.dtype

    def say(self) -> None:
        """Print the line to stderr, once in a process."""
        if self.line and self.line not in _SAID:
            _SAID.add(self.line)
            print(f"sam_bigltl: {self.line}", file=sys.stderr)


_SAID: set[str] = set()


def choose(
    device: torch.device, dtype: str = "auto", native: Native = "auto", training: bool = False, stacklevel: int = 3,
    keeps_weights: bool = False,
) -> Choice:  # fmt: skip
    """What to compute in on `device`; the caller may `say()` it.

    Args:
        dtype: "auto", or one of `PRECISIONS`.
        native: whether to use the C++ kernels; "auto": where they can be had, but not for a float32 that is asked for
            by name.
        training: the model is in training mode, in which "auto" is float32 without kernels.
        keeps_weights: "auto" takes no int8, whose weights nobody can read, train or save afterwards.
        stacklevel: of the warning, as `warnings.warn` counts it from here.

    Raises:
        InputError: what there is not, what cannot run there, and what takes minutes there (int8 by torch on a processor
            without instructions for it). bfloat16 that is slow there is only warned about.
    """
    if native not in (True, False, "auto"):
        raise InputError(f"native is True, False or 'auto', not {native!r}")
    if dtype not in (*PRECISIONS, "auto"):
        raise InputError(f"unknown dtype {dtype!r}: choose from auto, {', '.join(PRECISIONS)}")
    wanted = native is True or (native == "auto" and (dtype in _KERNELS_UNASKED or (dtype == "auto" and not training)))
    level, obstacle = _level(device, needed=native is True) if wanted else (None, "")
    chosen, reason = (
        (dtype, "") if dtype != "auto" else _fastest(device, level, training and native is not True, keeps_weights)
    )
    kernels = native is True or (level is not None and _has(level, chosen))
    check(device, chosen, kernels)
    if chosen == "bfloat16" and not kernels and is_slow(device, chosen):
        warnings.warn(
            f"this processor does not multiply bfloat16, which is slower than float32 here: {_instead(device)}",
            SlowFormat, stacklevel=stacklevel,
        )  # fmt: skip
        return Choice(chosen, kernels)
    if dtype != "auto" and (native != "auto" or dtype not in _KERNELS_UNASKED or device.type != "cpu"):
        return Choice(chosen, kernels)
    where = f" on {device_name(device)}" + f" ({device})" * (device.type != "cpu")
    what = f"{chosen} with C++ kernels ({level})" if kernels else chosen
    why = "; ".join(filter(None, (reason, obstacle and f"without C++ kernels, as {obstacle}")))
    return Choice(chosen, kernels, f"{what}{where}{why and f': {why}'}")


def check(device: torch.device, dtype: str, native: bool) -> None:
    """Raise InputError where a format of `PRECISIONS` cannot run on `device`, or takes minutes there."""
    check_precision(dtype, device)
    if native:
        level, _ = _level(device, needed=True)
        if not _has(level, dtype):
            raise InputError(
                f"the C++ kernels of this processor ({level}) do not compute in {dtype}: choose float32 or int8 "
                "(--dtype), or leave native (--native) out"
            )
    elif dtype == "int8" and not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    ):
        raise InputError(f"int8 without the C++ kernels needs oneDNN, which this torch lacks: {_instead(device)}")
    elif dtype == "int8" and is_slow(device, dtype):
        raise InputError(f"int8 without the C++ kernels takes minutes on this processor: {_instead(device)}")


def is_slow(device: torch.device, dtype: str) -> bool:
    """Whether torch's own products in a format are slower on `device` than in float32, as there are no instructions."""
    if device.type == "cpu":
        return (dtype == "bfloat16" and not multiplies_bfloat16()) or (dtype == "int8" and not multiplies_int8())
    return dtype == "bfloat16" and device.type == "cuda" and not _gpu_has_bfloat16(device)


def formats(device: torch.device) -> list[tuple[str, bool]]:
    """(dtype, native) of everything that is worth running on `device`, float32 first."""
    if device.type != "cpu":
        return [(dtype, False) for dtype in ("float32", "bfloat16") if not is_slow(device, dtype)]
    level, _ = _level(device, needed=False)
    found = []
    for dtype in PRECISIONS:
        if not is_slow(device, dtype):
            found.append((dtype, False))
        if level is not None and _has(level, dtype):
            found.append((dtype, True))
    return found


def _fastest(device: torch.device, level: str | None, training: bool, keeps_weights: bool) -> tuple[str, str]:
    """The fastest format that keeps masks, and why."""
    if training:
        return "float32", "the model is in training mode"
    if device.type == "cuda":
        has_it = _gpu_has_bfloat16(device)
        return ("bfloat16", "this GPU has bfloat16") if has_it else ("float32", "this GPU has no bfloat16")
    if device.type != "cpu":
        return "float32", ""
    without = "bfloat16" if multiplies_bfloat16() else "float32"
    chosen = without if level is None else AUTO[level]
    if chosen == "int8":
        if not keeps_weights:
            return chosen, "the fastest of its kernels, and masks stay"
        chosen = "bfloat16" if _has(level, "bfloat16") else "float32"
    if chosen == "bfloat16":
        return chosen, "this processor multiplies bfloat16"
    if not multiplies_bfloat16():
        return chosen, "this processor does not multiply bfloat16"
    return chosen, "the fastest of its kernels that keeps masks"


def _level(device: torch.device, needed: bool) -> tuple[str | None, str]:
    """The level of the C++ kernels, or None and what is in their way. Raises InputError where they are needed."""
    if device.type != "cpu":
        if needed:
            raise InputError(f"the C++ kernels run on the CPU only, not on {device}: leave native (--native) out")
        return None, ""
    level = levels.level()
    if level is None:
        try:
            levels.function("has")
        except InputError as error:  # with the reason
            if needed or isinstance(error, WrongLevel):
                raise
            return None, str(error).partition(":")[0]
    return level, ""


def _has(level: str | None, dtype: str) -> bool:
    return level in _ONLY_IN.get(dtype, (level,))


def _gpu_has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _instead(device: torch.device) -> str:
    """What to use in place of a slow format."""
    level, _ = _level(device, needed=False)
    return "use auto (--dtype auto)" + " or int8 with the C++ kernels (--native)" * (level is not None)
