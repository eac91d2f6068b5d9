"""Reading JSON and writing files that are whole or not there, with errors of one line; cells of CSV files."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sam_bigltl.errors import InputError
from sam_bigltl.files import whole_path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would compute, escaped already or not


def load_json(path: str | Path, kind: str, missing: str, wrong: str) -> Any:
    """The content of a JSON file, in UTF-8 or UTF-16, with a byte order mark or without.

    Args:
        kind: what the file is, such as "annotations".
        missing, wrong: what to do where there is no such file, and where it is not JSON.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{kind} file {path} does not exist; {missing}") from None
    except OSError as error:
        raise InputError(f"{kind} file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {wrong}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which appears only when all of it is there: see `sam_bigltl.files.whole_path`.

    Raises InputError when it cannot be written.
    """
    try:
        # A name of a file that is not UTF-8 may be in the text: escaped, it does no harm.
        with (
            whole_path(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            yield stream
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: str | Path, error: OSError, advice: str = "make room, then start again") -> InputError:
    """The error as one line, with `advice` where the disk is full or a quota is used up."""
    return InputError(f"cannot write {path}: {error.strerror or error}" + f": {advice}" * (error.errno in _FULL))


def csv_cell(value: Any) -> Any:
    """A cell to write: text that a spreadsheet would run as a formula gets an apostrophe, numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def csv_text(cell: str) -> str:
    """The text that `csv_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
