"""Single fields of COCO-format JSON, as people's tools write them: ids, numbers, crowds, names of files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import InputError


def as_id(value: Any) -> int | str | None:
    """The id of an image, an annotation or a category; None for what cannot be one.

    A whole number may be written as 7.0, as tables do. Text with half of a surrogate pair is none: no file can hold it.
    """
    if isinstance(value, str):
        return value if _is_text(value) else None
    return whole_number(value)


def is_id(value: Any) -> bool:
    """Whether `as_id` takes it."""
    return as_id(value) is not None


def id_key(value: Any) -> str | None:
    """What ids that mean the same share: 7, 7.0 and "7"; None for what is no id."""
    found = as_id(value)
    return None if found is None else str(found)


def known_id(value: Any) -> int | str:
    """`as_id` of what has been checked to be one."""
    found = as_id(value)
    assert found is not None
    return found


def known_key(value: Any) -> str:
    """`id_key` of what has been checked to be an id."""
    return str(known_id(value))


def whole_number(value: Any) -> int | None:
    """An integer, which may be written as 120.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def annotation_name(entry: dict[str, Any], path: str | Path, seen: set[str]) -> str:
    """What messages on an annotation begin with. Its `id_key` is added to those `seen`.

    Raises InputError where it has no id, or one that was seen.
    """
    key = id_key(entry.get("id"))
    if key is None:
        raise InputError(f"{path}: an annotation of image {entry.get('image_id')!r} has no integer or string 'id'")
    if key in seen:
        raise InputError(f"{path}: annotation id {key} appears twice; give every annotation an id of its own")
    seen.add(key)
    return f"{path}: annotation {key}"


def is_crowd(entry: dict[str, Any], where: str) -> bool:
    """An annotation's `iscrowd`: 0 or 1 as a number, as text or as a boolean; missing or null means 0.

    Raises InputError, beginning with `where`, for anything else: a crowd taken for an object, or the other way round,
    changes figures without a word.
    """
    value = entry.get("iscrowd")
    if value is None or value in ("0", "1"):
        return value == "1"
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise InputError(f"{where} has 'iscrowd' {value!r}: write 0 or 1")


def check_name(name: Any, where: str) -> str:
    """A file's name out of a JSON, which stays inside the folder that is given with it.

    Raises InputError, beginning with `where`, unless it is such a name.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no 'file_name'; add it")
    parts = name.replace("\\", "/").split("/")  # Windows' own, too: see `located`
    if ".." in parts or not parts[0] or Path(name).is_absolute() or Path(name).drive:
        raise InputError(f"{where} has the 'file_name' {name!r}, which leads out of the folder; write one inside it")
    return name


def located(name: str, folder: Path) -> str:
    """The name of a file of `folder`, with "/" for Windows' backslashes where there is none of the very name."""
    if "\\" in name and not (folder / name).is_file():
        return name.replace("\\", "/")
    return name


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
