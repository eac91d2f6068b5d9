"""Processes that make batches: what they raise, how their items travel, how they end, and what they do with signals."""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .interrupts import waiting

GRACE = 3.0  # seconds for what the processes are at, when they are to end
_END = object()
_shared = True  # whether this process can hand tensors over in shared memory


def ignore_interrupts(worker: int) -> None:
    """Signals reach the whole process group; the workers end with the loop, not before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load(
    dataset: Dataset, workers: int, ahead: int, batch_size: int | None = None, collate: Callable[[Any], Any] | None = None
) -> Iterator[Any]:
    """The dataset's items, made by `workers` processes, `ahead` each in advance; 0 makes them in turn.

    Close it where it may not be gone through to its end. The processes end then, or with this one at the latest.

    Args:
        batch_size: items that `collate` gets at once; None gives it one after the other.

    Raises:
        InputError: the dataset's, without the traceback that a process puts before it; or there are no such processes.
    """
    before = set(multiprocessing.active_children())
    try:
        loader = DataLoader(
            dataset, batch_size, num_workers=workers, prefetch_factor=ahead if workers else None,
            worker_init_fn=ignore_interrupts, collate_fn=partial(_packed, collate) if workers else collate or _as_it_is,
        )  # fmt: skip
        iterator = iter(loader)
    except OSError as error:  # without shared memory there are no semaphores; or too many processes
        _kill(set(multiprocessing.active_children()) - before)
        reason = error.strerror or error
        raise InputError(f"processes that read files cannot be started ({reason}): give --workers 0") from None
    processes = set(multiprocessing.active_children()) - before
    # A traceback can keep this generator alive until the interpreter ends, which waits for processes that ignore SIGTERM.
    kill = partial(_kill, processes)
    atexit.register(kill)
    try:
        while True:
            with waiting(), worker_failures():
                item = next(iterator, _END)
            if item is _END:
                return
            yield item
    except InputError as error:
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from None
    finally:
        _end(iterator, processes)
        atexit.unregister(kill)


@contextmanager
def worker_failures() -> Iterator[None]:
    """InputError for what torch raises, wherever the main process is just then, when a process of `load` is killed."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if text.startswith("DataLoader worker"):
            reason = text.partition(". ")[0].removeprefix("DataLoader ")
            raise InputError(
                f"a process that reads files is gone ({reason}), mostly for want of memory: give fewer --workers"
            ) from None
        if text.startswith("Too many open files") or "ancdata" in text:
            raise InputError("too many open files: raise the limit (ulimit -n), or give fewer --workers") from None
        raise


def _as_it_is(item: Any) -> Any:
    return item


class _Packed:
    """What unpickles as the item that is pickled in `content`."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.content,)


def _packed(collate: Callable[[Any], Any] | None, item: Any) -> _Packed:
    """An item with its tensors in shared memory or, where there is none or too little, among its bytes.

    Here and not in torch's queue, whose thread loses what it cannot share, so that the main process waits for ever.
    """
    global _shared
    item = collate(item) if collate else item
    if _shared:
        try:
            return _Packed(bytes(ForkingPickler.dumps(item)))
        except (RuntimeError, OSError):
            _shared = False
    return _Packed(pickle.dumps(item))


def _end(iterator: Iterator[Any], processes: set[BaseProcess]) -> None:
    """End the processes after what they are at, or after `GRACE` seconds."""
    late = threading.Timer(GRACE, _kill, [processes])
    late.daemon = True
    try:
        if processes:
            with suppress(RuntimeError):  # of torch, about a process that was killed; of a thread, when Python ends
                late.start()
                iterator._shutdown_workers()
    finally:
        late.cancel()
        _kill(processes)


def _kill(processes: set[BaseProcess]) -> None:
    for process in processes:
        with suppress(RuntimeError, AssertionError):  # of torch, about its end; another process's in a forked copy
            if process.is_alive():
                process.kill()
                process.join(GRACE)
