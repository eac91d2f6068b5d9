"""What this machine reaches, in about two minutes: its products, and the formats of two models beside SAM's ViT-B.

A process for each model; each of its formats is built when its turn comes. How long a row will take is estimated from
those before it, and one that would not fit into the time is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..errors import InputError
from ..fast import choice
from ..memory import available_memory
from .cases import Case, Job, encoder_cases
from .macs import Macs
from .models import build, input_side
from .report import setting
from .timing import gemm_peak
from .worker import Worker

MINI, SAM, LARGE = "bigltl_mini", "sam_vit_b", "bigltl_b"
RATIOS = (1.0, 0.25)
_SAM_MACS = 486e9  # of ViT-B at 1024 px
# Bytes of a process, from docs/results: at the peak of a pass, and torch itself.
_MEMORY = {MINI: 1.0e9, SAM: 3.7e9, LARGE: 2.5e9}
_CAUTION = 1.5  # an estimate is as much longer than what is expected


@dataclass(frozen=True)
class Models:
    """One model in several formats, in one process: what a `Worker` is asked for.

    Attributes:
        formats: (dtype, native) of each.
    """

    model: str
    formats: tuple[tuple[str, bool], ...]
    keep_ratios: tuple[float, ...]
    device: str
    threads: int | None
    keep_memory: bool = True

    def __str__(self) -> str:
        return self.model

    def cases(self) -> list[Case]:
        """A case for each format and keep_ratio; each format is built at its first pass."""
        encoder, weights = build(self.model)
        built: dict[tuple[str, bool], dict[float, Case]] = {}

        def call(dtype: str, native: bool, ratio: float) -> None:
            if (dtype, native) not in built:
                job = Job(
                    self.model, dtype=dtype, native=native, keep_ratios=self.keep_ratios, device=self.device,
                    threads=self.threads,
                )  # fmt: skip
                built[dtype, native] = {case.keep_ratio: case for case in encoder_cases(self.model, encoder, job)}
            run = built[dtype, native][ratio].call
            assert run is not None
            run()

        side = input_side(encoder)
        assert side is not None
        return [
            Case(self.model, ratio, dtype, side, weights, partial(call, dtype, native, ratio), native=native)
            for dtype, native in self.formats
            for ratio in self.keep_ratios
        ]


@dataclass
class Row:
    """A line of the table.

    Attributes:
        case, index: the setting, once it has run, and its number in its process.
        first: seconds of the first pass, with what is built in it.
        seconds: of the passes that count.
        skipped: why there are none.
    """

    model: str
    dtype: str
    native: bool
    keep_ratio: float
    case: Case | None = None
    index: int = 0
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    skipped: str = ""

    @property
    def format(self) -> str:
        """Such as "int8 native"."""
        return self.dtype + " native" * self.native


@dataclass
class Quick:
    """The run: `rows` in the order of their turns, `macs` by `report.setting`, `peaks` in GMAC/s by format.

    Args:
        minutes: that it may take; the first row is measured in any case.
        most: counted passes of a row.
        clock: seconds.
    """

    device: torch.device
    minutes: float
    threads: int | None = None
    most: int = 5
    clock: Callable[[], float] = time.monotonic
    rows: list[Row] = field(default_factory=list)
    macs: dict[tuple[str, int, int, float], Macs] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.chosen = choice.choose(self.device)
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, str] = {}
        self._start_seconds = 0.0  # of a process: the longest so far

    def run(self, say: Callable[[str], None]) -> None:
        """Measure; `say` is told what is going on."""
        here = choice.formats(self.device)
        self.rows = planned(here, self.chosen)
        try:
            self._first_pass(self.rows[0], here, say)
            if self._left() > 0:
                say("matrix products")
                self.peaks = peaks(self.device, here)
            for row in self.rows[1:]:
                self._first_pass(row, here, say)
            self._count(say)
        finally:
            for worker in self._workers.values():
                worker.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    def _left(self) -> float:
        """Seconds that are not spoken for: every row that has started will be measured once more."""
        return 60 * self.minutes - self.elapsed - sum(row.first for row in self.rows)

    def _first_pass(self, row: Row, here: Sequence[tuple[str, bool]], say: Callable[[str], None]) -> None:
        row.skipped = self._failed.get(row.model, "") or self._obstacle(row)
        if row.skipped:
            return
        say(f"{row.model} {row.format}, keep_ratio {row.keep_ratio:g}")
        try:
            if row.model not in self._workers:
                before = self.elapsed
                self._workers[row.model] = self._start(row.model, here)
                self._start_seconds = max(self._start_seconds, self.elapsed - before)
            worker = self._workers[row.model]
            row.index, case = next((index, case) for index, case in enumerate(worker.cases) if _is_of(case, row))
            before = self.elapsed
            if row.dtype == "float32" and not row.native:
                self.macs[setting(case)] = worker.macs(row.index)
            else:
                worker.seconds(row.index)
            row.case, row.first = case, self.elapsed - before
        except InputError as error:
            self._failed[row.model] = row.skipped = str(error)

    def _start(self, model: str, here: Sequence[tuple[str, bool]]) -> Worker:
        formats, ratios = (tuple(here), RATIOS) if model != SAM else ((("float32", False),), (1.0,))
        return Worker(Models(model, formats, ratios, str(self.device), self.threads))

    def _obstacle(self, row: Row) -> str:
        if row is self.rows[0]:
            return ""
        if row.model not in self._workers:
            free = available_memory() if self.device.type == "cpu" else None
            if free is not None and free < _MEMORY[row.model]:
                return "memory"
        start = 0.0 if row.model in self._workers else self._start_seconds
        return "time" if self._left() < start + 2 * _CAUTION * self._estimate(row) else ""

    def _estimate(self, row: Row) -> float:
        """Seconds of a pass, from those before: a large model's by what the same setting took of the mini's time."""
        first = {(each.model, each.format, each.keep_ratio): each.first for each in self.rows if each.first}
        dense = first.get((MINI, "float32", 1.0), 0.0)
        if row.model == MINI:
            return dense
        count = next((macs.total for key, macs in self.macs.items() if key[0] == MINI and key[3] == 1.0), _SAM_MACS)
        whole = first.get((SAM, "float32", 1.0), dense * _SAM_MACS / count)
        if row.model == SAM or not dense:
            return whole
        return whole * min(1.0, first.get((MINI, row.format, row.keep_ratio), dense) / dense)

    def _count(self, say: Callable[[str], None]) -> None:
        """Passes that count, in turns, as many rounds as fit: one at least."""
        started = [row for row in self.rows if row.case is not None]
        longest = 0.0
        while self.rounds < self.most and (not self.rounds or self.elapsed + longest < 60 * self.minutes):
            say(f"round {self.rounds + 1}")
            before = self.elapsed
            for row in started:
                worker = self._workers[row.model]
                try:
                    row.seconds.append(worker.seconds(row.index))
                except InputError as error:
                    row.skipped = self._failed[row.model] = str(error)
            started = [row for row in started if not row.skipped]
            longest = max(longest, self.elapsed - before)
            self.rounds += 1


def planned(here: Sequence[tuple[str, bool]], chosen: choice.Choice) -> list[Row]:
    """All rows, in the order of their turns: the mini first, from which the others are estimated."""
    # What people will run first, then torch's float32, which is what products are counted in.
    plain, auto = ("float32", False), (chosen.dtype, chosen.native)
    order = sorted(here, key=lambda each: (each != auto, each != plain, not each[1]))
    mini = sorted(here, key=lambda each: each != plain)
    rows = [Row(MINI, dtype, native, ratio) for dtype, native in mini for ratio in RATIOS]
    rows.append(Row(SAM, "float32", False, 1.0))
    return rows + [Row(LARGE, dtype, native, ratio) for dtype, native in order for ratio in reversed(RATIOS)]


def peaks(device: torch.device, here: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """GMAC/s of matrix products in the formats that are worth it here."""
    return {dtype: gemm_peak(dtype, device, runs=3) for dtype in dict.fromkeys(dtype for dtype, _ in here)}


def _is_of(case: Case, row: Row) -> bool:
    return (case.dtype, case.native, case.keep_ratio) == (row.dtype, row.native, row.keep_ratio)


def measured(rows: Sequence[Row]) -> tuple[list[Any], list[list[float]]]:
    """The cases and times of what was measured, SAM's first: the baseline."""
    found = sorted((row for row in rows if row.seconds), key=lambda row: row.model != SAM)
    return [row.case for row in found], [row.seconds for row in found]
