"""Processes that make batches: what they raise, how their items travel, how they end, and what they do with signals."""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .interrupts import waiting

GRACE = 3.0  # seconds for what the processes are at, when they are to end
KILLED = 30.0  # seconds that a killed process may take to go, on a busy machine
_END = object()
_shared = True  # whether this process can hand tensors over in shared memory


def start(worker: int) -> None:
    """Signals reach the whole process group; the workers end with the loop, not before it, and not with a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (ConnectionError, EOFError)):  # of the thread that shares memory: the main process has gone
        sys.__excepthook__(kind, error, trace)


def load(
    dataset: Dataset,
    workers: int,
    ahead: int,
    batch_size: int | None = None,
    collate: Callable[[Any], Any] | None = None,
) -> Generator[Any, None, None]:
    """The dataset's items, made by `workers` processes, `ahead` each in advance; 0 makes them in turn.

    Close it where it may not be gone through to its end. The processes end then, or with this one at the latest.

    Args:
        batch_size: items that `collate` gets at once; None gives it one after the other.

    Raises:
        InputError: the dataset's, without the traceback that a process puts before it; or there are no such processes.
    """
    before = set(multiprocessing.active_children())
    try:
        if workers:
            multiprocessing.Lock()  # torch's queues need some, and without them end with a traceback
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores: as asked
            iterator = iter(DataLoader(
                dataset, batch_size, num_workers=workers, prefetch_factor=ahead if workers else None,
                worker_init_fn=start, collate_fn=partial(_packed, collate) if workers else collate or _as_it_is,
            ))  # fmt: skip
    except OSError as error:  # no shared memory, and so no locks; or too many processes
        _kill(set(multiprocessing.active_children()) - before)
        reason = error.strerror or error
        raise InputError(f"processes that read files cannot be started ({reason}): give --workers 0") from None
    processes = set(multiprocessing.active_children()) - before
    # A traceback can keep this generator alive until the interpreter ends, which waits for processes that ignore
    # SIGTERM.
    kill = partial(_kill, processes)
    atexit.register(kill)
    try:
        with worker_failures():
            while True:
                with waiting():
                    item = _next(iterator)
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


def _next(iterator: Iterator[Any]) -> Any:
    try:
        return next(iterator, _END)
    except (EOFError, ConnectionError) as error:
        if str(error).startswith("Caught "):  # in a process, not of one
            raise
        raise RuntimeError(
            f"DataLoader worker: {type(error).__name__}"
        ) from None  # killed before it had shared an item


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


def _end(iterator: Any, processes: set[BaseProcess]) -> None:
    """End the processes of a DataLoader's iterator after what they are at, or after `GRACE` seconds."""
    if not processes:  # none, or Python ends and they have been killed: it has no more threads then
        return
    late = threading.Timer(GRACE, _kill, [set(processes)])
    late.daemon = True
    try:
        for end in (late.start, iterator._shutdown_workers):
            with suppress(RuntimeError):  # of torch, at any moment, about a process that was killed
                end()
    finally:
        late.cancel()
        if late.ident is not None:  # started: of two threads that reap one process, one may still take it for alive
            late.join()
        _kill(processes)


def _kill(processes: set[BaseProcess]) -> None:
    while processes:
        with suppress(RuntimeError, AssertionError):  # of torch, about its end; another process's in a forked copy
            process = processes.pop()
            if process.is_alive():
                process.kill()
                process.join(KILLED)
