"""Which number format an accelerated encoder computes in."""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple

import torch

from ...errors import InputError
from ...fast.native import build
from ...fast.precision import PRECISIONS, check_precision


class Format(NamedTuple):
    """A format of `PRECISIONS`, and whether the C++ kernels run it."""

    dtype: str
    native: bool

    def __str__(self) -> str:
        return f"{self.dtype} with C++ kernels" if self.native else self.dtype


def choose(
    device: torch.device, dtype: str = "auto", native: bool | Literal["auto"] = "auto", training: bool = False
) -> Format:
    """The format to compute in; what "auto" chose is printed to stderr, in one line.

    Args:
        device: where the encoder is.
        dtype: "auto", or one of `PRECISIONS`.
        native: "auto", or whether to use the C++ kernels.
        training: the model is in training mode: "auto" is float32.

    Raises:
        InputError: a format that there is not, or that cannot run there.
    """
    if native not in (True, False, "auto"):
        raise InputError(f"native is True, False or 'auto', not {native!r}")
    if dtype != "auto":
        if dtype not in PRECISIONS:
            raise InputError(f"unknown dtype {dtype!r}: choose from auto, {', '.join(PRECISIONS)}")
        check_precision(dtype, device)
        if native != "auto" or dtype == "float32":
            return Format(dtype, native is True)
    chosen, reason = (dtype, "") if dtype != "auto" else _fastest(device, training, native is True)
    kernels, obstacle = _kernels(device, chosen) if native == "auto" else (bool(native), "")
    result = Format(chosen, kernels)
    why = ", ".join(filter(None, (reason, obstacle)))
    print(f"sam_bigltl.accelerate: {result} on {device}{why and f' ({why})'}", file=sys.stderr)
    return result


def _fastest(device: torch.device, training: bool, native: bool) -> tuple[str, str]:
    """The fastest format that keeps masks, and why; bfloat16 without hardware for it is several times slower."""
    if native:  # which float32 has none of
        return "bfloat16", ""
    if training:
        return "float32", "the model is in training mode"
    if device.type == "cpu":
        if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
            return "bfloat16", "this processor has AVX512-BF16"
        return "float32", "this processor has no AVX512-BF16"
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has bfloat16") if has_it else ("float32", "this GPU has no bfloat16")
    return "float32", ""


def _kernels(device: torch.device, dtype: str) -> tuple[bool, str]:
    """Whether the C++ kernels can run `dtype` there, and the reason where that is a surprise."""
    if device.type != "cpu" or dtype == "float32":
        return False, ""
    try:
        build.load()
    except InputError as error:
        return False, str(error).partition(":")[0]
    return True, ""


__all__ = ["PRECISIONS", "Format", "choose"]
