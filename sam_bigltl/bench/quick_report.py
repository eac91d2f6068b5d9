"""The answer of `sam-bigltl bench --quick`, as text to paste into an issue: no names of people, machines or folders."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

import torch

from ..data.tables import aligned
from ..fast.devices import device_name
from ..fast.native import levels
from .quick import SAM, Quick, measured
from .report import format_name, result_rows

_LINE = "-" * 20 + " sam-bigltl bench --quick " + "-" * 20
_CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "SAM_BIGLTL_CPU_LEVEL", "OMP_NUM_THREADS")
_PATHS = re.compile(r"(?<![^\s(='\"])(?:[A-Za-z]:|~)?[\\/][^\s,;:()'\"]+")


def level_name(device: torch.device) -> str:
    """The level of the C++ kernels, or "none"."""
    try:
        return (device.type == "cpu" and levels.level()) or "none"
    except ValueError:  # InputError
        return "none"


def environment(device: torch.device) -> dict[str, Any]:
    """Device, with the level of the kernels there, torch and threads, as the columns of a result file."""
    kernels = level_name(device)
    name = device_name(device) + (f", {kernels} kernels" if kernels != "none" else "")
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def rows_of(quick: Quick) -> list[dict[str, Any]]:
    """What was measured, as rows of a result file; SAM's first, to which all speedups refer."""
    cases, times = measured(quick.rows)
    return result_rows(cases, times, environment(quick.device), quick.macs, quick.peaks, [None] * len(cases))


def block(quick: Quick, rows: list[dict[str, Any]], version: str) -> str:
    """Everything in plain text, between two lines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"sam_bigltl {version}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        f"{device_name(quick.device)}, {cores} CPU cores, {torch.get_num_threads()} threads, C++ kernels: "
        f"{level_name(quick.device)}",
    ]
    lines += [f"{name}={os.environ[name]}" for name in _CAPS if name in os.environ]
    lines.append(f"auto: {quick.chosen.line}")
    reached = ", ".join(f"{dtype} {rate:.0f} GMAC/s" for dtype, rate in quick.peaks.items())
    lines.append(f"matrix products: {reached or 'skipped (time)'}")
    lines += ["", table(quick, rows), ""]
    runs = f"{quick.rounds} run" + "s in turns, medians" * (quick.rounds > 1)
    lines.append(f"image encoders, batch 1; {runs}; {quick.elapsed:.0f} s of {60 * quick.minutes:.0f}")
    return "\n".join([_LINE, *(without_paths(line) for line in lines), "-" * len(_LINE)])


def table(quick: Quick, rows: list[dict[str, Any]]) -> str:
    """A line for each row, and what was skipped."""
    baseline = rows and rows[0]["model"] == SAM
    head = ("model", "px", "keep_ratio", "format", "ms", f"vs {SAM}" if baseline else "speedup", "of peak")
    cells = [head]
    for row in rows:
        share = row["share_of_peak"]
        cells.append((
            row["model"], str(row["image_size"]), f"{row['keep_ratio']:g}", format_name(row),
            f"{1e3 * row['median_s']:.1f}", f"{row['speedup_vs_first']:.2f}x", "-" if share is None else f"{share:.2f}",
        ))  # fmt: skip
    return "\n".join([aligned(cells, left=(0, 3)), *skipped(quick)])


def skipped(quick: Quick) -> list[str]:
    """What is not in the table, and why, a line for each model."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in quick.rows:
        if not row.seconds:
            formats = reasons.setdefault((row.model, row.skipped), {})
            formats.setdefault(row.format, []).append(f"{row.keep_ratio:g}")
    return [
        f"skipped ({reason}): {model} " + ", ".join(f"{name} at {' '.join(at)}" for name, at in formats.items())
        for (model, reason), formats in reasons.items()
    ]


def without_paths(text: str) -> str:
    """`text` with a word in the place of paths, which hold names of people."""
    return _PATHS.sub("PATH", text)
