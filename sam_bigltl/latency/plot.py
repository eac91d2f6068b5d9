"""The picture of a latency run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .report import format_name


def plot(path: Path, rows: Sequence[dict]) -> None:
    """Time against keep_ratio, a line for each model and format, dashed what its products alone would give."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["image_size"], format_name(row), row["batch"]), []).append(row)
    for (model, size, words, batch), own in lines.items():
        own.sort(key=lambda row: row["keep_ratio"])
        ratios, medians = [row["keep_ratio"] for row in own], [1e3 * row["median_s"] for row in own]
        errors = [
            [1e3 * (row["median_s"] - row["min_s"]) for row in own],
            [1e3 * (row["max_s"] - row["median_s"]) for row in own],
        ]
        label = f"{model} {size} px {words}{f' x {batch}' if batch > 1 else ''}"
        line = axes.errorbar(ratios, medians, errors, marker="o", capsize=3, linewidth=1.2, label=label)
        if len(own) > 1 and all(row["theoretical_speedup"] for row in own):
            theory = [medians[-1] * own[-1]["theoretical_speedup"] / row["theoretical_speedup"] for row in own]
            axes.plot(ratios, theory, "--", color=line[0].get_color(), linewidth=1)
    axes.set(xlabel="keep_ratio", ylabel="median ms of one pass (bars: min to max)", ylim=(0, None))
    axes.set_title("encoder time; dashed: the counted products at the speed of the highest keep_ratio", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
