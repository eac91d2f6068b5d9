"""Image files of many formats, damaged."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from sam_bigltl.data.images import decode_image, read_image

from .mutate import mutate_bytes

FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "TIFF",
    "BMP",
    "ICO",
    "TGA",
    "PPM",
    "JPEG2000",
    "PCX",
    "DDS",
    "QOI",
    "EPS",
    "SGI",
)
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F")


def files() -> list[bytes]:
    """A small picture in every format and mode that Pillow writes here, with EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    found = []
    for kind in FORMATS:
        for mode in MODES:
            buffer = BytesIO()
            try:
                Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(
                    buffer, kind, exif=exif
                )
            except (OSError, ValueError, KeyError):  # not every format has every mode, nor every Pillow every format
                continue
            found.append(buffer.getvalue())
    return found


def make(folder: Path) -> Callable[[Random], None]:
    """A function that damages one picture and reads it."""
    good = files()

    def case(rng: Random) -> None:
        content = mutate_bytes(rng, rng.choice(good))
        if rng.random() < 0.8:
            image = decode_image(content, "photo")
        else:
            (folder / "a.bin").write_bytes(content)
            image = read_image(folder / "a.bin")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    return case
