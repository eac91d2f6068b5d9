"""Which photographs there are: in folders, lists, tar shards and Parquet files, on this machine or at addresses.

They are divided into shards, of which each becomes one file of results: a tar or Parquet file is one, other photographs
are counted off by their order. The division depends on the input alone, so that an interrupted run finds it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..data.files import encodable
from ..data.photos import SUFFIXES, is_hidden
from ..data.shards import ENDINGS, MOST_SHARDS
from ..errors import InputError
from .folder import file_system

FILES, TAR, PARQUET = "files", "tar", "parquet"
CHUNK = 16  # photographs that are read, encoded and written together: what is done again where a worker dies
SHARD_SIZE = 256  # photographs of a shard, of those that are files of their own


@dataclass(frozen=True)
class Shard:
    """A part of the input whose results are one file.

    Attributes:
        number: from 0.
        kind: FILES, TAR or PARQUET.
        addresses: of the photographs, or of the one tar or Parquet file.
        keys: names of the photographs, or of the tar or Parquet file, in the results.
    """

    number: int
    kind: str
    addresses: tuple[str, ...] = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """In the names of its files."""
        return f"{self.number:05d}"


def find_shards(address: str, size: int = SHARD_SIZE) -> list[Shard]:
    """The shards of a folder, a .txt list, tar or Parquet files, or a pattern such as `sa_{000..009}.tar`.

    Args:
        address: a path, or what fsspec opens: s3://, gs://, https:// and others.
        size: photographs of a shard, where they are files of their own.

    Raises:
        InputError: there is nothing of the kind, or several kinds side by side.
    """
    if size < 1:
        raise InputError(f"a shard has at least 1 photograph, not {size}")
    fs, path = file_system(address)
    lower = address.lower()
    if "{" in address and not _exists(fs, path, address):
        return _of_files(_expanded(address), address)
    if lower.endswith((*ENDINGS, ".parquet")):
        if not _exists(fs, path, address):
            raise InputError(f"no such file: {address}")
        return _of_files([address], address)
    if lower.endswith(".txt"):
        return _counted_off(_listed(fs, path, address), size)
    if not _is_folder(fs, path, address):
        raise InputError(f"{address} is neither a folder nor a .txt list, nor .tar or .parquet files")
    return _of_folder(fs, path, address, size)


def digest(shards: Iterable[Shard]) -> str:
    """A hash of which photographs are in which shard, by their names."""
    found = hashlib.sha256()
    for shard in shards:
        found.update("\0".join((shard.name, shard.kind, *shard.keys, "\n")).encode())
    return found.hexdigest()


def _of_folder(fs: Any, path: str, address: str, size: int) -> list[Shard]:
    root = path.rstrip("/")
    found: dict[str, list[str]] = {kind: [] for kind in (FILES, TAR, PARQUET)}
    for each in sorted(fs.find(root)):
        name = each[len(root) :].lstrip("/")
        kind = _kind(name)
        if kind is not None and not is_hidden(name):
            found[kind].append(name)
    kinds = [kind for kind, names in found.items() if names]
    if not kinds:
        raise InputError(f"{address} has neither photographs nor .tar or .parquet files")
    if len(kinds) > 1:
        words = {FILES: "photographs", TAR: "tar files", PARQUET: "Parquet files"}
        counts = " and ".join(f"{len(found[kind])} {words[kind]}" for kind in kinds)
        raise InputError(f"{address} holds {counts}: give a folder of one kind")
    names = found[kinds[0]]
    entries = [(encodable(name), f"{address.rstrip('/')}/{name}") for name in names]
    if kinds == [FILES]:
        return _counted_off(entries, size)
    return [Shard(number, kinds[0], (place,), (key,)) for number, (key, place) in enumerate(entries)]


def _of_files(addresses: Sequence[str], given: str) -> list[Shard]:
    """Tar or Parquet files, each a shard of its own."""
    kinds = {_kind(address) for address in addresses}
    if len(kinds) > 1 or not kinds <= {TAR, PARQUET}:
        raise InputError(f"{given} names files other than .tar or .parquet ones, or both kinds")
    names = [address.rpartition("/")[2] for address in addresses]
    keys = names if len(set(names)) == len(names) else addresses  # not those of train/0.tar and val/0.tar
    kind = kinds.pop() or ""
    return [Shard(i, kind, (place,), (encodable(key),)) for i, (key, place) in enumerate(zip(keys, addresses))]


def _counted_off(entries: Sequence[tuple[str, str]], size: int) -> list[Shard]:
    shards: list[Shard] = []
    for start in range(0, len(entries), size):
        keys, addresses = zip(*entries[start : start + size])
        shards.append(Shard(len(shards), FILES, addresses, keys))
    return shards


def _listed(fs: Any, path: str, address: str) -> list[tuple[str, str]]:
    """Name and address of every line of a list; names without a folder or protocol are beside the list."""
    try:
        lines = fs.cat_file(path).decode().splitlines()
    except FileNotFoundError:
        raise InputError(f"no such list: {address}") from None
    except UnicodeDecodeError:
        raise InputError(f"{address} is not a text file in UTF-8, with one photograph a line") from None
    except OSError as error:
        raise InputError(f"{address} cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{address} names no photographs: write one a line")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{address} names {name} twice: leave one out")
        seen.add(name)
    for first in {name.partition("://")[0]: name for name in names if "://" in name}.values():
        file_system(first)  # once a protocol: a package that is missing is no fault of each photograph
    folder = address.rpartition("/")[0]
    beside = f"{folder}/" if folder or address.startswith("/") else ""
    return [(name, name if name.startswith("/") or "://" in name else beside + name) for name in names]


def _expanded(pattern: str) -> list[str]:
    try:
        from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
    except ModuleNotFoundError:
        raise InputError(f"{pattern} has braces, which need the package braceexpand: pip install braceexpand") from None
    try:
        found = list(islice(braceexpand(pattern), MOST_SHARDS + 1))
    except UnbalancedBracesError:
        raise InputError(f"{pattern} has braces that do not close") from None
    if len(found) > MOST_SHARDS:
        raise InputError(f"{pattern} names more than {MOST_SHARDS} files")
    for address in found:
        fs, path = file_system(address)
        if not _exists(fs, path, address):
            raise InputError(f"no such file: {address}")
    return found


def _kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(ENDINGS):
        return TAR
    if lower.endswith(".parquet"):
        return PARQUET
    return FILES if lower.endswith(tuple(SUFFIXES)) else None


def _exists(fs: Any, path: str, address: str) -> bool:
    return _asked(fs.exists, path, address)


def _is_folder(fs: Any, path: str, address: str) -> bool:
    return _asked(fs.isdir, path, address)


def _asked(question: Any, path: str, address: str) -> bool:
    try:
        return bool(question(path))
    except Exception as error:  # each protocol's client has errors of its own
        raise InputError(f"{address} cannot be looked at: {str(error) or type(error).__name__}") from None
