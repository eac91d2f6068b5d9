"""The picture of a tuning: agreement against encoder time, with the Pareto front."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.plot import plain, save_figure
from ..errors import InputError
from .result import Row, Tuned
from .table import original_name, whole_images

SIZE, DPI = (8.4, 5.4), 120  # inches: 1008 pixels wide
# Okabe and Ito's colours, apart to colour-blind eyes, and markers for grey prints.
LOOKS = {
    ("float32", False): ("#8a8a8a", "o"),
    ("bfloat16", False): ("#0072b2", "s"),
    ("bfloat16", True): ("#56b4e9", "D"),
    ("int8", False): ("#d55e00", "^"),
    ("int8", True): ("#e69f00", "v"),
}
_LIGHT = {"paper": "#ffffff", "ink": "#1a1a1a", "faint": "#767676"}
_DARK = {"paper": "#16181d", "ink": "#e8e8e8", "faint": "#9a9a9a"}
_TURNS = 16  # directions in which a label is tried, at each of these distances in points
_DISTANCES = (11, 16, 23, 31, 40)
_LEADER = 23  # points from which on a line leads to the label


def check_matplotlib() -> None:
    """Raise InputError if matplotlib is missing: to be called before the work, not at its end."""
    _empty(_LIGHT)


def plot(tuned: Tuned, path: str | Path) -> None:
    """Draw the settings of a tuning as a picture in the format of the suffix, 1,008 pixels wide as PNG.

    Raises InputError where matplotlib is missing or the file cannot be written.
    """
    save_figure(draw(tuned), Path(path))


def png(tuned: Tuned, dark: bool = False) -> bytes:
    """The same as the bytes of a PNG, on white or on a dark ground."""
    stream = io.BytesIO()
    figure = draw(tuned, dark)
    figure.savefig(stream, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return stream.getvalue()


def draw(tuned: Tuned, dark: bool = False) -> Any:
    """The figure of matplotlib."""
    colours = _DARK if dark else _LIGHT
    figure, axes = _empty(colours)
    rows, front = whole_images(tuned), tuned.front()
    axes.axhline(tuned.target, color=colours["ink"], linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    axes.plot(
        [1e3 * row.seconds for row in front], [row.agreement for row in front], color=colours["faint"], linewidth=1.5,
        zorder=2, label="Pareto front",
    )  # fmt: skip
    for form in dict.fromkeys((row.setting.dtype, row.setting.native) for row in rows):
        own = [row for row in rows if (row.setting.dtype, row.setting.native) == form]
        colour, marker = LOOKS.get(form, ("#cc79a7", "P"))
        axes.scatter(
            [1e3 * row.seconds for row in own], [row.agreement for row in own], s=46, color=colour, marker=marker,
            edgecolors=colours["paper"], linewidths=0.7, zorder=4, label=plain(own[0].setting.format),
        )  # fmt: skip
    axes.scatter(
        [1e3 * tuned.reference_seconds], [1.0], s=130, color=colours["ink"], marker="*", zorder=4,
        label=plain(original_name(tuned)), clip_on=False,
    )  # fmt: skip
    chosen = tuned.row
    axes.scatter(
        [1e3 * chosen.seconds], [chosen.agreement], s=230, facecolors="none", edgecolors=colours["ink"],
        linewidths=1.6, zorder=5, label=f"chosen: {plain(str(chosen.setting))}",
    )  # fmt: skip
    _scales(axes, [*(row.seconds for row in rows), tuned.reference_seconds], rows, tuned.target)
    axes.text(
        0.008, tuned.target, f"target {tuned.target:g}", transform=axes.get_yaxis_transform(), ha="left", va="bottom",
        fontsize=9, color=colours["ink"],
    )  # fmt: skip
    axes.set(xlabel="median ms of an encoder pass", ylabel="agreement: mean IoU with the original's masks")
    axes.set_title("Labels are keep_ratio; up and to the left is better", fontsize=10, color=colours["ink"])
    figure.legend(
        loc="outside lower center", ncols=3, fontsize=8.5, frameon=False, labelcolor=colours["ink"], scatterpoints=1
    )
    wanted = [*front, *(row for row in rows if row not in front)]  # those that matter most have the first choice
    _label(figure, axes, wanted, front, tuned, colours)
    return figure


def _empty(colours: dict[str, str]) -> tuple[Any, Any]:
    """A figure with a canvas of its own: pyplot's global state stays the caller's."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the plot is drawn with matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained", facecolor=colours["paper"])
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(colours["paper"])
    axes.grid(alpha=0.25, which="both", color=colours["faint"])
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["ink"], which="both")
    part: Any
    for part in (*axes.spines.values(), axes.xaxis.label, axes.yaxis.label):
        part.set_color(colours["ink"])
    return figure, axes


def _scales(axes: Any, seconds: Sequence[float], rows: Sequence[Row], target: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = 1e3 * min(seconds), 1e3 * max(seconds)
    if high > 4 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * high)
    bottom = min([target, *(row.agreement for row in rows)])
    room = 0.06 * max(1 - bottom, 0.02)
    axes.set_ylim(bottom - 1.5 * room, 1 + room)


def _label(
    figure: Any, axes: Any, rows: Sequence[Row], front: Sequence[Row], tuned: Tuned, colours: dict[str, str]
) -> None:
    """Write the keep_ratio of every row beside its marker, where no label and no marker is; else nowhere."""
    figure.draw_without_rendering()  # places the axes
    figure.set_layout_engine("none")
    point = figure.dpi / 72
    places = axes.transData.transform([(1e3 * row.seconds, row.agreement) for row in rows])
    half = 4.2 * point
    taken: list[_Box] = [(x - half, y - half, x + half, y + half) for x, y in places]
    x, y = axes.transData.transform((1e3 * tuned.reference_seconds, 1.0))
    taken.append((x - 2 * half, y - 2 * half, x + 2 * half, y + 2 * half))
    x, y = axes.transData.transform((1e3 * tuned.row.seconds, tuned.row.agreement))
    taken.append((x - 2 * half, y - 2 * half, x + 2 * half, y + 2 * half))  # the ring around the chosen one
    frame, line = axes.bbox, axes.transData.transform((1, tuned.target))[1]
    taken.append((frame.x0, line - 1, frame.x1, line + 1))
    taken.append((frame.x0, line, frame.x0 + 75 * point, line + 13 * point))  # the word "target"
    for start, end in pairwise(places[: len(front)]):
        taken += _along(*start, *end)
    for row, (x, y) in sorted(zip(rows, places), key=lambda each: each[0] is not tuned.row):  # the chosen one first
        on_front = row in front
        text = axes.annotate(
            plain(row.setting.ratio), (x, y), xycoords="figure pixels", fontsize=9.5 if on_front else 8,
            color=colours["ink"] if on_front else colours["faint"], fontweight="bold" if on_front else "normal",
            ha="center", va="center", zorder=6,
        )  # fmt: skip
        extent = text.get_window_extent(figure.canvas.get_renderer())
        found = _free(x, y, extent.width, extent.height, point, taken, frame)
        text.remove()
        if found is None:
            continue
        dx, dy, boxes = found
        axes.annotate(
            text.get_text(), (1e3 * row.seconds, row.agreement), (dx / point, dy / point), textcoords="offset points",
            fontsize=text.get_fontsize(), color=text.get_color(), fontweight=text.get_fontweight(), ha="center",
            va="center", zorder=6,
            arrowprops={"arrowstyle": "-", "color": colours["faint"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            if len(boxes) > 1 else None,
        )  # fmt: skip
        taken += boxes


_Box = tuple[float, float, float, float]  # left, bottom, right, top


def _along(x0: float, y0: float, x1: float, y1: float) -> list[_Box]:
    """A line as small boxes."""
    steps = np.linspace(0, 1, 2 + int(math.hypot(x1 - x0, y1 - y0) / 4))
    places = ((x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in steps)
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in places]


def _free(
    x: float, y: float, width: float, height: float, point: float, taken: Sequence[_Box], frame: Any
) -> tuple[float, float, list[_Box]] | None:
    """The offset of a label from (x, y) in pixels at the nearest free place, its box and those of its line, if any."""
    for distance in _DISTANCES:
        for turn in range(_TURNS):
            angle = 2 * math.pi * ((turn + 1) // 2 * (-1) ** turn) / _TURNS + math.pi / 2  # above first, then both ways
            dx = (distance * point + width / 2 - 4 * point) * math.cos(angle)
            dy = (distance * point + height / 2 - 4 * point) * math.sin(angle)
            box = (x + dx - width / 2 - 1, y + dy - height / 2 - 1, x + dx + width / 2 + 1, y + dy + height / 2 + 1)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            boxes = [box]
            if distance >= _LEADER:
                begin = 7 * point  # beside the marker
                boxes += _along(x + begin * math.cos(angle), y + begin * math.sin(angle), x + 0.8 * dx, y + 0.8 * dy)
            if inside and not _meet(boxes, taken):
                return dx, dy, boxes
    return None


def _meet(boxes: Sequence[_Box], others: Sequence[_Box]) -> bool:
    one, other = np.array(boxes)[:, None], np.array(others)[None]
    return bool(((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(axis=-1).any())
