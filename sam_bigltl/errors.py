"""The one way in which this package speaks of bad input."""

from __future__ import annotations

import argparse
import errno
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from .memory import keep_freed_memory


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, and what to do about it."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which says in one line, too, what is wrong with a flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def run_cli(prog: str, function: Callable[[Any], Any], args: Any) -> None:
    """Call `function(args)`; bad input ends the process with one line on stderr and exit code 2.

    An interrupt (Ctrl-C) ends it with code 130. Anything else is a defect of ours and keeps its traceback.
    """
    keep_freed_memory()  # the process is the command's own
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that are then read or refused in one line
    try:
        function(args)
    except InputError as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which comes of any first touch of a path
            raise
        print(f"{prog}: error: a path is too long: {str(error.filename)[:60]}...", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)
