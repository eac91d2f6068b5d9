"""Photographs for distillation: folders, COCO-format JSON, and SA-1B's tar shards.

A source is read as `count` endless streams that together go through everything once an epoch, in an order drawn from
the seed. Which stream a photograph is in does not depend on the number of processes, and a cursor says where a stream
is, so that a run goes on exactly, on any number of processes that divides `count`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from segment_anything.modeling import Sam
from torch import Tensor

from ..errors import InputError
from .coco import CROWD, CocoImage, Usage, check_image_files, read_coco, read_photo
from .files import encodable
from .images import decode_image, read_image
from .photos import SUFFIXES, photos_in, preprocess
from .rle import check_rle
from .shards import ADDRESS, ENDINGS, Files, expand, read_files, samples, shards_in
from .skipped import Skipped

Cursor = tuple[int, int]  # what a stream has been through: units (photographs or shards), and photographs of the next
START: Cursor = (0, 0)
GIVE_UP = 1000  # photographs in a row that cannot be used


@dataclass(frozen=True)
class Photo:
    """A photograph: its name in the source, pixels uint8 RGB (H, W, 3), and COCO RLEs of its objects, if any."""

    key: str
    pixels: np.ndarray = field(repr=False)
    masks: Sequence[dict[str, Any]] = field(default=(), repr=False)


class Source(ABC):
    """Where photographs come from.

    Attributes:
        has_masks: whether they come with objects.
        usage: how many annotations of a JSON are used, or None.
    """

    has_masks: bool
    usage: Usage | None = None

    @abstractmethod
    def stream(
        self, index: int, count: int, seed: int, cursor: Cursor = START
    ) -> Iterator[tuple[Cursor, Photo | Skipped]]:
        """Stream `index` of `count` from `cursor` on, endless; each item with the cursor after it."""

    @abstractmethod
    def units(self) -> list[str]:
        """Names of the parts that `unit` reads: shards, or the photographs themselves."""

    @abstractmethod
    def unit(self, name: str) -> Iterator[Photo | Skipped]:
        """The photographs of one part, in its order."""

    @abstractmethod
    def estimate(self) -> int:
        """About how many photographs there are, without reading them."""


class ListedSource(Source):
    """Photographs that are files of their own.

    Args:
        entries: (key, path, image of the JSON or None).
        usage: of the JSON's annotations.
    """

    def __init__(self, entries: Sequence[tuple[str, Path, CocoImage | None]], usage: Usage | None = None) -> None:
        self.usage = usage
        self.entries = {encodable(key): (path, image) for key, path, image in entries}
        self.keys = list(self.entries)
        self.has_masks = any(image is not None for _, image in self.entries.values())
        self._unusable: dict[str, Skipped] = {}  # read once, not at every epoch

    def stream(
        self, index: int, count: int, seed: int, cursor: Cursor = START
    ) -> Iterator[tuple[Cursor, Photo | Skipped]]:
        taken, total = cursor[0], len(self.keys)
        order, drawn = np.arange(0), -1
        while True:
            epoch, place = divmod(taken * count + index, total)
            if epoch != drawn:
                order, drawn = np.random.default_rng([seed, epoch]).permutation(total), epoch
            taken += 1
            yield (taken, 0), self._read(self.keys[order[place]])

    def units(self) -> list[str]:
        return self.keys

    def unit(self, name: str) -> Iterator[Photo | Skipped]:
        yield self._read(name)

    def estimate(self) -> int:
        return len(self.keys)

    def _read(self, key: str) -> Photo | Skipped:
        if key in self._unusable:
            return self._unusable[key]
        photo = self._photo(key)
        if isinstance(photo, Skipped):
            self._unusable[key] = photo
        return photo

    def _photo(self, key: str) -> Photo | Skipped:
        path, image = self.entries[key]
        try:
            pixels = read_image(path) if image is None else read_photo(path, image)
        except InputError as error:
            return Skipped(key, str(error))
        if image is None:
            return Photo(key, pixels)
        return Photo(key, pixels, [each.rle() for each in image.annotations if not each.iscrowd])


class ShardSource(Source):
    """SA-1B's layout: tar files with `sa_1.jpg`, `sa_1.json` and so on, read from front to back as streams.

    Args:
        shards: paths of .tar, .tar.gz or .tgz.
        addresses: whether those that begin like http: or pipe: are none, but what `webdataset` opens.
    """

    has_masks = True

    def __init__(self, shards: Sequence[str], addresses: bool = False) -> None:
        self.shards, self.addresses = list(shards), addresses
        names = [Path(shard).name for shard in self.shards]
        unique = len(set(names)) == len(names)  # not those of train/0.tar and val/0.tar
        self.names = dict(zip(self.shards, names if unique else self.shards))

    def stream(
        self, index: int, count: int, seed: int, cursor: Cursor = START
    ) -> Iterator[tuple[Cursor, Photo | Skipped]]:
        # With fewer shards than streams each shard is shared: piece p of it has every `parts`-th photograph.
        parts = -(-count // len(self.shards))
        total, (taken, inside) = parts * len(self.shards), cursor
        while True:
            epoch, place = divmod(taken * count + index, total)
            piece = int(np.random.default_rng([seed, epoch]).permutation(total)[place])
            shard, part = divmod(piece, parts)
            for number, item in enumerate(self._read(self.shards[shard], part, parts, inside), inside + 1):
                yield (taken, number), item
            taken, inside = taken + 1, 0

    def units(self) -> list[str]:
        return self.shards

    def unit(self, name: str) -> Iterator[Photo | Skipped]:
        return self._read(name, 0, 1, 0)

    def estimate(self) -> int:
        """From the number of photographs in one shard and the sizes of the files."""
        local = [Path(shard) for shard in self.shards if Path(shard).is_file()]
        if not local:
            return 11_000 * len(self.shards)  # SA-1B: 11 M in 1,000
        measured = max(local[:9], key=lambda path: path.stat().st_size)  # the first one may be empty
        count = sum(1 for _ in self._samples(str(measured), []))
        return round(count * sum(path.stat().st_size for path in local) / max(1, measured.stat().st_size))

    def _read(self, shard: str, part: int, parts: int, start: int) -> Iterator[Photo | Skipped]:
        """Every `parts`-th photograph from number `part` on, without the first `start` of these."""
        errors: list[Exception] = []
        total = 0
        for total, (name, files) in enumerate(self._samples(shard, errors), 1):
            if (total - 1) % parts == part and (total - 1) // parts >= start:
                yield _photo(encodable(f"{self.names[shard]}/{name}"), files)
        if start > len(range(part, total, parts)):  # the stream has been through the shard's own Skipped, too
            return
        if errors:
            error = errors[0]  # an OSError's first argument is a number
            reason = getattr(error, "strerror", None) or str(error.args[0] if error.args else error)
            reason = " ".join(reason.split()).split(" @ ")[0]
            yield Skipped(self.names[shard], f"the rest of the shard cannot be read ({reason})")
        elif not total:
            yield Skipped(self.names[shard], "the shard has no photographs")

    def _samples(self, shard: str, errors: list[Exception]) -> Iterator[tuple[str, Files]]:
        """Up to the first error, which is added to `errors`."""

        def files() -> Iterator[tuple[str, bytes | None]]:
            try:
                yield from read_files(shard, self.addresses)
            except Exception as error:  # on damaged archives every reader raises what it happens to meet
                errors.append(error)

        return samples(files())


def _photo(key: str, files: Files) -> Photo | Skipped:
    content = next((files[suffix[1:]] for suffix in sorted(SUFFIXES) if suffix[1:] in files), b"")
    if not content:
        return Skipped(key, "has an image of more than 512 MB" if content is None else "has no image beside it")
    try:
        pixels = decode_image(content, key)
        return Photo(key, pixels, _masks(files["json"], key, pixels.shape[:2]) if "json" in files else ())
    except InputError as error:
        return Skipped(key, str(error))


def _masks(written: bytes | None, key: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    try:
        content = json.loads(written or b"")  # a file that is too large is no JSON either
        if isinstance(content, dict) and "annotations" not in content:  # of img2dataset, for instance
            return []
        masks = [annotation["segmentation"] for annotation in content["annotations"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{key}.json is not SA-1B's: it needs 'annotations' with a 'segmentation' each") from None
    image = CocoImage(key, key, size)
    for number, mask in enumerate(masks):
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
            raise InputError(f"{key}.json: segmentation {number} is no compressed RLE")
        masks[number] = check_rle(mask, image.size, f"{key}.json: segmentation {number}", image.id)
    return masks


def open_source(data: str, images: Path | None = None, addresses: bool = False, ignore_exif: bool = False) -> Source:
    """The photographs that `data` names.

    Args:
        data: a COCO-format JSON (with `images`, the folder of its photographs), a folder of photographs or of tar
            shards, or shards such as `sa_{000000..000009}.tar`.
        addresses: whether `data` may be what `webdataset` opens: http: and others, and commands after pipe:. What lies
            in a folder is a file, whatever its name.

    Raises:
        InputError: there is nothing of the kind.
    """
    path = Path(data)
    if path.suffix.lower() == ".json":
        if images is None:
            raise InputError(f"{data} is a COCO-format JSON: give the folder of its photographs with --images")
        listed, usage = read_coco(path, folder=images, ignore_exif=ignore_exif)
        check_image_files(listed, images)
        usage = usage.without(CROWD, sum(each.iscrowd for image in listed for each in image.annotations))
        return ListedSource([(str(image.id), images / image.file_name, image) for image in listed], usage)
    if path.is_dir():
        shards = shards_in(path)
        if shards:
            return ShardSource(shards)
        photos = photos_in(path)
        if not photos:
            raise InputError(f"{data} has neither photographs nor tar shards")
        return ListedSource([(key, each, None) for key, each in photos])
    if any(mark in path.name.lower() for mark in (*ENDINGS, "{")) or (addresses and ADDRESS.match(data)):
        return ShardSource(expand(data, addresses), addresses)
    raise InputError(f"{data} is neither a COCO-format .json, nor a folder, nor .tar shards")


def first_photos(sam: Sam, source: Source, count: int, seed: int) -> Iterator[Tensor]:
    """The first photographs of the source that can be read, preprocessed: each (1, 3, S, S).

    Raises InputError where none can.
    """
    found, last = 0, None
    for _, photo in islice(source.stream(0, 1, seed), count + GIVE_UP):
        if found == count:
            return
        if isinstance(photo, Photo):
            found += 1
            yield preprocess(sam, photo.pixels)
        else:
            last = photo
    if not found and last is not None:
        raise InputError(f"{GIVE_UP} photographs in a row cannot be used, the last: {last.key}: {last.reason}")
