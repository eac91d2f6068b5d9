"""The picture of a latency run: time against keep_ratio, or against tokens where only the size of the input varies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.files import cannot_write, encodable, whole_path
from .report import format_name


def plot(path: Path, rows: Sequence[dict]) -> None:
    """Draw medians (bars: min to max), a line for each model and format.

    Dashed is what its counted products would take. The dashed lines start from the highest keep_ratio, or from the
    smallest input.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_size = len({row["keep_ratio"] for row in rows}) == 1 and len({row["image_size"] for row in rows}) > 1
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    for label, own in _lines(rows, by_size).items():
        x = [(row["image_size"] // 16) ** 2 if by_size else row["keep_ratio"] for row in own]
        medians = [1e3 * row["median_s"] for row in own]
        errors = [
            [1e3 * (row["median_s"] - row["min_s"]) for row in own],
            [1e3 * (row["max_s"] - row["median_s"]) for row in own],
        ]
        line = axes.errorbar(x, medians, errors, marker="o", capsize=3, linewidth=1.2, label=plain(label))
        if len(own) > 1 and all(row["gmacs"] for row in own):
            start = 0 if by_size else -1
            theory = [medians[start] * row["gmacs"] / own[start]["gmacs"] for row in own]
            axes.plot(x, theory, "--", color=line[0].get_color(), linewidth=1)
    what = f"encoder time at keep_ratio {rows[0]['keep_ratio']:g}" if by_size else "encoder time"
    origin = "smallest input" if by_size else "highest keep_ratio"
    axes.set_title(f"{what}; dashed: the counted products at the speed of the {origin}", fontsize=9)
    axes.set(
        xlabel="tokens of 16 x 16 pixels" if by_size else "keep_ratio",
        ylabel="median ms of one pass (bars: min to max)",
    )  # fmt: skip
    medians = [row["median_s"] for row in rows]
    if max(medians) > 10 * min(medians) and not by_size:
        axes.set_yscale("log")  # or the slowest would press the others together
    else:
        axes.set_ylim(0, None)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    save_figure(figure, path)
    pyplot.close(figure)


def plain(text: str) -> str:
    """`text` for matplotlib: names can hold a $, which starts a formula, and bytes that are not UTF-8."""
    return encodable(text).replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib in the format of the suffix. Raises InputError."""
    try:
        with whole_path(path) as partial:
            figure.savefig(partial, format=path.suffix[1:].lower(), dpi=120)
    except OSError as error:
        raise cannot_write(path, error) from None


def _lines(rows: Sequence[dict], by_size: bool) -> dict[str, list[dict]]:
    """The rows of each line by its label, in the order of the axis."""
    lines: dict[str, list[dict]] = {}
    for row in rows:
        size = "" if by_size else f" {row['image_size']} px"
        batch = f" x {row['batch']}" if row["batch"] > 1 else ""
        lines.setdefault(f"{row['model']}{size} {format_name(row)}{batch}", []).append(row)
    axis = "image_size" if by_size else "keep_ratio"
    return {label: sorted(own, key=lambda row: row[axis]) for label, own in lines.items()}
