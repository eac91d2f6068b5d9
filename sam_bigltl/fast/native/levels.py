"""Stand-in, to be replaced by the real file of the same interface: which level of the kernels this processor runs."""

from __future__ import annotations

import os
from typing import Any

import torch

from ...errors import InputError

LEVELS = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "neon", "neon_dot", "neon_i8mm")
_CAPS = {"AVX2": 0, "AVX2_VNNI": 1, "AVX512_CORE": 2, "AVX512_CORE_VNNI": 3, "AVX512_CORE_BF16": 4}


def level() -> str | None:
    """The best level here, or None."""
    has = torch.cpu
    ranks = [-1]
    ranks += [0] * has._is_avx2_supported() + [2] * has._is_avx512_supported() + [3] * has._is_vnni_supported()
    ranks += [4] * getattr(has, "_is_avx512_bf16_supported", lambda: False)()
    best = max(ranks)
    best = min(best, {"avx2": 0, "default": -1}.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), 4))
    best = min(best, _CAPS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", ""), 4))
    own = os.environ.get("SAM_BIGLTL_CPU_LEVEL", "")
    best = min(best, LEVELS.index(own) if own in LEVELS else -1 if own else 4)
    return LEVELS[best] if best >= 0 else None


def function(name: str) -> Any:
    """The C function of that level."""
    raise InputError(f"no such kernel: {name}")
