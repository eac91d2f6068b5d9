"""HEIC, as telephones write it: read through pillow-heif where that is installed, otherwise named."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from ..errors import InputError

# What a file may call itself whose pictures are coded as HEVC; AVIF is read by Pillow itself.
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_LONGEST = 256  # bytes of the box that names them


def learn_heif(stream: IO[bytes], name: Path | str) -> None:
    """Have Pillow read the file that begins here, if it is HEIC. Raises InputError where pillow-heif is missing."""
    start = stream.read(_LONGEST)
    stream.seek(0)
    if start[4:8] != b"ftyp":
        return
    end = min(int.from_bytes(start[:4], "big"), len(start))
    if _BRANDS.isdisjoint(start[place : place + 4] for place in range(8, end, 4)):
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InputError(
            f"{name} is HEIC, which needs a package: pip install pillow-heif, or save it as JPEG"
        ) from None
    register_heif_opener()
