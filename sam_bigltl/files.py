"""Files that are written whole or not at all, and file names of any bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


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
    prefix = _prefix(path)
    for folder in path.parent.iterdir() if path.parent.is_dir() else ():
        if folder.name.startswith(prefix):
            shutil.rmtree(folder, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
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
    return f"partial-{path.stem[:40]}-"
