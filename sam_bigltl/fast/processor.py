"""What torch's own products do quickly on this processor.

Every format runs everywhere, but where the processor has no instructions for it, bfloat16 takes several times as long
as float32, and int8 minutes.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import torch

# Values of oneDNN's ONEDNN_MAX_CPU_ISA below those that have the instructions.
_NO_VNNI = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE")
_NO_BFLOAT16 = (*_NO_VNNI, "AVX512_CORE_VNNI")


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32: AVX512-BF16, AMX, or Arm's BF16 on Linux."""
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return sys.platform.startswith("linux") and "bf16" in _arm_features()
    return _has("_is_avx512_bf16_supported", "_is_amx_tile_supported") and not _is_capped(_NO_BFLOAT16)


def multiplies_int8() -> bool:
    """Whether oneDNN's int8 is faster than float32: AVX512-VNNI or AMX (with AVX-VNNI it was measured slow)."""
    if not torch.backends.mkldnn.is_available():
        return False
    return _has("_is_vnni_supported", "_is_amx_tile_supported") and not _is_capped(_NO_VNNI)


def _has(*tests: str) -> bool:
    """Whether one of torch's tests of the processor says so; not every version has all."""
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def _is_capped(lower: tuple[str, ...]) -> bool:
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    return cap.upper() in lower


def _arm_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    try:
        found = re.search(r"^Features\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return []
    return found[1].split() if found else []
