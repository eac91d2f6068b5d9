"""Signals end a run between its steps, not within one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Run:
    """What the signals of the run under way meet. `alone`: no other process waits for this one's part of a step."""

    def __init__(self, alone: bool) -> None:
        self.alone, self.received, self.waiting = alone, False, False

    def note(self, number: int, frame: object) -> None:
        if self.received or self.waiting:
            self.received = True
            raise KeyboardInterrupt
        self.received = True


_run: _Run | None = None  # one at most: signals are the process's


@contextmanager
def interrupt_flag(alone: bool = True) -> Iterator[Callable[[], bool]]:
    """Within it SIGINT and SIGTERM only raise a flag: a step is never left half done. A second one ends at once, and so
    does the first where the run is `waiting` and `alone`."""
    global _run
    run = _Run(alone)
    try:
        before = {number: signal.signal(number, run.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody can interrupt it
        yield lambda: False
        return
    outer, _run = _run, run
    try:
        yield lambda: run.received
    finally:
        _run = outer
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def waiting() -> Iterator[None]:
    """Within it, between two steps, a signal ends the run at once, and so does one that came before."""
    run = _run
    if run is None or not run.alone:
        yield
        return
    outer, run.waiting = run.waiting, True
    try:
        if run.received:
            raise KeyboardInterrupt
        yield
    finally:
        run.waiting = outer
