"""Commands in processes of their own: what they print, how they end, and whether they end."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60.0  # seconds until a child counts as hanging


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Its exit code, minus the signal's number where one ended it; what it wrote; whether it was ended by us because it
    hung, and whether it left processes behind.
    """

    code: int
    output: str
    hung: bool = False
    left: bool = False


def run_child(call: Callable[[], None], interrupt: tuple[int, float] | None = None, limit: float = LIMIT) -> Ended:
    """Call `call` in a forked process, whose imports are therefore made already.

    Args:
        interrupt: a signal for it and its children, as a terminal sends it, and the seconds until then.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()  # a file would be cut where the child may write only small ones
    child = os.fork()
    if child == 0:
        _inside(call, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    output = b""
    began, code, sent = time.monotonic(), None, interrupt is None
    while code is None and time.monotonic() - began < limit:
        output += _available(reader)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif not sent and time.monotonic() - began > interrupt[1]:
            sent = _signal(child, interrupt[0]) or True
        else:
            time.sleep(0.01)
    hung = code is None
    left = not hung and _outlives(child)
    _signal(child, signal.SIGKILL)
    if hung:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output += _available(reader)
    os.close(reader)
    return Ended(code, output.decode("utf-8", "replace"), hung, left)


def _available(reader: int) -> bytes:
    content = b""
    try:
        while part := os.read(reader, 65536):
            content += part
    except BlockingIOError:
        pass
    return content


def _inside(call: Callable[[], None], writer: int) -> None:
    """The child: never returns."""
    code = 70
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for descriptor in (1, 2):
            os.dup2(writer, descriptor)
        os.close(writer)
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            pass
        os._exit(code)


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _outlives(group: int, patience: float = 5.0) -> bool:
    """Whether processes of the group live on, some seconds after its first one ended."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not _living(group):
            return False
        time.sleep(0.02)
    return True


def _living(group: int) -> list[int]:
    """Processes of the group, those left out that only wait to be collected (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(process_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found
