"""The one way in which this package speaks of bad input."""

from __future__ import annotations

import argparse
import errno
import io
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from .memory import keep_freed_memory


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, and what to do about it."""


class SlowFormat(UserWarning):
    """The number format that was asked for is slower than float32 on this processor."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which says in one line, too, what is wrong with a flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {in_one_line(message)} (see {self.prog} --help)\n")


# What a disk or its owner refuses, at any write of any command, and ENAMETOOLONG at any first touch of a path.
_REFUSALS = {
    errno.ENAMETOOLONG: "a path is too long",
    errno.ENOSPC: "the disk is full: make room, then start again",
    errno.EDQUOT: "the disk quota is used up: make room, then start again",
    errno.EFBIG: "a file would be larger than is allowed here",
    errno.EROFS: "the disk can only be read: write somewhere else",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}


def run_cli(prog: str, function: Callable[[Any], Any], args: Any) -> None:
    """Call `function(args)`; bad input ends the process with one line on stderr and exit code 2.

    An interrupt (Ctrl-C) ends it with code 130. Anything else is a defect of ours and keeps its traceback. Whatever is
    printed, what the terminal cannot show comes out as escapes.
    """
    keep_freed_memory()  # the process is the command's own
    escape_output()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that are then read or refused in one line
    plain = warnings.formatwarning
    warnings.formatwarning = partial(_warning, prog, plain)
    try:
        function(args)
    except InputError as error:
        _fail(prog, str(error))
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        named = "" if error.filename is None else f": {_shortened(str(error.filename))}"
        _fail(prog, _REFUSALS[error.errno] + named)
    except UnicodeEncodeError as error:  # mostly a path, of a file's content, in a locale that cannot name it
        _fail(prog, f"{_shortened(error.object)} cannot be {error.encoding}: rename it, or set PYTHONUTF8=1")
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = plain


def _warning(prog: str, plain: Callable[..., str], message: Warning | str, kind: type[Warning], *where: Any) -> str:
    """This package's own in one line, as errors are; others as Python has them."""
    if issubclass(kind, SlowFormat):
        return f"{prog}: warning: {in_one_line(str(message))}\n"
    return plain(message, kind, *where)


def escape_output() -> None:
    """Have stdout and stderr write escapes for what their encoding lacks, such as a file's name on a plain terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where there is none, or a notebook's
            stream.reconfigure(errors="backslashreplace")


def _fail(prog: str, reason: str) -> NoReturn:
    print(f"{prog}: error: {in_one_line(reason)}", file=sys.stderr)
    sys.exit(2)


def in_one_line(text: str) -> str:
    """`text` without line breaks, control characters escaped: in a file's name they would reach the terminal."""
    return "".join(
        letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:60]}..."
