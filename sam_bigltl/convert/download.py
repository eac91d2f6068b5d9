"""`sam-bigltl download`: SAM's published checkpoints, checked, and resumed where an earlier try broke off."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from ..errors import InputError

URL = "https://dl.fbaipublicfiles.com/segment_anything"
TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**16  # of which a part is lost where a connection breaks off


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    name: str
    size: int  # bytes
    sha256: str


# The six digits in each name are the start of the file's MD5, which is no protection: the whole SHA-256 is compared.
FILES = {
    "vit_b": Published(
        "sam_vit_b_01ec64.pth", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Published(
        "sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Published(
        "sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}


def download(url: str, target: Path, published: Published) -> None:
    """Fetch `url` into `target`.

    What has come is kept in `<target>.partial`, which a later call goes on from; `target` is whole or not there.

    Args:
        published: what the file must be. Its `name` is not looked at.

    Raises:
        InputError: no connection, an answer other than the file, a disk that is full, something else in the way, or
            content of another SHA-256, which is removed.
    """
    _check_address(url)
    if target.is_dir():
        raise InputError(f"{target} is a folder: remove it, or give another --output")
    partial = target.with_name(target.name + ".partial")
    for _ in range(2):
        try:
            resumed = _fetch(url, partial, published.size)
        except _Another as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"{url} is not the published file ({error}): it was removed; check --url") from None
        if is_published(partial, published):
            partial.replace(target)
            return
        found = pooch.file_hash(partial)
        partial.unlink()
        if not resumed:
            break
        # The first part was of a file that has changed since, or was damaged here.
        print("the parts do not fit together: starting over")
    raise InputError(f"{url} is not the published file (SHA-256 {found}): it was removed; check --url")


def is_published(path: Path, published: Published) -> bool:
    try:
        return path.stat().st_size == published.size and pooch.file_hash(path) == published.sha256
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _check_address(url: str) -> None:
    try:
        requests.Request("GET", url).prepare()
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        usable = parts.scheme in ("http", "https") and url.isprintable()
    except ValueError:  # of which requests' exceptions for addresses are kinds
        usable = False
    if not usable:
        raise InputError(f"{_plain(url)} is no address: --url is such as {URL}")


class _Partial:
    """The file that a download is written to, with its progress bar. It takes no more than `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.answered = path, size, False
        self.file = _open(path)
        self.start = self.length = os.fstat(self.file).st_size
        options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}
        self.bar = tqdm(total=size, initial=self.length, desc=path.stem, **options)
        if self.length > size:  # of another file
            self.restart()

    def restart(self) -> None:
        """Drop what earlier calls wrote."""
        os.ftruncate(self.file, 0)
        self.start = self.length = self.bar.n = 0

    def write(self, chunk: bytes) -> None:
        if self.length + len(chunk) > self.size:
            raise _Another(f"it is longer than {self.size} bytes")
        rest = memoryview(chunk)
        while rest:
            try:
                rest = rest[os.write(self.file, rest) :]
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror}") from None
        self.length += len(chunk)
        self.bar.update(len(chunk))

    def flush(self) -> None:
        """pooch asks for it; nothing is held back here."""

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        os.close(self.file)
        if not self.length:
            self.path.unlink()


class _Another(Exception):
    """What the server sends is not the published file. Says why."""


def _open(path: Path) -> int:
    """A file descriptor that appends: of a new file, or of one that an earlier call made.

    A link under this name, which somebody may have put there, is not followed.
    """
    flags = os.O_WRONLY | os.O_APPEND
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not everywhere
        flags |= getattr(os, name, 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            file = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a pipe
            raise _in_the_way(path) from None
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    about = os.fstat(file)
    ours = not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
    if not (stat.S_ISREG(about.st_mode) and about.st_nlink == 1 and ours) or path.is_symlink():
        os.close(file)
        raise _in_the_way(path)
    return file


def _in_the_way(path: Path) -> InputError:
    return InputError(f"{path}, where the download would go on, is not a file that an earlier one left: remove it")


def _fetch(url: str, path: Path, size: int) -> bool:
    """Bring the file at `path` to `size` bytes; says whether it was begun by an earlier call."""
    with _Partial(path, size) as partial:
        if partial.length == size:
            return True
        free = shutil.disk_usage(path.parent).free
        if free < size - partial.length:
            rest = f"{free / 1e9:.2f} GB left of {size / 1e9:.2f} GB"
            raise InputError(f"{path.parent} has {rest}: give another --output")

        def check(answer: requests.Response, **_: object) -> None:
            if answer.is_redirect:
                return
            partial.answered = True
            if answer.status_code == 200:  # a server without ranges sends all of it
                partial.restart()
            elif answer.status_code != 206:
                raise _refused(url, answer)
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {partial.start}-"):
                raise InputError(f"{url} does not answer with the range that was asked for: remove {path}")
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal() and partial.start + int(length) != size:
                raise _Another(f"{partial.start + int(length)} bytes instead of {size}")

        headers = {"Accept-Encoding": "identity"}
        if partial.start:
            headers["Range"] = f"bytes={partial.start}-"
        options: dict[str, Any] = {"headers": headers, "hooks": {"response": check}, "timeout": TIMEOUT}
        try:
            pooch.HTTPDownloader(chunk_size=_CHUNK, **options)(url, partial, None)
        except InputError:
            raise
        except ValueError as error:  # of headers
            raise InputError(f"the answer of {_host(url)} makes no sense ({_reason(error)}): check --url") from None
        except requests.RequestException as error:
            raise _broken(url, partial, _reason(error)) from None
        if partial.length < size:  # the connection ended early, and the server had not said how much there is
            raise _broken(url, partial, "it ended early")
        return partial.start > 0


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]  # without a password


def _refused(url: str, answer: requests.Response) -> InputError:
    if answer.status_code == 404:
        return InputError(f"{url} does not exist (404): check --url")
    reason = _plain(answer.reason or "")
    return InputError(f"{url} cannot be fetched: the server answers {answer.status_code} {reason}; check --url")


def _broken(url: str, partial: _Partial, reason: str) -> InputError:
    host = _host(url)
    if not partial.answered:
        return InputError(f"{host} cannot be reached ({reason}): check the network, or use --url")
    return InputError(
        f"the connection to {host} broke off ({partial.length} of {partial.size} bytes, {reason}): "
        f"run it again to go on from {partial.path}"
    )


def _reason(error: BaseException) -> str:
    """What lies below the several exceptions that requests and urllib3 wrap around it."""
    while below := error.__cause__ or error.__context__:
        error = below
    return _plain(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _plain(text: str) -> str:
    """Text of a stranger for a terminal, of a bearable length."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)[:120]
