"""The journal of an evaluation: one line an image, so that an interrupted run repeats none and loses none.

Several processes write one file each into the same folder; whoever reads takes all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.jsonl import append_line, cut_torn_line, read_lines
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
            cut_torn_line(self.path)  # of another process it may be one that is being written
        for path in self._paths():
            header = next(read_lines(path), None)
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
            for line in read_lines(path):
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
        append_line(self.path, line)


def remove_journals(folder: Path) -> None:
    """Forget what a folder's journals hold."""
    for path in folder.glob("journal-*.jsonl"):
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"{path} cannot be removed: {error.strerror}") from None
