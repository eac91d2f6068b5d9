"""Photographs that users bring, from bytes that may be anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from ..data.files import encodable
from ..data.images import decode_image
from ..errors import InputError, in_one_line

MOST_BYTES = 40 * 2**20
_LONGEST_JPEG = 65_500  # pixels a side that the format's writers take

Size = tuple[int, int]  # rows and columns


@dataclass(frozen=True)
class Photo:
    """What the model needs of a photograph.

    Attributes:
        key: of its upright pixels: the same photograph has the same key for everybody.
        size: (H, W) upright, as it came.
        view: (H, W) of the masks that the page shows: the long side is `max_side` at most.
        pixels: uint8 RGB, brought to the model's frame as `SamPredictor.set_image` brings the whole.
    """

    key: str
    size: Size
    view: Size
    pixels: np.ndarray


def open_photo(content: bytes, file_name: str, transform: ResizeLongestSide, max_side: int) -> Photo:
    """A photograph from the bytes of an image file.

    Raises:
        InputError: no image, a damaged one, or one that is too large to open.
    """
    name = proper_name(file_name)
    if not content:
        raise InputError(f"{name} is empty (0 bytes): choose a JPEG, PNG or other image file")
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{name} has {len(content) / 2**20:.0f} MB: the demo takes {MOST_BYTES / 2**20:.0f} MB at most"
        )
    image = decode_image(content, name)
    size = image.shape[0], image.shape[1]
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.data)
    return Photo(digest.hexdigest(), size, view_size(size, max_side), transform.apply_image(image))


def proper_name(file_name: str) -> str:
    """The last part of a file's name, in one line that every file can hold."""
    return in_one_line(encodable(Path(file_name.replace("\\", "/")).name[:80])) or "photo"


def view_size(size: Size, max_side: int) -> Size:
    """The (H, W) of an image once its long side is `max_side` at most."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def size_note(size: Size, view: Size) -> str:
    """The size in words."""
    note = f"{size[1]} x {size[0]} px"
    return note if view == size else f"{note}, shown with masks of {view[1]} x {view[0]}"


def preview(content: bytes) -> tuple[bytes, str]:
    """The photograph upright, at its full size, as a file that every browser shows, and that file's media type.

    Nothing that the file says beside its pixels (where it was taken, say) comes along.
    """
    image = Image.fromarray(decode_image(content, "the photograph"))
    form = "JPEG" if max(image.size) <= _LONGEST_JPEG else "PNG"
    buffer = BytesIO()
    image.save(buffer, form, **({"quality": 92} if form == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue(), f"image/{form.lower()}"
