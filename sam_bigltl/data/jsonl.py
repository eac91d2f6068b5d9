"""JSON lines that are on disk once they are written: what an interrupted run finds again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import cannot_write


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line; it is on disk when this returns. Raises InputError when it cannot be written."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # what is torn of the line is cut off by the next run
        raise cannot_write(path, error, "make room, then the same command goes on where it stopped") from None


def cut_torn_line(path: Path) -> None:
    """Drop a last line that a killed process left without its end."""
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror}; use another --output") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines up to a torn one. Raises InputError for a file that is damaged or cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    content = None
                if not isinstance(content, dict):
                    raise InputError(f"{path} is damaged in line {number}: delete it, or use --restart")
                yield content
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; use another --output") from None
