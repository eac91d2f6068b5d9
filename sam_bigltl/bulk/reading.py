"""Photographs of a shard, read and decoded chunk by chunk: what the tasks of Ray Data do before the encoder.

Without torch, which would take a second and 0.3 GB of each of their processes.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow

from ..data.files import encodable
from ..data.images import decode_image
from ..data.photos import SUFFIXES
from ..data.shards import Files, read_tar, samples
from ..errors import InputError
from ..predict.longest_side import resized
from ..predict.prompt import usable
from .inputs import CHUNK, FILES, TAR, Shard
from .prompts import NAMES, Asked, ByName, of_columns, of_json

_IMAGES = ("image", "jpg", "jpeg", "png", "image_bytes", "bytes", "content")  # a Parquet file's column of photographs
_SUFFIXES = tuple(sorted(suffix[1:] for suffix in SUFFIXES))

END = -1  # in place of a chunk's number: the row says how many a shard has
AskedOf = Callable[[str, "Raw"], list[Asked]]


@dataclass(frozen=True)
class Raw:
    """A photograph as it is kept.

    Attributes:
        key: its name in the results.
        content: the file, or what gives it.
        columns: of a Parquet file's row, boxes, points and labels.
        beside: the JSON beside it in a tar.
        error: why there is nothing of it.
    """

    key: str
    content: bytes | Callable[[], bytes] = field(default=b"", repr=False)
    columns: tuple[Any, ...] = ()
    beside: bytes | None = field(default=None, repr=False)
    error: str = ""


@dataclass(frozen=True)
class Photograph:
    """A photograph to segment.

    Attributes:
        key: its name in the results.
        sha256: of its file, or None where that could not be read.
        size: (H, W), or None where it could not be decoded.
        pixels: uint8 RGB, at the encoder's size, or its own in everything mode.
        asked: the prompts that can be used, each with its number among all of them.
        errors: what could not be used, in words.
    """

    key: str
    sha256: str | None = None
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    asked: tuple[tuple[int, Asked], ...] = ()
    errors: tuple[str, ...] = ()


def read_chunks(
    shard: Shard,
    asked_of: AskedOf,
    side: int | None = None,
    done: Collection[int] = (),
    image_column: str | None = None,
) -> Iterator[tuple[int, list[Photograph] | None]]:
    """The photographs of a shard by chunks of `CHUNK`, each with its number.

    A tar or Parquet file that ends in the middle gives what is before, and one photograph of errors in its name.

    Args:
        asked_of: the prompts of a photograph.
        side: of the encoder, to which the longer side is brought; None leaves photographs as they are.
        done: chunks that are not decoded: None stands for them.
        image_column: of Parquet, where it is not one of the usual ones.
    """
    for number, raws in enumerate(_chunks(_raws(shard, image_column))):
        yield number, None if number in done else [_read(raw, asked_of, side) for raw in raws]


def prompts_beside(_: str, raw: Raw) -> list[Asked]:
    """The prompts that come with a photograph, in a Parquet file's columns or in the JSON beside it in a tar."""
    if raw.columns:
        return of_columns(*raw.columns)
    if raw.beside is None:
        return []
    try:
        return of_json(json.loads(raw.beside))
    except (ValueError, RecursionError):
        return [Asked(InputError("the JSON beside it is not readable"))]


def _chunks(raws: Iterable[Raw]) -> Iterator[list[Raw]]:
    chunk: list[Raw] = []
    for raw in raws:
        chunk.append(raw)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _raws(shard: Shard, image_column: str | None) -> Iterator[Raw]:
    if shard.kind == FILES:
        for key, address in zip(shard.keys, shard.addresses):
            yield Raw(key, partial(_content, address))
        return
    address, key = shard.addresses[0], shard.keys[0]
    found = _tar(address, key) if shard.kind == TAR else _parquet(address, key, image_column)
    count = 0
    try:
        for raw in found:
            yield raw
            count += 1
    except Exception as error:  # on damaged files every reader raises what it happens to meet
        yield Raw(key, error=f"the rest of it cannot be read ({_reason(error)})")
    else:
        if not count:
            yield Raw(key, error="has no photographs")


def _content(address: str) -> bytes:
    with fsspec.open(address, "rb") as file:
        return file.read()


def _tar(address: str, key: str) -> Iterator[Raw]:
    with fsspec.open(address, "rb") as stream:
        for name, files in samples(read_tar(stream)):
            suffix = next((each for each in _SUFFIXES if each in files), None)
            yield _of_sample(f"{key}/{name}", suffix, files)


def _of_sample(key: str, suffix: str | None, files: Files) -> Raw:
    key = encodable(key if suffix is None else f"{key}.{suffix}")
    if suffix is None:
        return Raw(key, error="has no image beside it")
    content = files[suffix]
    if content is None:
        return Raw(key, error="has an image of more than 512 MB")
    return Raw(key, content, beside=files.get("json"))


def _parquet(address: str, key: str, image_column: str | None) -> Iterator[Raw]:
    import pyarrow.parquet

    with fsspec.open(address, "rb") as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        columns = file.schema_arrow.names
        image = image_column or next((name for name in _IMAGES if name in columns), None)
        if image not in columns:
            raise InputError(f"no column {image or 'image'} among {', '.join(columns)}: name it with --image-column")
        name = next((name for name in NAMES if name in columns), None)
        beside = [column for column in ("boxes", "points", "labels") if column in columns]
        number, seen = 0, set()
        for batch in file.iter_batches(CHUNK, columns=[image, *beside, *([name] if name else [])]):
            for row in batch.to_pylist():
                content: Any = row[image]
                path = None
                if isinstance(content, dict):  # of a Hugging Face data set
                    content, path = content.get("bytes"), content.get("path")
                own = str(row[name]) if name and row[name] is not None else f"{key}/{path or number}"
                number += 1
                if own in seen:
                    yield Raw(encodable(own), error="has the name of an earlier photograph of the file")
                    continue
                seen.add(own)
                if not isinstance(content, bytes):
                    yield Raw(encodable(own), error=f"its column {image} holds no bytes")
                else:
                    yield Raw(encodable(own), content, tuple(row.get(each) for each in ("boxes", "points", "labels")))


def _read(raw: Raw, asked_of: AskedOf, side: int | None) -> Photograph:
    if raw.error:
        return Photograph(raw.key, errors=(raw.error,))
    try:
        content = raw.content() if callable(raw.content) else raw.content
    except Exception as error:  # each protocol's client has errors of its own
        return Photograph(raw.key, errors=(f"cannot be read ({_reason(error)})",))
    digest = hashlib.sha256(content).hexdigest()
    try:
        if not content:
            raise InputError("is empty (0 bytes)")
        pixels = decode_image(content, raw.key)
    except InputError as error:
        return Photograph(raw.key, digest, errors=(_without(raw.key, str(error)),))
    size = (pixels.shape[0], pixels.shape[1])
    asked, errors = _usable(asked_of(raw.key, raw), size)
    if side is not None:
        pixels = resized(pixels, side)
    return Photograph(raw.key, digest, size, pixels, asked, errors)


def _usable(asked: list[Asked], size: tuple[int, int]) -> tuple[tuple[tuple[int, Asked], ...], tuple[str, ...]]:
    good: list[tuple[int, Asked]] = []
    errors: list[str] = []
    for number, each in enumerate(asked):
        prompts, wrong = usable([each.prompt], size)
        good += [(number, each)] if prompts else []
        errors += [f"prompt {number}: {error}" for error in wrong]
    return tuple(good), tuple(errors)


def _without(key: str, message: str) -> str:
    return message.removeprefix(key).strip() or message


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):  # fsspec's have the address alone
        return "there is no such file"
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())[:300]


def read_task(
    batch: pyarrow.Table, columns: bool, side: int | None, image_column: str | None, shared: Any
) -> Iterator[pyarrow.Table]:  # fmt: skip
    """A task of Ray Data: the chunks of shards, and a last row with their number.

    `shared` are a file's prompts, or their reference, where a shard's row has none of its own.
    """
    import ray

    prompts = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    for content in batch["shard"]:
        shard, done, own = pickle.loads(content.as_py())
        asked_of: AskedOf = prompts_beside if columns else partial(_from_file, prompts if own is None else own)
        count = 0
        for number, photographs in read_chunks(shard, asked_of, side, done, image_column):
            count = number + 1
            # Chunks that are there are named, too: the shard is whole once all of them are.
            yield _chunk(shard.name, number, b"" if photographs is None else pickle.dumps(photographs, protocol=5))
        yield _chunk(shard.name, END, str(count).encode())


def _from_file(prompts: ByName | None, key: str, _: Raw) -> list[Asked]:
    """A file's prompts for a photograph; those in a tar may be named without it."""
    if not prompts:
        return []
    return list(prompts.get(key) or prompts.get(key.rpartition("/")[2]) or ())


def _chunk(shard: str, chunk: int, content: bytes) -> pyarrow.Table:
    return pyarrow.table(
        {"shard": [shard], "chunk": [chunk], "content": pyarrow.array([content], pyarrow.large_binary())}
    )
