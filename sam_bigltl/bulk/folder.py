"""A folder of results, on this machine or at any address that fsspec knows: files appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..data.files import cannot_write, remove_partials, whole_path
from ..errors import InputError

SETTINGS = "settings.json"
_LOCK = ".lock"


class Folder:
    """Files below an address; it can be pickled.

    Args:
        address: a path, or s3://bucket/folder and so on. Raises InputError where no package reads such an address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.fs, self.root = file_system(address)

    @property
    def local(self) -> Path | None:
        """The path, where it is one of this machine."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """Where the file system has a file."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file's content, or None where there is no such file."""
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all. Raises OSError.

        Object stores show an object once all of it is there.
        """
        if self.local is None:
            self.fs.pipe_file(self.path(name), content)
            return
        with whole_path(self.local / name) as partial:
            partial.write_bytes(content)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def names(self, folder: str = "") -> list[str]:
        """The files in a folder itself, sorted."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path(folder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def clean(self, *folders: str) -> None:
        """Remove what killed writers have left in these folders of this machine."""
        local = self.local
        for folder in folders if local is not None else ():
            remove_partials(Path(local or "") / folder)

    def keep_settings(self, settings: dict[str, Any]) -> None:
        """Write `settings`, or compare: results of two settings must not stand side by side.

        Raises InputError where the folder is of other ones.
        """
        settings = json.loads(json.dumps(settings))
        before = self.settings()
        if before is None:
            try:
                self.write(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
            except OSError as error:
                raise cannot_write(self.path(SETTINGS), error) from None
            return
        changed = sorted(key for key in {*settings, *before} if before.get(key) != settings.get(key))
        if changed:
            words = ", ".join(
                f"{key} was {_short(before.get(key))} and is {_short(settings.get(key))}" for key in changed
            )
            raise InputError(f"{self.address} holds results of other settings ({words}): give another --output")

    def settings(self) -> dict[str, Any] | None:
        """The settings of an earlier run, or None. Raises InputError where the file is none of this project's."""
        content = self.read(SETTINGS)
        if content is None:
            return None
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{self.path(SETTINGS)} is not of `sam-bigltl bulk`: give another --output")
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse a second run into a folder of this machine, for the time of the block. Raises InputError."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        if self.local is None:
            yield
            return
        if self.local.is_file():
            raise InputError(f"{self.address} is a file: give a folder with --output")
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            file = os.open(self.local / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise cannot_write(self.local, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise InputError(f"another run is writing into {self.address}: wait for it, or stop it") from None
        try:
            yield
        finally:
            (self.local / _LOCK).unlink(missing_ok=True)
            os.close(file)  # which ends the lock


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it. Raises InputError where no package reads it."""
    try:
        fs, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(f"{address} cannot be opened: {error}") from None
    return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else str(path)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
