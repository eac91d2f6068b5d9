"""Photographs from and to disk, always as uint8 RGB arrays."""

from __future__ import annotations

from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError
from .files import whole_path

# Larger pictures are refused before a pixel of them is decoded: a file of a few bytes can declare any size. Below
# Pillow's own limit (89 million), so that it has nothing to warn of in what is accepted.
MOST_PIXELS = 80_000_000


def read_image(path: str | PathLike[str]) -> np.ndarray:
    """Read a picture as a uint8 RGB array of shape (H, W, 3), turned upright as its EXIF orientation says.

    Grey and palette pictures become RGB, transparency is laid over white, 16-bit grey is scaled to 8 bits, and of
    an animation the first frame is read. An EXIF block that is damaged is passed over. Raises InputError when there is
    no readable picture at `path`, or one of more than `MOST_PIXELS`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the path of one image file")
        if not path.exists():
            raise InputError(f"image not found: {path}: check the path")
        if not path.is_file():  # a pipe would wait for its writer
            raise InputError(f"{path} is not a regular file: give the path of one image file")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): give a JPEG, PNG or other image file")
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from None
    return _decode(path, path)


def decode_image(content: bytes, name: str) -> np.ndarray:
    """A picture that is in memory, as `read_image` reads it; `name` is for the message."""
    return _decode(BytesIO(content), name)


def _decode(file: Path | BytesIO, name: Path | str) -> np.ndarray:
    try:
        with Image.open(file) as image:  # reads no pixels yet
            _check_header(image, name)
            image.load()
            image = _upright(image)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read: give a JPEG, PNG or other image file") from None
    except PermissionError:
        raise InputError(f"{name} cannot be opened: permission denied") from None
    except Exception as error:  # on damaged files every decoder raises what it happens to meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is damaged or incomplete ({reason}): save or download it again") from None
    return _to_rgb(image, name)


def _check_header(image: Image.Image, name: Path | str) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(name)
    if image.format == "EPS":  # a program, which Pillow has Ghostscript run
        raise InputError(f"{name} is PostScript, not a photograph: convert it to JPEG or PNG")


def _too_large(name: Path | str) -> InputError:
    return InputError(f"{name} has too many pixels: make it smaller than {MOST_PIXELS // 10**6} megapixels")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # what is damaged is the EXIF block: the pixels are fine
        return image


def write_image(path: str | PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 array of shape (H, W, 3) RGB or (H, W) grey; the suffix of `path` gives the format.

    Missing parent folders are made; the file is whole or not there. Raises InputError when it cannot be written.
    """
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise InputError(f"cannot write {path}: give a name that ends in .png, .jpg or another format of Pillow")
    try:
        with whole_path(path) as partial:
            Image.fromarray(np.ascontiguousarray(image)).save(partial, form)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {reason}") from None


def _to_rgb(image: Image.Image, path: Path | str) -> np.ndarray:
    if image.mode.startswith("I"):  # "I;16" and its byte orders, and "I", in which 16-bit grey may also be held
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{path} has 32-bit pixels: convert it to an 8-bit or 16-bit image")
        grey = ((grey + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise InputError(f"{path} has floating-point pixels: convert it to an 8-bit or 16-bit image")
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
