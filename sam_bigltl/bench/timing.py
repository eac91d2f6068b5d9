"""Clocks and meters: interleaved times, peak memory, and what the machine's matrix products reach."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..errors import InputError
from ..fast.devices import synchronize
from ..fast.native import levels, ops
from ..fast.precision import PRECISIONS
from ..fast.processor import multiplies_int8
from ..fast.quantize import Int8Linear, qlinear, quantize_activation

# Rows, inner and outer width of products like those of the encoders; on a GPU larger ones, since it is not full before.
_SHAPES = {"cpu": ((1024, 768, 3072), (4096, 768, 3072), (2048, 2048, 2048)), "cuda": ((8192, 8192, 8192),)}
_STATUS = Path("/proc/self/status")


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(calls: Sequence[Callable[[], float]], runs: int, warmup: int) -> list[list[float]]:
    """Make `calls`, which return the seconds they took, in turns: `warmup` uncounted rounds, then `runs` counted ones.

    Returns the counted seconds of each call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for index in tqdm(range(warmup + runs), desc="passes over all cases", unit="pass", disable=None):
        for call, own_times in zip(calls, times):
            seconds = call()
            if index >= warmup:
                own_times.append(seconds)
    return times


def gemm_peak(dtype: str, device: torch.device, runs: int = 7) -> float:
    """GMAC/s of the fastest of a few matrix products (medians) of torch's in a format of `PRECISIONS`, or of the C++
    kernels' own products in it where those are faster."""
    best = kernel_peak(dtype) if device.type == "cpu" else 0.0
    if dtype == "int8" and not multiplies_int8():  # oneDNN would take minutes
        return best
    for rows, inner, outer in _SHAPES.get(device.type, _SHAPES["cuda"]):
        x = torch.randn(rows, inner, device=device, dtype=PRECISIONS[dtype])
        layer = nn.Linear(inner, outer, device=device, dtype=PRECISIONS[dtype])
        with torch.inference_mode():
            if dtype == "int8":
                packed, (levels, scale) = Int8Linear(layer), quantize_activation(x)
                product: Callable[[], Any] = partial(qlinear, packed, levels, scale)
            else:
                product = partial(layer, x)
            times = [timed(partial(_finish, product, device)) for _ in range(2 + runs)][2:]
        best = max(best, rows * inner * outer / median(times) / 1e9)
    return best


def kernel_peak(dtype: str, milliseconds: int = 300) -> float:
    """GMAC/s of the C++ kernels on operands in the cache, in a format of `PRECISIONS`; 0.0 without kernels."""
    try:
        function = levels.function("peak", ctypes.c_double)
    except InputError:
        return 0.0
    return function(*map(ctypes.c_int64, (ops.FORMATS[dtype], torch.get_num_threads(), milliseconds))) / 1e9


def _finish(call: Callable[[], Any], device: torch.device) -> None:
    call()
    synchronize(device)


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that `call` has alive at its peak on top of what there was before; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # another C library than glibc
        return None
    trim(0)  # what was freed would be used again without being seen
    before = resident_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    call()
    return max(0, resident_memory("VmHWM") - before)


def resident_memory(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, or at its peak ("VmHWM"). Linux only."""
    lines = _STATUS.read_text(errors="replace").splitlines()  # of which one is the name of the process
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
