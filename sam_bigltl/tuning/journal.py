"""What a tuning has on disk, so that an interrupted one repeats no photograph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import cannot_write
from ..data.jsonl import append_line, cut_torn_line, read_lines
from ..errors import InputError
from .agreement import Measured
from .settings import Setting

NAME, TRAINING, MODEL = "journal.jsonl", "training", "model.safetensors"


class Journal:
    """Records of a tuning, in memory and, with a folder, in its `journal.jsonl`.

    Args:
        folder: made where it is missing; None keeps nothing.
        about: everything that a result depends on, JSON-ready.
        restart: forget what the folder holds.

    Raises:
        InputError: the folder holds a tuning of something else, or cannot be read or written.
    """

    def __init__(self, folder: Path | None, about: dict[str, Any], restart: bool = False) -> None:
        self.path = None if folder is None else folder / NAME
        self.facts: dict[str, Any] = {}
        self._prompts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._measured: dict[tuple[str, str, Setting], Measured] = {}
        if folder is None or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if restart and self.path.exists():  # last the journal: without it nothing in the folder is a tuning's
                if (folder / TRAINING).exists():
                    shutil.rmtree(folder / TRAINING)
                (folder / MODEL).unlink(missing_ok=True)
                self.path.unlink()
        except OSError as error:
            raise cannot_write(self.path.parent, error) from None
        about = json.loads(json.dumps(about))
        if not self.path.exists() and (mine := [name for name in (MODEL, TRAINING) if (folder / name).exists()]):
            raise InputError(f"{folder / mine[0]} is no tuning's, and would be overwritten: use another --output")
        if self.path.exists():
            cut_torn_line(self.path)
            self._read(about)
        if not self.path.exists() or not self.path.stat().st_size:
            append_line(self.path, {"about": about})

    def _read(self, about: dict[str, Any]) -> None:
        assert self.path is not None
        for number, line in enumerate(read_lines(self.path)):
            if number == 0:
                stored = line.get("about")
                if stored != about:
                    stored = stored if isinstance(stored, dict) else {}
                    changed = sorted(key for key in about | stored if about.get(key) != stored.get(key))
                    raise InputError(
                        f"{self.path.parent} holds a tuning of something else ({', '.join(changed)} differ): use "
                        "another --output, or --restart to throw it away"
                    )
                continue
            try:
                self._take(line)
            except (KeyError, TypeError, ValueError):
                raise InputError(f"{self.path} is damaged: delete it, or use --restart") from None

    def _take(self, line: dict[str, Any]) -> None:
        kind = line.pop("kind")
        if kind == "prompts":
            boxes = np.array(line["boxes"], dtype=np.float64).reshape(-1, 4)
            points = np.array(line["points"], dtype=np.float64).reshape(-1, 2)
            self._prompts[line["photograph"]] = boxes, points
        elif kind == "measured":
            key = line.pop("phase"), line.pop("photograph"), Setting.from_json(line.pop("setting"))
            self._measured[key] = Measured(**line)
        else:
            self.facts[kind] = line["value"]

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            append_line(self.path, line)

    def note(self, kind: str, value: Any) -> None:
        """Remember something by name; `facts` has it, from disk with lists in place of tuples."""
        self.facts[kind] = value
        self._write({"kind": kind, "value": value})

    def prompts(self, photograph: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Boxes (n, 4) and points (n, 2) of a photograph, where they are known."""
        return self._prompts.get(photograph)

    def add_prompts(self, photograph: str, boxes: np.ndarray, points: np.ndarray) -> None:
        self._prompts[photograph] = boxes, points
        line = {"kind": "prompts", "photograph": photograph, "boxes": boxes.tolist(), "points": points.tolist()}
        self._write(line)

    def measured(self, phase: str, photograph: str, setting: Setting) -> Measured | None:
        """What a setting made of a photograph, where it was measured; `phase` is "tuned" or "before training"."""
        return self._measured.get((phase, photograph, setting))

    def add_measured(self, phase: str, photograph: str, setting: Setting, measured: Measured) -> None:
        self._measured[phase, photograph, setting] = measured
        about = {"kind": "measured", "phase": phase, "photograph": photograph, "setting": setting.as_json()}
        self._write(about | measured.as_json())
