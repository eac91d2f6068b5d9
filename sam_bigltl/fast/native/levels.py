"""Which level of instructions the C++ kernels run in on this machine, and their functions in that level."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from ...errors import InputError
from ..devices import device_name
from . import build, caps
from .toolchain import LEVELS as _FLAGS

LEVELS: tuple[str, ...] = tuple(_FLAGS)  # from the plainest to the fastest, first of x86, then of Arm


def level() -> str | None:
    """The best level that the processor has, the library holds and the environment allows; None where there is none.

    The environment: ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA limit the kernels as they limit torch, and
    SAM_BIGLTL_CPU_LEVEL, one of LEVELS, limits them alone.
    """
    try:
        return _best(caps.settings())
    except InputError:
        return None


def function(name: str, restype: Any = ctypes.c_int) -> Any:
    """The C function `name` of the kernels in the best level, to be called without the GIL.

    Args:
        restype: what it returns, as a type of ctypes; None for nothing.

    Raises:
        InputError: this machine cannot have the kernels: one line with the reason.
    """
    return _function(caps.settings(), name, restype)


def explain() -> str:
    """One line: the processor, the level, and where the library is from, or why there is none."""
    processor = device_name(torch.device("cpu"))
    try:
        return f"{processor}: C++ kernels in {_best(caps.settings())}, {build.load().origin}"
    except InputError as error:
        return f"{processor}: no C++ kernels: {error}"


@functools.cache  # called at every layer
def _function(settings: tuple[str, ...], name: str, restype: Any) -> Any:
    found = build.load().kernels[f"bigltl_{_best(settings)}_{name}"]  # an object of its own, unlike an attribute
    found.restype = restype
    return found


@functools.cache
def _best(settings: tuple[str, ...]) -> str:
    allowed = caps.allowed(settings)
    found = [level for level in build.load().levels if level in allowed]
    if not found:  # a wheel whose compiler knew only higher levels
        raise InputError(f"the native kernels of this wheel have none of {', '.join(allowed)}: leave native out")
    return found[-1]
