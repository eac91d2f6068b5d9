"""A process for each encoder, so that none runs in an allocator, a cache or a compiler state that another one made."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..errors import InputError
from ..memory import keep_freed_memory
from .macs import Macs, count_macs
from .timing import peak_memory, timed


class Worker:
    """The cases of a job (what its `cases()` returns), in a process that lives until `close`.

    Raises InputError where the encoder cannot be built.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        # Not forked: OpenMP does not survive that.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.cases: list[Any] = self._answer()

    def _ask(self, what: str, index: int) -> Any:
        self._pipe.send((what, index))
        return self._answer()

    def _answer(self) -> Any:
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise InputError(f"{self.job}: its process died, probably for lack of memory") from None
        if not fine:
            raise InputError(f"{self.job}: {answer}")
        return answer

    def seconds(self, index: int) -> float:
        """One pass of a case, timed in its process."""
        return self._ask("seconds", index)

    def result(self, index: int) -> Any:
        """What a case returns."""
        return self._ask("result", index)

    def memory(self, index: int) -> int | None:
        """`peak_memory` of a case."""
        return self._ask("memory", index)

    def macs(self, index: int) -> Macs:
        """The products of a case, which is neither int8, native nor compiled: the counter does not see those."""
        return self._ask("macs", index)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(job: Any, pipe: Connection) -> None:
    def answered(function: Callable[[], Any]) -> None:
        try:
            answer = True, function()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as error:  # whatever a stranger's code does
            text = str(error).strip() or type(error).__name__
            answer = False, text.splitlines()[0][:200]
        pipe.send(answer)

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.keep_memory:
        keep_freed_memory()
    cases: list[Any] = []

    def build() -> list[Any]:
        cases.extend(job.cases())
        return [replace(case, call=None) for case in cases]

    answered(build)
    device = torch.device(job.device)
    actions: dict[str, Callable[[Callable], Any]] = {
        "seconds": timed,
        "result": lambda call: call(),
        "memory": lambda call: peak_memory(call, device),
        "macs": count_macs,
    }

    def act(what: str, index: int) -> Any:
        return actions[what](cases[index].call)

    while True:
        try:
            what, index = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answered(partial(act, what, index))
