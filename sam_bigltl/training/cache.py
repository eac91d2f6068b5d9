"""The teacher's embeddings on disk: computed once, read at every epoch.

A folder of safetensors files, one for each group of photographs, with an embedding (C, g, g) in float16 under each
photograph's name, and an index for each process that wrote some (`index.jsonl`, `index_1.jsonl`): a line that says
whose embeddings they are, then one for each file with its SHA-256 and names. A file is listed once it is whole, so that
an interrupted run goes on with the next group.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from ..data.files import encodable, remove_partial, utf8_path, whole_path
from ..data.skipped import Skipped
from ..data.sources import Photo, Source
from ..errors import InputError

GROUP = 64  # photographs a file, which is what an interruption costs at most
OPEN_FILES = 32


class EmbeddingCache:
    """Embeddings in `folder`.

    Args:
        folder: made if it is not there.
        teacher: fingerprint of the teacher's weights and input size.
        part: (number of this process, processes) that fill it together.

    Raises:
        InputError: the folder holds another teacher's embeddings, or its index is damaged.
    """

    def __init__(self, folder: Path, teacher: str, part: tuple[int, int] = (0, 1)) -> None:
        self.folder, self.part = folder, part
        self._suffix = f"_{part[0]}" if part[0] else ""
        self.digests: dict[str, str] = {}  # by file
        self.skipped: dict[str, str] = {}  # reasons by name
        self._file_of: dict[str, str] = {}  # by photograph
        self._done: set[str] = set()  # units of which nothing is missing
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lines: list[dict[str, Any]] = [{"teacher": teacher}]  # to be written
        for number, index in enumerate(sorted(folder.glob("index*.jsonl"))):
            self._read_index(index, teacher, repair=number % part[1] == part[0])

    @property
    def index_path(self) -> Path:
        return self.folder / f"index{self._suffix}.jsonl"

    def _read_index(self, path: Path, teacher: str, repair: bool) -> None:
        lines = path.read_bytes().split(b"\n")
        if lines[-1] and repair:  # cut off while it was written
            os.truncate(path, sum(len(line) + 1 for line in lines[:-1]))
        if len(lines) == 1:  # not even the first is there
            return
        try:
            first, *rest = (json.loads(line) for line in lines[:-1])
            theirs = first["teacher"]
            for line in rest:
                if line["file"]:
                    if Path(line["file"]).name != line["file"]:
                        raise ValueError("not a file of this folder")
                    self.digests[line["file"]] = line["sha256"]
                    self._file_of |= dict.fromkeys(line["keys"], line["file"])
                self._done |= set(line["done"])
                self.skipped |= line["skipped"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path} is no index of embeddings: remove {self.folder}, start again") from None
        if theirs != teacher:
            raise InputError(f"{self.folder} holds the embeddings of another teacher: give another --cache")
        if path == self.index_path:
            self._lines = []

    def get(self, key: str) -> np.ndarray | None:
        """The embedding (C, g, g) float16 of a photograph, or None if there is none."""
        name = self._file_of.get(key)
        if name is None:
            return None
        if name not in self._open:
            with utf8_path(self.folder / name) as readable:
                self._open[name] = safe_open(readable, framework="numpy")
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name].get_tensor(encodable(key))

    def verify(self) -> None:
        """Read this process's share of the files and raise InputError unless their SHA-256 is the index's."""
        for name, digest in sorted(self.digests.items())[self.part[0] :: self.part[1]]:
            try:
                content = (self.folder / name).read_bytes()
            except (OSError, ValueError):  # ValueError: a name that no file can have
                content = b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise InputError(f"{self.folder / name} is damaged: remove {self.folder} and start again")

    def fill(
        self, source: Source, embed: Callable[[Photo], np.ndarray], size: tuple[int, int, int], progress: bool = True
    ) -> None:
        """Compute what is missing of this process's share; `skipped` says what could not be.

        Args:
            embed: the embedding of one photograph.
            size: its shape.

        Raises:
            InputError: the folder cannot be made, or there is not enough space, by the estimate made before the first
                embedding or in the end.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache {self.folder} cannot be made: {error.strerror}") from None
        remove_partial(self.folder / self._next_name())
        count, present, bytes_each = source.estimate(), len(self._file_of), int(np.prod(size)) * 2
        needed, free = max(0, count - present) * bytes_each, shutil.disk_usage(self.folder).free
        if self.part[0] == 0:
            print(
                f"cache: about {count} embeddings of {bytes_each / 1e6:.2f} MB are {count * bytes_each / 1e9:.2f} GB; "
                f"{present} are there, {free / 1e9:.1f} GB are free", flush=True,
            )  # fmt: skip
        if needed > free:
            raise InputError(f"--cache {self.folder} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        group: dict[str, np.ndarray] = {}
        done: list[str] = []
        skipped: dict[str, str] = {}
        shown = progress and self.part[0] == 0
        share = {"total": count // self.part[1], "initial": present // self.part[1]}
        with tqdm(**share, unit="image", disable=None if shown else True) as bar:
            for unit in source.units()[self.part[0] :: self.part[1]]:
                if unit in self._done or unit in self._file_of:  # photographs of their own are their units
                    continue
                for photo in source.unit(unit):
                    if isinstance(photo, Skipped):
                        if photo.key not in self.skipped:
                            skipped[photo.key] = photo.reason
                    elif photo.key not in self._file_of:
                        group[photo.key] = np.ascontiguousarray(embed(photo), np.float16)  # safetensors needs it
                        bar.update()
                    if len(group) >= GROUP:
                        self._write(group, done, skipped)
                        group, done, skipped = {}, [], {}
                if unit not in group:
                    done.append(unit)
            if group or done or skipped:
                self._write(group, done, skipped)

    def _next_name(self) -> str:
        """Of this process's next file."""
        prefix = f"embeddings{self._suffix}"
        return f"{prefix}_{sum(name.rsplit('_', 1)[0] == prefix for name in self.digests):06d}.safetensors"

    def _write(self, group: dict[str, np.ndarray], done: list[str], skipped: dict[str, str]) -> None:
        """Write a group, then its line of the index."""
        try:
            name = self._next_name() if group else None
            if name:
                with whole_path(self.folder / name) as partial:
                    save_file({encodable(key): value for key, value in group.items()}, partial)
                    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
                self.digests[name] = digest
            self._lines.append({
                "file": name, "sha256": self.digests[name] if name else None, "keys": list(group), "done": done,
                "skipped": skipped,
            })  # fmt: skip
            with self.index_path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in self._lines)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
            reason = "the disk is full: make room and start again, it goes on here" if full else error
            raise InputError(f"--cache {self.folder}: {reason}") from None
        self._lines = []
        if name:
            self._file_of |= dict.fromkeys(group, name)
        self._done |= set(done)
        self.skipped |= skipped
