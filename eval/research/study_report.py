"""Tables and plots of the study, from its CSVs: into docs/study.md between markers, and docs/study_*.png."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from sam_bigltl.errors import InputError

TEACHER = "teacher"
BASE = "a-one-checkpoint"
NO_E_BLOCKS = "h-no-e-blocks"


@dataclass(frozen=True)
class Row:
    """A cell at a keep ratio, over its seeds: mIoU by (prompt, clicks) and split, lists with one value a seed."""

    cell: str
    keep_ratio: str
    figures: dict[tuple[str, str, str], list[float]]

    def values(self, prompt: str = "box", clicks: int = 0, split: str = "all") -> list[float]:
        return self.figures.get((prompt, str(clicks), split), [])


def read_rows(table: Path) -> list[Row]:
    """The rows of study.csv, seeds together, in the order they were written."""
    try:
        with open(table, newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{table} does not exist: run the study first") from None
    found: dict[tuple[str, str], dict] = {}
    for line in lines:
        figures = found.setdefault((line["cell"], line["keep_ratio"]), defaultdict(list))
        for split in ("all", "small", "medium", "large"):
            if line[split]:
                figures[line["prompt"], line["clicks"], split].append(float(line[split]))
    return [Row(cell, ratio, figures) for (cell, ratio), figures in found.items()]


def spread(values: Sequence[float]) -> str:
    """ "65.92", or "65.92 ± 0.21" (standard deviation) where there are several."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def markdown(rows: Sequence[Row], times: dict[tuple[str, str], float], letter: str) -> str:
    """The table of one letter, with the teacher and the base at the same ratios to compare with."""
    own = [row for row in rows if row.cell.startswith(f"{letter}-")]
    ratios = {row.keep_ratio for row in own}
    others = [row for row in rows if row.cell == TEACHER]
    others += [
        row for row in rows if row.cell == BASE and letter != "a" and (row.keep_ratio in ratios or letter in "fg")
    ]
    reference = [value for row in rows if row.cell == TEACHER for value in row.values()]
    clicks = [count for count in (1, 3, 5) if any(row.values("point", count) for row in own)]
    head = [
        "cell",
        "keep_ratio",
        "box",
        "small / medium / large",
        "retention",
        *("1 click" if c == 1 else f"{c} clicks" for c in clicks),
        "encoder ms",
    ]
    lines = [head, ["---"] * len(head)]
    for row in [*others, *own]:
        splits = " / ".join(
            f"{mean(v):.1f}" if (v := row.values(split=s)) else "-" for s in ("small", "medium", "large")
        )
        kept = f"{100 * mean(row.values()) / mean(reference):.1f} %" if reference and row.values() else "-"
        time = time_of(times, row)
        lines.append([
            row.cell, "dense" if row.cell == TEACHER else row.keep_ratio, spread(row.values()), splits, kept,
            *(spread(row.values("point", count)) for count in clicks), "-" if time is None else f"{time:.0f}",
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_times(path: Path) -> dict[tuple[str, str], float]:
    """Median encoder milliseconds by (cell, keep_ratio) of study_times.csv; none where there is no such file."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {(line["cell"], line["keep_ratio"]): float(line["median_ms"]) for line in csv.DictReader(file)}


def computes_like_base(cell: str) -> bool:
    """Whether its encoder is the base's but for weights and the router: tables b and e."""
    return cell[0] in "be"


def time_of(times: dict[tuple[str, str], float], row: Row) -> float | None:
    """Its encoder's milliseconds."""
    return times.get((BASE if computes_like_base(row.cell) else row.cell, row.keep_ratio))


def family(cell: str) -> str:
    """What is one line in a plot: "f-dense" for "f-dense-3-layers", "f-pruned" for "f-pruned-0.5"."""
    return re.sub(r"-[\d.]+(-layers?)?$", "", cell)


def write_report(table: Path, times_path: Path, page: Path) -> None:
    """Put the tables between `<!-- table x -->` and `<!-- end -->` of `page`, and draw the plots beside it."""
    rows, times = read_rows(table), read_times(times_path)

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{markdown(rows, times, match[2])}\n{match[4]}"

    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(<!-- table (\w) -->)\n(.*?)(<!-- end -->)", fill, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
    _plot(page.with_name("study_routers.png"), rows, lambda row: float(row.keep_ratio), "keep ratio", "ab")
    timed = [row for row in rows if time_of(times, row)]
    _plot(
        page.with_name("study_time.png"),
        timed,
        lambda row: time_of(times, row),
        "encoder, median ms",
        "af",
        extra=NO_E_BLOCKS,
    )


def _plot(
    path: Path, rows: Sequence[Row], place: Callable[[Row], float], label: str, letters: str, extra: str = ""
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, prompt, clicks in ((panels[0], "box", 0), (panels[1], "point", 1)):
        lines: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
        for row in rows:
            if row.values(prompt, clicks) and (row.cell in (TEACHER, extra) or row.cell[0] in letters):
                lines[family(row.cell)].append((place(row), row.values(prompt, clicks)))
        for name, points in lines.items():
            points.sort()
            x, y = [p[0] for p in points], [mean(p[1]) for p in points]
            error = [stdev(p[1]) if len(p[1]) > 1 else 0 for p in points]
            axes.errorbar(x, y, error, marker="o", capsize=2, linewidth=1, label=name)
        axes.set(xlabel=label, ylabel=f"mIoU, {'box' if prompt == 'box' else '1 click'}, %")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
