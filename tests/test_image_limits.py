"""What a picture may take of the memory: refused before it is decoded, or converted in parts."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_bigltl.data.images import decode_image, read_image
from sam_bigltl.errors import InputError

SIDE = 8888  # its square is 79 megapixels
HIDDEN = 13000  # 169 megapixels: below what Pillow itself refuses


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, depth: int, colour: int, pixel: bytes) -> bytes:
    """A square PNG of one value; `colour` is the format's own number: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    packer = zlib.compressobj(1)
    row = b"\0" + pixel * side
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def ico(*pictures: bytes) -> bytes:
    start, entries, offset = b"\0\0\1\0" + struct.pack("<H", len(pictures)), b"", 6 + 16 * len(pictures)
    for picture in pictures:
        entries += struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(picture), offset)  # 0 stands for 256
        offset += len(picture)
    return start + entries + b"".join(pictures)


def icns(picture: bytes) -> bytes:
    block = b"ic09" + struct.pack(">I", 8 + len(picture)) + picture
    return b"icns" + struct.pack(">I", 8 + len(block)) + block


def peak_of_reading(path: Path) -> tuple[str, int]:
    """What a process says that reads the picture, and the MB that this took: its peak is not that of other tests."""
    script = """
import resource, sys
import cv2
from sam_bigltl.errors import InputError
from sam_bigltl.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    image = read_image(sys.argv[1])
    print(image.shape, *image[0, 0])
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    return said, int(peak)


# ---------------------------------------------------------------- pictures inside pictures
@pytest.mark.parametrize("container", [ico, icns])
def test_a_hidden_picture_is_refused_before_it_is_decoded(container, tmp_path):
    path = tmp_path / "a.icon"
    path.write_bytes(container(png(HIDDEN, 8, 2, bytes(3))))
    said, peak = peak_of_reading(path)
    assert said.startswith(str(path)) and "80 megapixels" in said
    assert peak < 20  # it was 646


def bitmap(side: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 24, 0, 0, 0, 0, 0, 0)


def test_any_picture_inside_an_icon_counts():
    small = png(8, 8, 6, bytes([9, 9, 9, 255]))
    for hidden in (png(HIDDEN, 8, 2, bytes(3))[:60], bitmap(HIDDEN)):  # headers say it
        with pytest.raises(InputError, match="80 megapixels"):
            decode_image(ico(small, hidden), "a.ico")


def test_icons_are_read():
    picture = png(256, 8, 6, bytes([10, 20, 30, 255]))
    assert (decode_image(ico(picture), "a.ico") == (10, 20, 30)).all()
    buffer = BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(buffer, "ICNS")
    assert (decode_image(buffer.getvalue(), "a.icns") == (10, 20, 30)).all()
    buffer = BytesIO()
    Image.new("RGBA", (32, 32), (10, 20, 30, 255)).save(buffer, "ICO", bitmap_format="bmp")
    assert (decode_image(buffer.getvalue(), "a.ico") == (10, 20, 30)).all()
    with pytest.raises(InputError):
        decode_image(ico(picture)[:30], "a.ico")


def test_a_tiff_with_large_tiles_is_refused():
    """Of 16 x 16 pixels, in one tile that takes 200 MB."""
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 14000, 323: 14000, 324: 300, 325: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(300)
    with pytest.raises(InputError, match="80 megapixels"):
        decode_image(content, "a.tif")


@pytest.mark.parametrize("kind", ["BLP", "IPTC"])
def test_formats_that_hold_another_file_are_refused(kind, tmp_path):
    if kind == "BLP":
        Image.new("P", (8, 8)).save(tmp_path / "a", "BLP")
    else:  # records of one number each: what the picture is, then its pixels
        fields = {(1, 90): b"a", (3, 60): b"\1\0", (3, 20): b"\0\x08", (3, 30): b"\0\x08", (3, 120): b"\x05"}
        content = b"".join(bytes([0x1C, *key]) + struct.pack(">H", len(v)) + v for key, v in fields.items())
        (tmp_path / "a").write_bytes(content + bytes([0x1C, 8, 10]) + struct.pack(">H", 4) + b"none")
    with pytest.raises(InputError, match="not a photograph: convert it to JPEG or PNG"):
        read_image(tmp_path / "a")


# ---------------------------------------------------------------- large ones that are read
@pytest.mark.parametrize(
    ("depth", "colour", "pixel", "shown", "most"),
    [
        (8, 6, bytes([10, 20, 30, 128]), (132, 137, 142), 700),  # they took 1659, 1659, 1433 and 1056 MB
        (8, 4, bytes([10, 128]), (132, 132, 132), 700),
        (16, 0, bytes([10, 20]), (161, 161, 161), 550),
        (16, 2, bytes([200, 20]) * 3, (200, 200, 200), 700),
    ],
    ids=["RGBA", "grey and alpha", "grey of 16 bits", "colours of 16 bits"],
)
def test_the_peak_of_79_megapixels(depth, colour, pixel, shown, most, tmp_path):
    (tmp_path / "a.png").write_bytes(png(SIDE, depth, colour, pixel))
    said, peak = peak_of_reading(tmp_path / "a.png")
    assert said == f"({SIDE}, {SIDE}, 3) " + " ".join(map(str, shown))
    assert peak < most


def test_pictures_of_several_strips_are_whole():
    """Every row once, in its place, also where pictures are turned."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1500, 1100, 3), dtype=np.uint8)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, exif=exif)
        expected = np.rot90(pixels, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
        found = decode_image(buffer.getvalue(), "a")
        assert np.array_equal(found, expected) and found.flags["C_CONTIGUOUS"]
        assert np.array_equal(decode_image(buffer.getvalue(), "a", ignore_exif=True), pixels)
