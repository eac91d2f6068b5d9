"""What was measured, as rows of words: for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..data.tables import aligned
from .result import SIZES, Row, Tuned
from .settings import Setting

CHOSEN, FRONT = ">", "*"


@dataclass(frozen=True)
class Column:
    """A column: its heading, what it says in a sentence, and the cell of a row."""

    heading: str
    about: str
    cell: Callable[[Row], str]


def share(value: float | None) -> str:
    """Of 1, with three decimals, cut off rather than rounded: what misses a target does not look as if it met it."""
    return "-" if value is None or not math.isfinite(value) else f"{math.floor(value * 1000 + 1e-6) / 1000:.3f}"


def figure(value: float | None, decimals: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def short_format(setting: Setting) -> str:
    """Such as "int8 C++"."""
    return setting.dtype + " C++" * setting.native


def _of(figures: str, key: str) -> Callable[[Row], str]:
    return lambda row: share(getattr(row, figures).get(key))


COLUMNS = (
    Column("ms", "median milliseconds of an encoder pass", lambda row: figure(row.seconds * 1e3, 1)),
    Column("faster", "times as fast as the original's encoder", lambda row: figure(row.speedup, 2) + "x"),
    Column(
        "agreement", "mean IoU of its masks with the original's, for the same prompts", lambda row: share(row.agreement)
    ),
    Column("5th pct", "the 5th percentile of that IoU: one mask in twenty agrees less", lambda row: share(row.worst)),
    Column("> 0.9", "share of the masks with an IoU above 0.9", lambda row: share(row.above_90)),
    *(Column(size, f"agreement on {size} objects, by the original's mask", _of("by_size", size)) for size in SIZES),
    *(Column(kind, f"agreement on {kind} prompts", _of("by_prompt", kind)) for kind in ("box", "point")),
    Column(
        "switched", "share of the points for which another of the three masks is rated best",
        lambda row: share(row.switched),
    ),
    Column(
        "emb. error", "squared error of the image embedding over the original's variance",
        lambda row: figure(row.embedding_error, 4),
    ),
    Column("IoU drift", "mean absolute difference of the predicted IoU", lambda row: figure(row.score_drift, 3)),
)  # fmt: skip
GIVEN = (
    Column("ms a box", COLUMNS[0].about, COLUMNS[0].cell),
    Column("boxes given", "agreement where each box is encoded for itself", lambda row: share(row.agreement)),
    Column("without", "agreement of the same boxes with one encoding a photograph", lambda row: share(row.unfocused)),
)


def whole_images(tuned: Tuned) -> list[Row]:
    """The rows with one encoding a photograph, the fastest first."""
    return sorted((row for row in tuned.rows if not row.setting.focus), key=lambda row: (row.seconds, -row.agreement))


def boxes_given(tuned: Tuned) -> list[Row]:
    """The rows with one encoding a box."""
    return [row for row in tuned.rows if row.setting.focus]


def marks(tuned: Tuned) -> dict[Setting, str]:
    """ ">" for the chosen setting, "*" for those on the Pareto front, both or neither."""
    front = {row.setting for row in tuned.front()}
    return {
        row.setting: CHOSEN * (row.setting == tuned.setting) + FRONT * (row.setting in front)
        for row in whole_images(tuned)
    }


def original_name(tuned: Tuned) -> str:
    return f"the original ({tuned.about['original']})" if tuned.about.get("original") else "the original"


def table(tuned: Tuned) -> str:
    """Every setting in a line, for a terminal; what stands in front of it is explained below."""
    marked = marks(tuned)
    head = ["", "format", "keep_ratio", *(column.heading for column in COLUMNS)]
    rows = [
        [marked[row.setting], short_format(row.setting), row.setting.ratio, *(each.cell(row) for each in COLUMNS)]
        for row in whole_images(tuned)
    ]
    original = ["", "original", "-", figure(tuned.reference_seconds * 1e3, 1), "1.00x", *["-"] * (len(COLUMNS) - 2)]
    lines = [aligned([head, *rows, original], left=(0, 1))]
    lines.append(
        f"{CHOSEN} chosen: {chosen_for(tuned)}; {FRONT} Pareto front: no setting is both faster and closer to the "
        "original"
    )
    if given := boxes_given(tuned):
        lines += ["", "one encoding for each box, with the big tokens sought in it (--focus); not among the chosen:"]
        lines.append(aligned(_given_cells(given), left=(0,)))
    return "\n".join(lines)


def _given_cells(rows: Sequence[Row]) -> list[list[str]]:
    head = ["format", "keep_ratio", *(column.heading for column in GIVEN)]
    return [
        head,
        *([short_format(row.setting), row.setting.ratio, *(column.cell(row) for column in GIVEN)] for row in rows),
    ]


def chosen_for(tuned: Tuned) -> str:
    """Why the setting was chosen."""
    if tuned.reached:
        return f"the fastest with an agreement of at least {tuned.target:g}"
    return f"the most faithful, none has an agreement of {tuned.target:g}"
