"""Tar shards: which there are, and their photographs, read from front to back as streams."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .photos import SUFFIXES, is_hidden

ENDINGS = (".tar", ".tar.gz", ".tgz")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # of two letters at least: C: is a drive
MOST_SHARDS = 100_000
MOST_BYTES = 2**29  # of a file in a shard: 80 megapixels of 16-bit RGB fit. A packed one can declare any size
ASIDE = 16  # files of one sample that are looked through for its photograph

Files = dict[str, bytes | None]  # contents by suffix; None of a file that is too large


def shards_in(folder: Path) -> list[str]:
    """The shards of a folder, sorted."""
    return sorted(
        str(path)
        for path in folder.iterdir()
        if path.name.lower().endswith(ENDINGS) and path.is_file() and not is_hidden(path.name)
    )


def expand(pattern: str, addresses: bool) -> list[str]:
    """The shards that a pattern such as `sa_{000000..000009}.tar` names; a file of that very name comes first.

    Args:
        addresses: whether what begins like http: is one, and not a file.

    Raises:
        InputError: a file is missing, or the pattern is none.
    """
    if Path(pattern).is_file():
        return [pattern]
    # Its stub lacks the error.
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        shards = list(islice(braceexpand(pattern), MOST_SHARDS + 1))
    except UnbalancedBracesError:
        raise InputError(f"{pattern} has braces that do not close") from None
    if len(shards) > MOST_SHARDS:
        raise InputError(f"{pattern} names more than {MOST_SHARDS} shards")
    missing = [shard for shard in shards if not (addresses and ADDRESS.match(shard)) and not Path(shard).is_file()]
    if missing and not addresses and ADDRESS.match(missing[0]):
        raise InputError(
            f"no shard {missing[0]}: there is no such file; for an address, or a command after pipe:, give --allow-urls"
        )
    if missing:
        more = f", and {len(missing) - 1} more are missing" * (len(missing) > 1)
        raise InputError(f"no shard {missing[0]}{more}")
    return shards


def read_files(shard: str, addresses: bool) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of every photograph and JSON of a shard, packed or not.

    Args:
        shard: a path; with `addresses` also what `webdataset` opens: http:, gs: and others, and commands after pipe:.
    """
    with _opened(shard, addresses) as stream:
        yield from read_tar(stream)


def read_tar(stream: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """`read_files` of a stream that is open."""
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for entry in tar:
            suffix = "." + entry.name.rpartition(".")[2].lower()
            if entry.isreg() and (suffix in SUFFIXES or suffix == ".json") and not is_hidden(entry.name):
                packed = tar.extractfile(entry)
                assert packed is not None  # of a regular file
                yield entry.name, None if entry.size > MOST_BYTES else packed.read()
            tar.members = []  # type: ignore[attr-defined]  # missing in typeshed. It would remember all of them
        while stream.read(2**20):  # a command whose output is left would end with an error
            pass


@contextmanager
def _opened(shard: str, addresses: bool) -> Iterator[BinaryIO]:
    if addresses and ADDRESS.match(shard) and not Path(shard).is_file():
        from webdataset.gopen import gopen  # takes a second to import

        stream = gopen(shard)
    else:  # by us: webdataset runs a file's name in the shell where it begins with pipe:
        stream = open(shard, "rb")
    try:
        yield stream
    except BaseException:
        with suppress(Exception):  # a command that is not read to its end does not end well
            stream.close()
        raise
    stream.close()


def samples(files: Iterable[tuple[str, bytes | None]]) -> Iterator[tuple[str, Files]]:
    """The files of each photograph, by what follows the last dot of their names: IMG.2023.01.jpg and IMG.2023.01.json.

    Where a photograph x.jpg is among them, others of its first name, such as x.depth.png, belong to it (as in
    `webdataset`) and are left out. Files of one first name stand together; in front of x.jpg are not more than `ASIDE`.
    """
    first = ""
    group: dict[str, Files] = {}
    for name, content in files:
        folder, slash, file = name.rpartition("/")
        if (own := folder + slash + file.partition(".")[0]) != first:
            yield from _photographs(first, group)
            first, group = own, {}
        stem, _, suffix = name.rpartition(".")
        if stem not in group and len(group) >= ASIDE:
            oldest = next(iter(group))
            yield oldest, group.pop(oldest)
        group.setdefault(stem, {})[suffix.lower()] = content
    yield from _photographs(first, group)


def _photographs(first: str, group: dict[str, Files]) -> Iterator[tuple[str, Files]]:
    whole = group.get(first, {})
    yield from {first: whole}.items() if whole.keys() - {"json"} else group.items()
