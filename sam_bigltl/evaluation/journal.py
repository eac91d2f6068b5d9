"""The journal of an evaluation: one line an image, so that an interrupted run repeats none and loses none.

Several processes write one file each into the same folder; whoever reads takes all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.files import cannot_write
from ..errors import InputError
from .results import InstanceResult


@dataclass
class ImageRecord:
    """What was measured on one image.

    Attributes:
        image_id: of the annotations.
        encode_seconds: for each keep_ratio, in the order of the run's settings.
        decode_seconds: seconds of all predictions up to it, by "keep_ratio/prompt/clicks".
        results: one entry an instance and setting.
        detections: in detector mode (keep_ratio, index in the detections of this image, predicted IoU, counts).
        error: why the image could not be read, or None.
    """

    image_id: int | str
    encode_seconds: list[float]
    decode_seconds: dict[str, float]
    results: list[InstanceResult]
    detections: list[tuple[float | str, int, float, str]]
    error: str | None = None


class Journal:
    """The journal files of a folder, and the one that this process appends to.

    Args:
        folder: of the results; it exists.
        settings: everything that a result depends on, JSON-ready. A journal of other settings is refused.
        rank: number of this process.

    Raises:
        InputError: the folder holds the journal of other settings, or cannot be read or written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"journal-{rank}.jsonl"
        self.settings = json.loads(json.dumps(settings))
        if self.path.exists():
            _cut_torn_line(self.path)  # of another process it may be one that is being written
        for path in self._paths():
            header = next(_lines(path), None)
            stored = header.get("settings") if header is not None else self.settings
            if stored != self.settings:
                stored = stored if isinstance(stored, dict) else {}
                changed = sorted(key for key in self.settings | stored if self.settings.get(key) != stored.get(key))
                raise InputError(
                    f"{folder} holds an evaluation with other settings ({', '.join(changed)}): "
                    "use another --output, or --restart to throw it away"
                )
        if not self.path.exists() or not self.path.stat().st_size:
            self._append({"settings": self.settings})

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("journal-*.jsonl"))

    def records(self) -> dict[int | str, ImageRecord]:
        """Every image on record, from all files; by image id."""
        found: dict[int | str, ImageRecord] = {}
        for path in self._paths():
            for line in _lines(path):
                if "settings" in line:
                    continue
                try:
                    line["results"] = [InstanceResult(**result) for result in line["results"]]
                    line["detections"] = [tuple(detection) for detection in line["detections"]]
                    found.setdefault(line["image_id"], ImageRecord(**line))
                except (KeyError, TypeError):
                    raise InputError(f"{path} is damaged: delete it, or use --restart") from None
        return found

    def append(self, record: ImageRecord) -> None:
        """Write one image down; it is on disk when this returns. Raises InputError when it cannot be written."""
        self._append(asdict(record))

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # what is torn of the line is cut off by the next run
            raise cannot_write(self.path, error, "make room, then the same command goes on where it stopped") from None


def remove_journals(folder: Path) -> None:
    """Forget what a folder's journals hold."""
    for path in folder.glob("journal-*.jsonl"):
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"{path} cannot be removed: {error.strerror}") from None


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a killed process left without its end."""
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror}; use another --output") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
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
