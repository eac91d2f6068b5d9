"""Photographs from and to disk, always as uint8 RGB arrays: the one reader of all commands."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import DibImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import InputError
from .files import whole_path
from .heif import learn_heif

# Larger pictures are refused before a pixel of them is decoded: a file of a few bytes can declare any size. Below
# Pillow's own limit (89 million), so that it has nothing to warn of in what is accepted.
MOST_PIXELS = 80_000_000

# Pixels that are converted at a time. Pillow's picture and the array take 7 bytes a pixel together; conversions of the
# whole took up to 21.
_STRIP = 2**20

_ORIENTATION = 0x0112  # EXIF's and TIFF's tag
_INVERSE = {6: 8, 8: 6}  # the other orientations are their own
_TILE_SIZE = (0x0142, 0x0143)  # TIFF's width and length of a tile, which Pillow allocates even for a smaller picture

# What Pillow does not read as pictures of the size that they declare: a program, which it has Ghostscript run, and
# files that hold another one of any size.
_REFUSED = {"EPS": "PostScript", "BLP": "a texture", "IPTC": "an IPTC record"}

# Whether it was said that pixels are scaled, for the worker processes that are forked from this one, too.
_SAID = mmap.mmap(-1, 1)


def read_image(path: str | PathLike[str], ignore_exif: bool = False) -> np.ndarray:
    """Read a picture as a uint8 RGB array of shape (H, W, 3), turned upright as its EXIF orientation says.

    Grey and palette pictures become RGB, transparency is laid over white, and of an animation the first frame is read.
    Of pixels of 16 bits, and of grey ones of 32, as many bits are scaled to 8 as the file uses (at least 8), which is
    said once: cameras and microscopes write 12 bits into 16. An EXIF block that is damaged is passed over.

    Args:
        ignore_exif: leave the pixels as they are stored.

    Raises:
        InputError: there is no readable picture at `path`, or one of more than `MOST_PIXELS`.
    """
    path = _checked(path)
    return _decode(path, path, ignore_exif)


def decode_image(content: bytes, name: str, ignore_exif: bool = False) -> np.ndarray:
    """A picture that is in memory, as `read_image` reads it; `name` is for the message."""
    return _decode(BytesIO(content), name, ignore_exif)


def as_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """A picture that Pillow has opened but may not have loaded, with the pixels that `read_image` would give."""
    with _in_one_line(name):
        _check_header(image, name)
        file = BytesIO()
        if _loses_bits(image):
            stream: IO[bytes] = _own(image).fp
            place = stream.tell()
            stream.seek(0)
            file.write(stream.read())
            stream.seek(place)
        return Image.fromarray(_pixels(image, file, name, ignore_exif=False))


def image_size(path: str | PathLike[str], ignore_exif: bool = False) -> tuple[int, int]:
    """The (height, width) of what `read_image` would give, from the file's header. Raises InputError likewise."""
    path = _checked(path)
    with _in_one_line(path), _opened(path, path) as image:
        width, height = image.size
        if image.format == "TIFF":  # of which newer Pillows tell the size that it will have upright
            width, height = (_own(image).tag_v2[tag] for tag in (0x0100, 0x0101))
        lies = not ignore_exif and _orientation(image) in (5, 6, 7, 8)
        return (width, height) if lies else (height, width)


def _checked(path: str | PathLike[str]) -> Path:
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
    return path


def _decode(file: Path | BytesIO, name: Path | str, ignore_exif: bool) -> np.ndarray:
    with _in_one_line(name), _opened(file, name) as image:
        return _pixels(image, file, name, ignore_exif)


@contextmanager
def _in_one_line(name: Path | str) -> Iterator[None]:
    """What Pillow raises, as InputError."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read: give a JPEG, PNG or other image file") from None
    except MemoryError:
        raise InputError(f"{name} does not fit into the memory that is free: make it smaller") from None
    except PermissionError:
        raise InputError(f"{name} cannot be opened: permission denied") from None
    except Exception as error:  # on damaged files every decoder raises what it happens to meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is damaged or incomplete ({reason}): save or download it again") from None


@contextmanager
def _opened(file: Path | BytesIO, name: Path | str) -> Iterator[Image.Image]:
    """The picture with its header checked and no pixel decoded."""
    if isinstance(file, Path):
        with open(file, "rb") as stream:
            learn_heif(stream, name)
            _check_icon(stream, name)
    else:
        learn_heif(file, name)
        _check_icon(file, name)
    with Image.open(file) as image:
        _check_header(image, name)
        yield image


def _own(image: Image.Image) -> Any:
    """The picture with what only those of its format have."""
    return image


def _check_header(image: Image.Image, name: Path | str) -> None:
    if image.format in _REFUSED:
        raise InputError(f"{name} is {_REFUSED[image.format]}, not a photograph: convert it to JPEG or PNG")
    sizes = [image.size]
    if image.format == "TIFF":
        width, length = (_own(image).tag_v2.get(tag, 1) for tag in _TILE_SIZE)
        sizes.append((width, length))
    if image.format == "ICNS":
        icns = _own(image).icns
        sizes += _sizes_inside(icns.fobj, [start for start, _ in icns.dct.values()])
    _check_sizes(sizes, name)


def _check_sizes(sizes: Iterable[tuple[int, int]], name: Path | str) -> None:
    if any(width * height > MOST_PIXELS for width, height in sizes):
        raise _too_large(name)


def _too_large(name: Path | str) -> InputError:
    return InputError(f"{name} has too many pixels: make it smaller than {MOST_PIXELS // 10**6} megapixels")


def _check_icon(stream: IO[bytes], name: Path | str) -> None:
    """Check what an ICO file holds before it is opened, by which Pillow decodes it."""
    start = stream.read(6)
    if start.startswith(b"\0\0\1\0"):
        entries = stream.read(16 * int.from_bytes(start[4:], "little"))
        offsets = [int.from_bytes(entries[end - 4 : end], "little") for end in range(16, len(entries) + 1, 16)]
        _check_sizes(_sizes_inside(stream, offsets), name)


def _sizes_inside(stream: IO[bytes], offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Width and height of the pictures that begin at `offsets` in an icon, by their own headers."""
    for offset in sorted(set(offsets)):
        stream.seek(offset)
        start = stream.read(12)
        kind: type[ImageFile] = DibImageFile
        if start.startswith(b"\x89PNG"):
            kind = PngImageFile
        elif start.startswith(b"\xff\x4f\xff\x51") or b"\r\n\x87\n" in start:
            kind = Jpeg2KImageFile
        stream.seek(offset)
        try:
            size = kind(stream).size
        except Exception:  # not a picture: Pillow will say so if it takes this one
            continue
        yield size


def _pixels(image: Image.Image, file: Path | BytesIO, name: Path | str, ignore_exif: bool) -> np.ndarray:
    """Decode a picture whose header is checked; `file` is what it comes from."""
    loses_bits = _loses_bits(image)
    orientation = _orientation(image)
    image.load()
    if image.format == "TIFF" and orientation != _orientation(image):  # Pillow has turned it itself
        turn = _INVERSE.get(orientation, orientation) if ignore_exif else 1
    else:
        turn = 1 if ignore_exif else orientation
    width, height = image.size
    pixels = np.empty((width, height, 3) if turn in (5, 6, 7, 8) else (height, width, 3), np.uint8)
    target = _turned(pixels, _INVERSE.get(turn, turn))  # (height, width, 3), a view
    if image.mode.startswith("I"):  # "I;16" and its byte orders, and "I" with 32 bits
        _fill_grey(target, image, name)
    elif image.mode == "F":
        raise InputError(f"{name} has floating-point pixels: convert it to an 8-bit or 16-bit image")
    elif loses_bits and _most(image) < 128:  # of the upper 8 bits
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        image.close()  # gives its memory back
        _fill_deep_colours(target, content, name)
    else:
        for rows, strip in _strips(image):
            target[rows] = _rgb(strip)
    return pixels


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none, or the EXIF block is damaged: the pixels are fine."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of pixels (H, W, C) as stored under an EXIF orientation, upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _row_slices(height: int, width: int) -> list[slice]:
    step = max(1, _STRIP // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture in parts, each with the rows that it is."""
    width, height = image.size
    for rows in _row_slices(height, width):
        yield rows, image if rows.stop - rows.start == height else image.crop((0, rows.start, width, rows.stop))


def _rgb(strip: Image.Image) -> Image.Image:
    if strip.getbands()[-1] in ("A", "a") or "transparency" in strip.info:
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, (255, 255, 255, 255)), strip)
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _fill_grey(target: np.ndarray, image: Image.Image, name: Path | str) -> None:
    ranges = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(image))]
    if min(low for low, _ in ranges) < 0:
        raise InputError(f"{name} has negative pixels: convert it to an 8-bit or 16-bit image")
    bits = _bits(max(high for _, high in ranges))
    depth = 32 if image.mode == "I" and image.format == "TIFF" else 16  # in "I" Pillow also keeps what has 16
    _say_scaled(name, bits, depth)
    for rows, strip in _strips(image):
        target[rows] = _to_8_bits(np.asarray(strip), bits)[..., None]


def _loses_bits(image: Image.Image) -> bool:
    """Whether Pillow will keep only the upper 8 of 16 bits, as it does of colours."""
    tiles = getattr(image, "tile", ())
    return not image.mode.startswith("I") and any(";16" in str(arguments) for _, _, _, arguments in tiles)


def _most(image: Image.Image) -> float:
    """The largest value of any colour, opacity left out."""
    ranges = image.getextrema()
    if not isinstance(ranges[0], tuple):
        return ranges[1]
    return max(high for _, high in ranges[: 3 if len(ranges) > 2 else 1])


def _fill_deep_colours(target: np.ndarray, content: bytes, name: Path | str) -> None:
    """From all 16 bits of colours in the file's content whose values use fewer."""
    import cv2  # not above: it is large, and such files are rare

    deep = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.shape[:2] != target.shape[:2]:
        raise InputError(f"{name} has dark colours of 16 bits that cannot be read: convert it to an 8-bit image")
    deep = deep if deep.ndim == 3 else deep[:, :, None]
    colours = deep[:, :, :3]
    bits = _bits(colours.max())
    _say_scaled(name, bits, 16)
    for rows in _row_slices(*deep.shape[:2]):
        strip = [_to_8_bits(colours[rows, :, ::-1], bits)]
        if deep.shape[2] == 4:
            strip.append(_to_8_bits(deep[rows, :, 3:], 16))
        target[rows] = _rgb(Image.fromarray(np.ascontiguousarray(np.concatenate(strip, axis=2))))


def _bits(most: int) -> int:
    return max(8, int(most).bit_length())


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers from 0 to 2 ** bits - 1 as uint8 from 0 to 255, rounded."""
    top = 2**bits - 1
    whole = values.astype(np.uint32 if bits <= 24 else np.uint64)
    return ((whole * 255 + top // 2) // top).astype(np.uint8)


def _say_scaled(name: Path | str, bits: int, depth: int) -> None:
    if bits < depth and not _SAID[0]:
        _SAID[0] = 1
        print(f"{name} uses {bits} of its {depth} bits: such pictures are scaled by what they use", file=sys.stderr)


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
