"""Reading JSON with errors of one line, and writing files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sam_bigltl.errors import InputError


def load_json(path: str | Path, kind: str, missing: str, wrong: str) -> Any:
    """The content of a JSON file.

    Args:
        kind: what the file is, such as "annotations".
        missing, wrong: what to do where there is no such file, and where it is not JSON.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{kind} file {path} does not exist; {missing}") from None
    except OSError as error:
        raise InputError(f"{kind} file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {wrong}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, under the name `<path>.part` until all of it is there."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        yield stream
    os.replace(partial, path)
