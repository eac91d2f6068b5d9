"""The tables and the figure of docs/study.md, from the study's CSVs, between markers in the page."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from sam_bigltl.errors import InputError

TEACHER, OURS, INSTANCES = "teacher", "ours", "instances"
FASTEST = "int8 in kernels"
SPLITS = ("all", "small", "medium", "large")
RESAMPLES = 4000
# What the table of rivals and the figure show as one family, in this order; everything else is a change of ours.
FAMILIES = ("shipped", "turns", "layers fewer", "MLP", "px", "pruned", "ToMe", "flat areas", "merging inside", "paper")
# Cells whose encoder computes what another's does at the same ratio.
SAME_TIME = dict.fromkeys(
    ("shipped", "LITTLE path trained", "turns", "covering router", "mask router", "error router", "random router"), OURS
)
SAME_TIME["paper, our loss"] = "paper"


@dataclass
class Row:
    """A cell at a keep ratio, over its seeds.

    `figures` are mIoU by (prompt, clicks, split), and agreement with the teacher's masks where the split is
    "agreement"; `sums` by (prompt, clicks, column) those of IoU by photograph, and of agreement.
    """

    teacher: str
    cell: str
    steps: int
    ratio: str
    figures: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    sums: dict[tuple[str, str, str], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def values(self, prompt: str = "box", clicks: int = 0, split: str = "all") -> list[float]:
        """One figure a seed."""
        return self.figures.get((prompt, str(clicks), split), [])

    @property
    def family(self) -> str:
        """Its family, or its own name."""
        return next((name for name in FAMILIES if re.match(rf"(\d+ )?{name}", self.cell)), self.cell)


@dataclass
class Results:
    """Everything that was measured.

    Attributes:
        rows: by teacher, cell, steps and ratio.
        counts: masks of each photograph.
        times: milliseconds by (teacher's file, cell, ratio, format).
    """

    rows: list[Row]
    counts: np.ndarray
    times: dict[tuple[str, str, str, str], float]

    def of(self, teacher: str) -> list[Row]:
        """The rows of one teacher, itself among them."""
        return [row for row in self.rows if row.teacher == teacher]

    def reference(self, teacher: str) -> list[Row]:
        """Ours, as what it does best with, trained or not: by the mean agreement with boxes; and the teacher at 1.0."""
        own: dict[int, list[Row]] = defaultdict(list)
        for row in self.of(teacher):
            if row.cell == OURS and row.values(split="agreement"):
                own[row.steps].append(row)
        best = max(own.values(), key=lambda rows: mean(mean(r.values(split="agreement")) for r in rows), default=[])
        return best + [row for row in self.of(teacher) if row.cell == TEACHER]

    def time(self, model: str, row: Row, kind: str = FASTEST) -> float | None:
        """Its encoder's milliseconds, the fastest of its formats where `kind` is `FASTEST`."""
        cell = SAME_TIME.get(row.cell, row.cell)
        found = [
            value for (name, own, ratio, dtype), value in self.times.items()
            if (name, own, ratio) == (model, cell, row.ratio) and kind in (dtype, FASTEST)
        ]  # fmt: skip
        return min(found, default=None)


def read_results(folder: Path) -> Results:
    """The study's CSVs in a folder."""
    rows: dict[tuple[str, str, str, str], Row] = {}

    def row_of(line: dict[str, str]) -> Row:
        key = (line["teacher"], line["cell"], line["steps"], line["keep_ratio"])
        return rows.setdefault(key, Row(line["teacher"], line["cell"], int(line["steps"]), line["keep_ratio"]))

    for line in _lines(folder / "study.csv"):
        for split in (*SPLITS, "agreement"):
            if line[split]:
                row_of(line).figures[line["prompt"], line["clicks"], split].append(float(line[split]))
    counts = np.zeros(0)
    for line in _lines(folder / "study_photos.csv"):
        if line["cell"] == INSTANCES:
            counts = np.array(line["sums"].split(), float)
            continue
        for name in (name for name in ("sums", "agreement_sums") if line[name]):
            row_of(line).sums[line["prompt"], line["clicks"], name].append(np.array(line[name].split(), float))
    times = {
        (line["model"], line["cell"], line["keep_ratio"], line["format"]): float(line["median_ms"])
        for name in ("study_times.csv", "study_times_sam.csv") if (folder / name).exists()
        for line in _lines(folder / name)
    }  # fmt: skip
    return Results(list(rows.values()), counts, times)


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run the study first") from None


def difference(
    ours: Sequence[tuple[float, np.ndarray]], time: float, rival: np.ndarray, counts: np.ndarray
) -> tuple[float, float, float] | None:
    """How much mIoU ours has over a rival at the rival's time, and the interval of 95 % over photographs, in points.

    Args:
        ours: (milliseconds, sums of IoU by photograph) of some keep ratios; a straight line between neighbours.
        time: the rival's milliseconds; None is returned where ours has no time on one of its sides.
        rival: its sums of IoU by photograph.
        counts: masks of each photograph.
    """
    ours = sorted(ours, key=lambda each: each[0])
    for (below, low), (above, high) in pairwise(ours):
        if below <= time <= above:
            share = (time - below) / max(above - below, 1e-12)
            gain = (1 - share) * low + share * high - rival
            break
    else:
        return None
    return 100 * gain.sum() / counts.sum(), *interval(gain, counts)


def interval(gain: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the mean gain of an instance in points, photographs drawn anew with replacement."""
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = 100 * gain[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def spread(values: Sequence[float]) -> str:
    """ "65.92", or "65.92 ± 0.21" (standard deviation) where there are several."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _signed(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:+.2f} ({found[1]:+.2f} to {found[2]:+.2f})"


def _average(row: Row, what: tuple[str, str, str]) -> np.ndarray:
    return np.mean(row.sums[what], axis=0)


# What ours is compared by at a rival's time: prompt, clicks, column of study_photos.csv.
_COMPARED = (("box", "0", "sums"), ("box", "0", "agreement_sums"), ("point", "1", "agreement_sums"))


def cells_table(results: Results, teacher: str, model: str, names: Sequence[str]) -> str:
    """One line a cell, ratio and training: accuracy, retention, time, and what ours has over it at equal time."""
    rows = results.of(teacher)
    reference = next((mean(row.values()) for row in rows if row.cell == TEACHER and row.values()), None)
    ours = [(results.time(model, r), r) for r in results.reference(teacher)]
    lines = [["cell", "ratio", "steps", "box", "small / medium / large", "kept", "1 / 3 / 5 clicks", "agreement box",
              "1 click", "float32 ms", "fastest ms", "ours over it at that time: box", "agreement box",
              "1 click"]]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    chosen = [r for r in rows if r.cell in names or r.cell == TEACHER]
    for row in sorted(chosen, key=lambda r: (r.cell != TEACHER, r.cell != OURS, _order(r), r.steps, -float(r.ratio))):
        time, plain = results.time(model, row), results.time(model, row, "float32")
        over = ["-"] * len(_COMPARED)
        if time is not None and row.cell not in (OURS, TEACHER):
            over = [
                _signed(difference([(t, _average(r, what)) for t, r in ours if t is not None], time,
                                   _average(row, what), results.counts))
                for what in _COMPARED
            ]  # fmt: skip
        kept = f"{100 * mean(row.values()) / reference:.1f} %" if reference and row.values() else "-"
        splits = " / ".join(f"{mean(v):.1f}" if (v := row.values(split=s)) else "-" for s in SPLITS[1:])
        lines.append([
            row.cell, "" if row.ratio == "1.0" and row.cell != OURS else row.ratio,
            "" if row.cell == TEACHER else str(row.steps), spread(row.values()), splits, kept,
            " / ".join(spread(v) for n in (1, 3, 5) if (v := row.values("point", n))) or "-",
            spread(row.values(split="agreement")), spread(row.values("point", 1, "agreement")), _ms(plain), _ms(time),
            *over,
        ])  # fmt: skip
    return _markdown(lines)


def _order(row: Row) -> tuple[int, str]:
    family = row.family
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), row.cell)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def layers_table(folder: Path, teachers: dict[str, str]) -> str:
    """What each layer is worth: one line a number of skipped layers, the teachers side by side."""
    found = {(line["teacher"], line["skipped"]): line for line in _lines(folder / "study_layers.csv")}
    head = ["layers skipped"]
    for name in teachers.values():
        head += [f"{name}: box", "1 click", "a linear map after the others explains"]
    lines = [head, ["---"] * len(head)]
    for skipped in sorted({int(number) for _, number in found}):
        line = [str(skipped)]
        for mark in teachers:
            own = found.get((mark, str(skipped)))
            line += ["", "", ""] if own is None else [
                f"{float(own['box']):.1f}", f"{float(own['point']):.1f}", f"{100 * float(own['linear_share']):.0f} %"
            ]  # fmt: skip
        lines.append(line)
    return _markdown(lines)


def sam_table(results: Results) -> str:
    """Times at the size of SAM ViT-B, and their share of the dense one's."""
    own = [(cell, ratio, ms) for (model, cell, ratio, _), ms in results.times.items() if model == "vit_b"]
    dense = next((ms for cell, _, ms in own if cell == TEACHER), None)
    if dense is None:
        raise InputError("there are no times at SAM's size: run the study with --sam-times first")
    lines = [["encoder", "ratio", "ms", "of the dense time"], ["---"] * 4]
    lines += [[c, "" if r == "1.0" else r, f"{ms:.0f}", f"{100 * ms / dense:.0f} %"] for c, r, ms in own]
    return _markdown(lines)


def write_report(folder: Path, page: Path) -> None:
    """Put the tables between `<!-- table name -->` and `<!-- end -->` of `page`, and draw the figure beside it.

    A marker is `layers`, `sam`, or `cells TEACHER rivals|changes`, TEACHER a file in checkpoints/.
    """
    results = read_results(folder)
    marks = {line["model"]: line["teacher"] for line in _lines(folder / "study_teachers.csv")}

    def fill(match: re.Match[str]) -> str:
        kind, *words = match[2].split()
        if kind == "layers":
            table = layers_table(folder, {marks[name]: name for name in marks})
        elif kind == "sam":
            table = sam_table(results)
        else:
            model, which = words
            rows = results.of(marks[model])
            rivals = {row.cell for row in rows if row.family in FAMILIES and "," not in row.cell}
            changes = {row.cell for row in rows} - rivals | {"turns", "random router", "merging inside", "paper"}
            table = cells_table(
                results, marks[model], model, sorted((rivals if which == "rivals" else changes) | {OURS})
            )
        return f"{match[1]}\n{table}\n{match[4]}"

    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(<!-- table ([^>]*?) -->)\n(.*?)(<!-- end -->)", fill, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
    _plot(page.with_name("study_time.png"), results, marks)


def _plot(path: Path, results: Results, marks: dict[str, str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(marks), 3, figsize=(15, 4.4 * len(marks)), layout="constrained", squeeze=False)
    shown = (("box", 0, "all", "mIoU, box"), ("box", 0, "agreement", "agreement with the teacher, box"),
             ("point", 1, "agreement", "agreement with the teacher, 1 click"))  # fmt: skip
    for line, (model, mark) in zip(panels, marks.items()):
        for axes, (prompt, clicks, split, label) in zip(line, shown):
            curves: dict[str, dict[float, list[float]]] = defaultdict(dict)
            for row in results.of(mark):
                time, values = results.time(model, row), row.values(prompt, clicks, split)
                if time is not None and values and row.family in (OURS, TEACHER, *FAMILIES):
                    best = max(curves[row.family].get(time, values), values, key=mean)  # trained, or not
                    curves[row.family][time] = best
            for name, found in curves.items():
                points, own = sorted(found.items()), name == OURS
                colour = f"C{(OURS, TEACHER, *FAMILIES).index(name) % 10}" if not own else "black"
                axes.errorbar(
                    [p[0] for p in points], [mean(p[1]) for p in points],
                    [stdev(p[1]) if len(p[1]) > 1 else 0 for p in points],
                    marker="*" if name == TEACHER else "o", capsize=2, linewidth=2 if own else 1, label=name,
                    color=colour,
                )  # fmt: skip
            axes.set(xlabel="encoder, fastest format, median ms", ylabel=f"{label}, %", title=model)
            axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
