"""Pictures of 16 and 32 bits: scaled by the bits that they use, which is said once, in every command."""

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

import sam_bigltl.images as images
from sam_bigltl.data.images import as_rgb, decode_image, image_size, read_image
from sam_bigltl.data.labelled import Transformed, open_dataset
from sam_bigltl.errors import InputError

RAMP = np.linspace(0, 1, 4096).reshape(64, 64)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(images, "_SAID", [0], raising=False)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """uint16 (H, W, C): Pillow writes grey ones only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_16_bits(pixels: np.ndarray, orientation: int) -> bytes:
    """uint16 (H, W, 3) as one strip, from the format's description."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    tags = {256: width, 257: height, 259: 1, 262: 2, 274: orientation, 277: 3, 278: height, 279: len(data), 284: 1}
    after = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = struct.pack("<HHII", 258, 3, 3, after)
    entries[273] = struct.pack("<HHII", 273, 4, 1, after + 6)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + data


# ---------------------------------------------------------------- grey
@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize(
    ("kind", "name"), [(np.uint16, "a.png"), (np.uint16, "a.tif"), (np.int32, "a.tif"), (">u2", "a.tif")]
)
def test_grey_is_scaled_by_the_bits_it_uses(top, kind, name, tmp_path, capsys):
    grey = np.round(RAMP * top)
    Image.fromarray(grey.astype(kind)).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert np.array_equal(image, np.repeat(np.round(grey * 255 / top).astype(np.uint8)[..., None], 3, axis=2))
    assert len(np.unique(image)) == 256  # small values gave 2 and 17
    said, bits, depth = capsys.readouterr().err, int(top).bit_length(), 32 if kind is np.int32 else 16
    assert said == ("" if bits == depth else f"{tmp_path / name} uses {bits} of its {depth} bits: such pictures are "
                    "scaled by what they use\n")  # fmt: skip


def test_dark_pictures_of_8_bits_stay_dark(tmp_path):
    grey = np.array([[0, 3, 99]], np.uint8)
    for kind in (np.uint8, np.uint16, np.int32):
        Image.fromarray(grey.astype(kind)).save(tmp_path / "a.tif")
        assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 3, 99]


def test_32_bits_and_negative_values(tmp_path):
    Image.fromarray(np.array([[0, 2**17 - 1, 2**16]], np.int32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 128]
    Image.fromarray(np.array([[0, -1, 7]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="negative pixels"):
        read_image(tmp_path / "a.tif")


# ---------------------------------------------------------------- colours
@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits(top, channels):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, top + 1, (24, 32, channels))
    deep[0, 0, 0] = top
    if channels in (2, 4):
        deep[..., -1] = np.where(RAMP[:24, :32] > 0.1, 65535, 0)
    found = decode_image(png_of_16_bits(deep.astype(np.uint16)), "a")
    colours = deep[..., :3] if channels > 2 else np.repeat(deep[..., :1], 3, axis=2)
    expected = np.round(colours * 255 / top) if top < 65535 else colours // 256  # Pillow's own, whole bytes
    if channels in (2, 4):
        expected[deep[..., -1] == 0] = 255
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("top", [4095, 65535])
def test_a_tiff_is_upright_once_or_not_at_all(orientation, top, tmp_path):
    """Pillow turns TIFFs itself, OpenCV too."""
    deep = np.round(RAMP[:24, :32] * top).astype(np.uint16)
    deep = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=-1)
    deep[0, 0] = top, 0, 0
    (tmp_path / "a.tif").write_bytes(tiff_of_16_bits(deep, orientation))
    stored = np.round(deep * (255.0 / top)).astype(np.uint8) if top == 4095 else (deep >> 8).astype(np.uint8)
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: np.rot90(stored, 2).transpose(1, 0, 2), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    assert np.array_equal(read_image(tmp_path / "a.tif"), upright)
    assert np.array_equal(read_image(tmp_path / "a.tif", ignore_exif=True), stored)
    assert image_size(tmp_path / "a.tif") == upright.shape[:2]
    assert image_size(tmp_path / "a.tif", ignore_exif=True) == stored.shape[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_sizes_are_those_of_what_is_read(suffix, tmp_path):
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 30)).save(tmp_path / f"a.{suffix}", exif=exif)
        for ignore in (False, True):
            expected = read_image(tmp_path / f"a.{suffix}", ignore).shape[:2]
            assert image_size(tmp_path / f"a.{suffix}", ignore) == expected
            assert (expected == (40, 30)) == (orientation == 6 and not ignore)


# ---------------------------------------------------------------- every command
def test_it_is_said_once(tmp_path, capsys):
    for number in range(3):
        Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / f"{number}.png")
        read_image(tmp_path / f"{number}.png")
    assert capsys.readouterr().err.count("\n") == 1


def test_it_is_said_once_by_workers_together(tmp_path):
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "a.png")
    script = """
import sys
from torch.utils.data import DataLoader
from sam_bigltl.images import read_image
class Photos:
    def __len__(self): return 12
    def __getitem__(self, index): return int(read_image(sys.argv[1])[0, 0, 0])
print(sum(map(int, DataLoader(Photos(), 1, num_workers=2, multiprocessing_context="fork"))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.png")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == f"{12 * 249}\n" and done.stderr.count("\n") == 1, done.stderr


def test_classifiers_read_what_read_image_reads(tmp_path: Path) -> None:
    """Pillow's own conversion clips 16 bits to white, drops transparency and leaves a photograph lying."""
    folder = tmp_path / "class"
    folder.mkdir()
    Image.fromarray(np.round(RAMP * 65535).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.round(RAMP * 4095).astype(np.uint16)).save(folder / "low.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.uint8(RAMP[:32] * 255)).save(folder / "lying.png", exif=exif)
    read = Transformed(open_dataset("", tmp_path, "validation"), np.asarray)
    found = [read[index][0] for index in range(len(read))]
    expected = [read_image(path) for path in sorted(folder.iterdir())]
    assert len(found) == 4 and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[1].mean() == pytest.approx(127.5, abs=1)  # it was 254.9


def test_an_opened_picture_is_read_likewise() -> None:
    deep = np.round(RAMP * 4095).astype(np.uint16)
    content = png_of_16_bits(np.stack([deep] * 3, axis=-1))
    assert np.array_equal(np.asarray(as_rgb(Image.open(BytesIO(content)))), decode_image(content, "a"))
    with pytest.raises(InputError, match="^photo is damaged"):
        as_rgb(Image.open(BytesIO(content[: len(content) // 2])), "photo")
    assert as_rgb(Image.new("L", (3, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
