"""The user's photographs: read when they are needed, near copies left out, some to fit to and others to measure on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.fields import located
from ..data.images import read_image
from ..data.photos import SUFFIXES, photos_in
from ..errors import InputError
from .near_copies import NearCopies

LEAST = 4  # photographs on either side: with fewer, chance says which setting is the best
FIT, MEASURE = 40, 20  # at most, unless other numbers are given
_FIFTH = 5
_MOST_LIST = 2**24  # bytes of a list of photographs
_LONGEST_PATH = 4096  # characters, as Linux has it


@dataclass(frozen=True)
class Entry:
    """A photograph and its name, which no other one has."""

    key: str
    source: Path | np.ndarray = field(repr=False)

    def pixels(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), read anew at each call. Raises InputError where that is not possible."""
        return read_image(self.source) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class Photographs:
    """Photographs no two of which are near copies.

    Attributes:
        fit, measure: what to fit to, and what to measure on.
        skipped: by name, why some cannot be read.
        near_copies: how many were left out because they show what another one shows. Like those skipped, they are
            counted among the photographs that were looked at until there were enough.
        digest: of the pixels of `fit` and `measure`: other pictures can have the same names.
    """

    fit: list[Entry]
    measure: list[Entry]
    skipped: dict[str, str]
    near_copies: int
    digest: str = ""


Images = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | np.ndarray]


def list_photographs(images: Images) -> list[Entry]:
    """The photographs that `images` names, none of them read yet.

    Args:
        images: a folder, with its subfolders; a text file with a path a line, relative to the file's folder, where
            empty lines and lines that begin with # do not count; or paths and uint8 RGB arrays (H, W, 3).

    Raises:
        InputError: there is no photograph, or something else.
    """
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        try:
            found = _in_folder(path) if path.is_dir() else _in_list(path)
        except OSError as error:
            raise InputError(f"{str(path)[:100]} cannot be opened: {error.strerror}") from None
    elif isinstance(images, Iterable) and not (isinstance(images, np.ndarray) and images.ndim < 4):
        found = [_given(image, f"images[{number}]") for number, image in enumerate(images)]
        if not found:
            raise InputError("images is empty: give photographs to tune on")
    else:
        raise InputError("images is one thing: give a folder, a text file of paths, or a list of paths or arrays")
    return list({photograph.key: photograph for photograph in found}.values())


def open_photographs(
    images: Images,
    fit: int | None = FIT,
    measure: int | None = MEASURE,
    seed: int = 0,
    progress: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Photographs:
    """Choose photographs to fit to and others to measure on, two to one where there are not enough for both numbers.

    Which ones is drawn from their names and `seed`, whatever order they come in. They are looked at one after the other
    until there are enough. Of near copies (see `NearCopies`) only the first one is used: the others would say the same
    again, and on the other side they would flatter the measurement.

    Args:
        images: see `list_photographs`.
        fit, measure: how many at most; None for no limit. `fit` 0 is for a measurement alone.
        progress: show a bar where stderr is a terminal.
        output: a folder of results, where pictures are no photographs.

    Raises:
        InputError: a number is too small, or there are fewer than `LEAST` photographs for a side.
    """
    for number, purpose in ((fit, "fit to"), (measure, "measure on")):
        if number is not None and number < LEAST and not (number == 0 and purpose == "fit to"):
            raise InputError(f"{number} photographs to {purpose} are too few: give at least {LEAST}")
    own = None if output is None else Path(output).resolve()
    found = [
        photograph for photograph in list_photographs(images)
        if own is None or not isinstance(photograph.source, Path) or own not in photograph.source.resolve().parents
    ]  # fmt: skip
    listed = sorted(found, key=lambda photograph: _draw(photograph.key, seed))
    wanted = sum(inf if number is None else number for number in (fit, measure))
    copies, usable, skipped, doubles = NearCopies(), [], {}, 0
    digests: dict[str, bytes] = {}
    with tqdm(total=min(len(listed), wanted), desc="photographs", disable=None if progress else True) as bar:
        for photograph in listed:
            try:
                pixels = photograph.pixels()
            except InputError as error:
                skipped[photograph.key] = str(error)
                continue
            if copies.add(pixels):
                doubles += 1
                continue
            usable.append(photograph)
            digests[photograph.key] = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
            bar.update()
            if len(usable) == wanted:
                break
    _check_enough(images, len(listed), len(usable), skipped, doubles, LEAST if fit == 0 else 2 * LEAST)
    share = 1.0 if fit == 0 else 1 / 3 if fit is None or measure is None else measure / (fit + measure)
    last = max(LEAST, round(len(usable) * share))
    last = min(last, len(usable) - LEAST * (fit != 0), len(usable) if measure is None else measure)
    first = len(usable) - last
    fitting, measuring = usable[:first][:fit], usable[first:]
    digest = hashlib.sha256(b"".join(digests[each.key] for each in fitting + measuring)).hexdigest()
    return Photographs(fitting, measuring, skipped, doubles, digest)


def is_held_out(place: int) -> bool:
    """Whether, of photographs to train on, the one at this place is held out to say when to stop: every fifth."""
    return place % _FIFTH == _FIFTH - 1


def _draw(key: str, seed: int) -> bytes:
    """A random number, so to speak, that depends on nothing but the photograph's name."""
    return hashlib.sha256(f"{seed} {key}".encode(errors="surrogateescape")).digest()


def _check_enough(images: Images, total: int, usable: int, skipped: dict[str, str], doubles: int, least: int) -> None:
    """Raises InputError where `usable` is below `least`, with what became of the others."""
    if usable >= least:
        return
    where = f"{images}: " if isinstance(images, (str, os.PathLike)) else ""
    parts = f"{LEAST} to fit to and {LEAST} to measure on" if least > LEAST else "to measure on"
    need = f"give at least {least} different ones ({parts})"
    reason = next(iter(skipped.values()), "")
    if not usable:
        raise InputError(f"{where}none of {total} photographs can be read: {need}; the first: {reason}")
    if usable == 1 and doubles:
        lost = f" ({len(skipped)} more cannot be read: {reason})" if skipped else ""
        raise InputError(
            f"{where}the {1 + doubles} photographs are all alike, with none left to measure on{lost}: {need}"
        )
    lost = ", ".join(
        [f"{doubles} are near copies of others"] * bool(doubles)
        + [f"{len(skipped)} cannot be read, the first: {reason}"] * bool(skipped)
    )
    count = f"{usable} of {total} photographs can be used" if lost else f"{total} photographs are too few"
    raise InputError(f"{where}{count}: {need}" + f"; {lost}" * bool(lost))


def _in_folder(folder: Path) -> list[Entry]:
    found = [Entry(name, path) for name, path in photos_in(folder)]
    if not found:
        raise InputError(f"there is no photograph in {folder}: give a folder of {', '.join(sorted(SUFFIXES))} files")
    return found


def _in_list(path: Path) -> list[Entry]:
    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise InputError(f"{path} is one photograph: give a folder of them, or a text file with a path a line")
    kinds = "give a folder of photographs, or a text file with a path a line"
    if not path.is_file():  # a pipe would wait for its writer
        raise InputError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}: {kinds}")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_LIST)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    text = content.decode("utf-8-sig", errors="surrogateescape")  # names of files are any bytes
    lines = (line.strip() for line in re.split("[\r\n]", text))
    names = [line for line in lines if line and not line.startswith("#")]
    if "\0" in text or len(content) == _MOST_LIST or any(len(name) > _LONGEST_PATH for name in names):
        raise InputError(f"{path} is no list of photographs: {kinds}")
    if not names:
        raise InputError(f"{path} names no photograph: write a path a line")
    return [Entry(name, path.parent / located(name, path.parent)) for name in names]


def _given(image: object, name: str) -> Entry:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f"{name} is {image.dtype} {image.shape}: give uint8 RGB arrays (H, W, 3), or paths")
        return Entry(name, image)
    if isinstance(image, (str, os.PathLike)):
        return Entry(str(image), Path(image))
    raise InputError(f"{name} is a {type(image).__name__}: give paths, or uint8 RGB arrays (H, W, 3)")
