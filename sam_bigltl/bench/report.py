"""Rows, table, CSV and plot of a latency run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..data.tables import aligned
from ..errors import InputError
from .cases import Case
from .macs import Macs

COLUMNS = (
    "model", "keep_ratio", "dtype", "batch", "compiled", "native", "memory", "device", "torch", "threads", "runs",
    "median_s", "min_s", "max_s", "images_per_s", "speedup_vs_first", "speedup_vs_own_1.0", "gmacs",
    "gmacs_without_attention", "theoretical_speedup", "realised_over_theoretical", "gmacs_per_s",
    "gemm_peak_gmacs_per_s", "share_of_peak", "peak_memory_mb", "image_size", "weights",
)  # fmt: skip


def setting(case: Case) -> tuple[str, int, int, float]:
    """What the number of products depends on."""
    return case.model, case.image_size, case.batch, case.keep_ratio


def result_rows(
    cases: Sequence[Case],
    times: Sequence[Sequence[float]],
    environment: dict[str, Any],
    macs: Mapping[tuple[str, int, int, float], Macs],
    peaks: Mapping[str, float],
    memory: Sequence[int | None],
) -> list[dict[str, Any]]:
    """One dictionary per case, with the keys COLUMNS.

    The formats of the first model (at its first keep_ratio) come fastest first: the first row, which every
    `speedup_vs_first` refers to, is the baseline at its best; images a second are compared, so that batches may
    differ. `speedup_vs_own_1.0` compares with the same model, format and batch at keep_ratio 1.0.
    `theoretical_speedup` is the ratio of the products counted for both (all of them, attention included). What was not
    measured is None.

    Args:
        environment: device, torch and threads.
        macs: by `setting`.
        peaks: GMAC/s of matrix products by format.
        memory: bytes at the peak of each case, without the parameters.
    """
    found = list(zip(cases, (median(own) for own in times), times, memory, strict=True))
    first = [entry for entry in found if (entry[0].model, entry[0].keep_ratio) == (cases[0].model, cases[0].keep_ratio)]
    first.sort(key=lambda entry: entry[1] / entry[0].batch)
    ordered = first + [entry for entry in found if entry not in first]
    best = first[0][1] / first[0][0].batch
    full = {_without_ratio(case): own for case, own, _, _ in found if case.keep_ratio == 1.0}
    rows = []
    for case, own, own_times, peak in ordered:
        count, dense = macs.get(setting(case)), macs.get((*setting(case)[:3], 1.0))
        dense_time, speed = full.get(_without_ratio(case)), peaks.get(case.dtype)
        realised = None if dense_time is None else dense_time / own
        theoretical = dense.total / count.total if count and dense else None
        rate = count.total / own / 1e9 if count else None
        rows.append({
            "model": case.model, "keep_ratio": case.keep_ratio, "dtype": case.dtype, "batch": case.batch,
            "compiled": "yes" if case.compiled else "no", "native": "yes" if case.native else "no",
            "memory": case.memory, **environment, "runs": len(own_times),
            "median_s": own, "min_s": min(own_times), "max_s": max(own_times), "images_per_s": case.batch / own,
            "speedup_vs_first": best * case.batch / own, "speedup_vs_own_1.0": realised,
            "gmacs": count.total / 1e9 if count else None,
            "gmacs_without_attention": count.without_attention / 1e9 if count else None,
            "theoretical_speedup": theoretical,
            "realised_over_theoretical": realised / theoretical if realised and theoretical else None,
            "gmacs_per_s": rate, "gemm_peak_gmacs_per_s": speed,
            "share_of_peak": rate / speed if rate and speed else None,
            "peak_memory_mb": None if peak is None else (peak + case.parameter_bytes) / 1e6,
            "image_size": case.image_size, "weights": case.weights,
        })  # fmt: skip
    return rows


def _without_ratio(case: Case) -> tuple:
    return case.model, case.image_size, case.dtype, case.batch, case.compiled, case.native, case.memory


def output_path(output: Path, kind: str, device: torch.device, environment: dict[str, Any]) -> Path:
    """`output` itself if it ends in .csv; else a file in that folder.

    That is named after `kind`, device, torch version and threads.
    """
    if output.suffix == ".csv":
        return output
    words = f"{device.type} {environment['device']} torch{environment['torch']} {environment['threads']}threads"
    return output / f"{kind}_{re.sub(r'[^a-z0-9.]+', '-', words.lower()).strip('-')}.csv"


def check_output(output: Path) -> None:
    """Make the folder that `output_path` will name a file in. Raises InputError where that cannot be, before hours."""
    folder = output.parent if output.suffix == ".csv" else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None


def format_table(rows: Sequence[dict]) -> str:
    """The rows as a text table, times in milliseconds."""
    head = ("model", "px", "keep", "dtype", "batch", "median ms", "min ms", "max ms", "vs first", "vs own 1.0",
            "theory", "realised", "GMACs", "GMAC/s", "of peak", "MB")  # fmt: skip
    lines = [head]
    for row in rows:
        own, memory = row["speedup_vs_own_1.0"], row["peak_memory_mb"]
        lines.append((
            row["model"], str(row["image_size"]), f"{row['keep_ratio']:g}",
            format_name(row), str(row["batch"]),
            *(f"{1e3 * row[key]:.1f}" for key in ("median_s", "min_s", "max_s")),
            f"{row['speedup_vs_first']:.2f}x", "-" if own is None else f"{own:.2f}x",
            _shown(row["theoretical_speedup"], "{:.2f}x"), _shown(row["realised_over_theoretical"], "{:.2f}"),
            _shown(row["gmacs"], "{:.1f}"), _shown(row["gmacs_per_s"], "{:.0f}"),
            _shown(row["share_of_peak"], "{:.2f}"), _shown(memory, "{:.0f}"),
        ))  # fmt: skip
    return aligned(lines, left=(0, 3))


def format_name(row: dict[str, Any]) -> str:
    """The format of a row in words, such as "int8 native" or "float32, memory not kept"."""
    words = row["dtype"] + " native" * (row["native"] == "yes") + " compiled" * (row["compiled"] == "yes")
    return words + ", memory not kept" * (row["memory"] == "default")


def _shown(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)
