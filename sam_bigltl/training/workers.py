"""Processes that make batches: what they raise, and what they do with signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import InputError


def ignore_interrupts(worker: int) -> None:
    """Signals reach the whole process group; the workers end with the loop, not before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load(dataset: Dataset, workers: int, ahead: int) -> Iterator[Any]:
    """The dataset's items as they are, made by `workers` processes, `ahead` each in advance; 0 makes them in turn."""
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=ahead if workers else None,
        worker_init_fn=ignore_interrupts,
    )  # fmt: skip
    return loaded(loader)


def loaded(loader: DataLoader) -> Iterator[Any]:
    """What the loader gives; bad input is named without the traceback that a worker process puts before it."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from None
