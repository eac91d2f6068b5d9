"""Files that are written whole or not at all, file names of any bytes, JSON and CSV, with errors of one line."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError

_PARTIAL = "partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would compute, escaped already or not


@contextmanager
def whole_path(path: str | PathLike[str]) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends without an error.

    It is in a new folder beside `path` that nobody else can enter: no link that somebody has planted is followed, and
    processes that write the same file do not meet. Missing parent folders are made. Raises OSError.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():  # a device such as /dev/null would be replaced
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent) as folder:
        partial = Path(folder) / "part"
        yield partial
        os.replace(partial, path)


def remove_partial(path: Path) -> None:
    """Remove what killed processes have left of `path`, which no other process is writing."""
    _remove_folders(path.parent, _prefix(path))


def remove_partials(folder: Path) -> None:
    """`remove_partial` of every file in a folder, into which no other process is writing."""
    _remove_folders(folder, _PARTIAL)


def _remove_folders(folder: Path, prefix: str) -> None:
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.name.startswith(prefix):
            shutil.rmtree(each, ignore_errors=True)


def sha256(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises InputError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def encodable(text: str) -> str:
    """`text` with escapes for what UTF-8 does not have: the bytes of a file name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


@contextmanager
def utf8_path(path: str | PathLike[str]) -> Iterator[Path]:
    """`path`, or a link to it for the block where it is not UTF-8: safetensors and ONNX Runtime open no such path."""
    if encodable(str(path)) == str(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{Path(path).suffix}"
        link.symlink_to(Path(path).absolute())
        yield link


def _prefix(path: Path) -> str:
    return f"{_PARTIAL}{path.stem[:40]}-"


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
    """A text file to write, which appears only when all of it is there: see `whole_path`.

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


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Write `rows` under the header `columns`; figures with six significant digits, None as an empty field.

    Raises InputError where that is not possible.
    """
    with whole_file(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({
                key: f"{value:.6g}" if isinstance(value, float) else csv_cell(value) for key, value in row.items()
            })  # fmt: skip
