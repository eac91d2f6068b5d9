"""Processes that make batches: what they raise, and what they do with signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..errors import InputError


def ignore_interrupts(worker: int) -> None:
    """Signals reach the whole process group; the workers end with the loop, not before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loaded(loader: DataLoader) -> Iterator[Any]:
    """What the loader gives; bad input is named without the traceback that a worker process puts before it."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from None
