"""Which levels the environment allows: torch's limits, oneDNN's, and our own."""

from __future__ import annotations

import os
import platform

from ...errors import InputError
from .toolchain import levels_of

OURS = "SAM_BIGLTL_CPU_LEVEL"
# The highest level of each setting. ATen knows no VNNI, so its "avx2" and "avx512" say nothing against it.
_ATEN: dict[str, str | None] = {"default": None, "avx2": "avx2_vnni_vl"}
_ONEDNN: dict[str, str | None] = {
    "sse41": None, "avx": None, "avx2": "avx2", "avx2_vnni": "avx2_vnni_vl", "avx2_vnni_2": "avx2_vnni_vl",
    "avx512_core": "avx512", "avx512_core_vnni": "avx512_vnni",
}  # fmt: skip
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", OURS)


class WrongLevel(InputError):
    """A value of SAM_BIGLTL_CPU_LEVEL that there is not."""


def settings() -> tuple[str, ...]:
    """The values of VARIABLES now, empty where one is not set."""
    return tuple(os.environ.get(name, "").strip().lower() for name in VARIABLES)


def allowed(values: tuple[str, ...]) -> tuple[str, ...]:
    """The levels of this kind of processor that VARIABLES with these values allow, from the plainest.

    Raises:
        InputError: SAM_BIGLTL_CPU_LEVEL is no level of this kind of processor, or the others forbid all levels.
    """
    levels, ours = levels_of(platform.machine()), values[-1]
    if ours and ours not in levels:
        raise WrongLevel(f"{OURS} is one of {', '.join(levels) or 'no level here'}, not {ours!r}")
    limits: tuple[dict[str, str | None], ...] = (_ATEN, _ONEDNN, {level: level for level in levels})
    for variable, value, highest_of in zip(VARIABLES, values, limits):
        highest = highest_of.get(value)
        if levels and levels[0].startswith("avx") and value in highest_of and highest is None:
            raise InputError(f"native kernels are switched off by {variable}={value}: unset it, or leave native out")
        if highest in levels:
            levels = levels[: levels.index(highest) + 1]
    return levels
