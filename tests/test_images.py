"""read_image: every kind of picture becomes upright uint8 RGB, everything else one line of InputError."""

import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sam_bigltl.data.images import decode_image, read_image, write_image
from sam_bigltl.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def save(array_or_image, path, **options):
    image = Image.fromarray(array_or_image) if isinstance(array_or_image, np.ndarray) else array_or_image
    image.save(path, **options)
    return path


def check(image: np.ndarray, shape: tuple[int, ...]) -> None:
    assert image.dtype == np.uint8 and image.shape == shape and image.flags["C_CONTIGUOUS"] and image.flags["WRITEABLE"]


def test_rgb_png_is_exact(tmp_path, rgb):
    image = read_image(save(rgb, tmp_path / "a.png"))
    check(image, (12, 20, 3))
    assert (image == rgb).all()


def test_str_path_and_write_round_trip(tmp_path, rgb):
    path = str(tmp_path / "new" / "a.png")
    write_image(path, rgb)
    assert (read_image(path) == rgb).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rgb, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1), 7: np.rot90(rgb, 2).transpose(1, 0, 2), 8: np.rot90(rgb),
    }[orientation]  # fmt: skip
    assert (read_image(save(rgb, tmp_path / "a.png", exif=exif)) == turned).all()


def test_grey_and_one_bit(tmp_path, rgb):
    image = read_image(save(rgb[..., 0].copy(), tmp_path / "grey.png"))
    check(image, (12, 20, 3))
    assert (image == rgb[..., :1]).all()
    bits = Image.fromarray(rgb[..., 0].copy()).convert("1")
    assert (read_image(save(bits, tmp_path / "bits.png"))[..., 1] == np.asarray(bits) * 255).all()


def test_palette(tmp_path, rgb):
    palette = Image.fromarray(rgb).quantize(16)
    assert (read_image(save(palette, tmp_path / "p.png")) == np.asarray(palette.convert("RGB"))).all()


def test_alpha_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    image = read_image(save(rgba, tmp_path / "rgba.png"))
    assert (image[0] == (10, 20, 30)).all() and (image[1] == 255).all()
    grey = read_image(save(Image.fromarray(rgba).convert("LA"), tmp_path / "la.png"))
    assert (grey[1] == 255).all() and (grey[0] < 30).all()


def test_transparent_palette_entry_is_white(tmp_path):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0] * 256)
    assert (read_image(save(palette, tmp_path / "p.png", transparency=0)) == 255).all()
    assert (read_image(save(palette, tmp_path / "q.png")) == (200, 0, 0)).all()


def test_sixteen_bit_grey_is_scaled(tmp_path):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("g.png", "g.tif"):
        image = read_image(save(grey, tmp_path / name))
        assert image[0, :, 0].tolist() == [0, 1, 128, 255]
        check(image, (1, 4, 3))


def test_cmyk(tmp_path):
    path = save(Image.new("CMYK", (16, 8), (0, 255, 255, 0)), tmp_path / "c.jpg", quality=100)
    image = read_image(path)
    check(image, (8, 16, 3))
    assert image[..., 0].min() > 245 and image[..., 1:].max() < 10


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


def bad_files(folder):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    for name in ("cut.png", "cut.jpg", "cut.bmp"):
        data = save(noise, folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    header = save(noise, folder / "header.png").read_bytes()
    (folder / "header.png").write_bytes(header[:20])
    save(Image.fromarray(np.zeros((4, 4), np.float32)), folder / "float.tif")
    save(Image.fromarray(np.full((4, 4), -7, np.int32)), folder / "int.tif")
    return ["missing.jpg", ".", "text.jpg", "empty.png", "cut.png", "cut.jpg", "cut.bmp", "header.png", "float.tif",
            "int.tif", "nul\0.png", "long" * 200]  # fmt: skip


def test_bad_files_are_one_line(tmp_path):
    for name in bad_files(tmp_path):
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / name)
        message = str(caught.value)
        assert "\n" not in message and len(message) > 20, name


def test_unwritable_target(tmp_path, rgb):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_image(tmp_path / "file" / "a.png", rgb)


# ---------------------------------------------------------------- files that mean harm, or that were damaged
def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """An RGB PNG that says it has width x height pixels."""
    header = png_chunk(b"IHDR", struct.pack(">II", width, height) + b"\x08\2\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that declare many pixels; that of the first really has them, as zeros."""
    zeros = zlib.compressobj(1)
    rows = b"".join(zeros.compress(bytes(1 + 3 * 10000)) for _ in range(10000)) + zeros.flush()
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    webp = b"WEBPVP8L" + struct.pack("<IBI", 16, 0x2F, 16382 | 16382 << 14) + bytes(11)
    return {
        "full.png": png_of(10000, 10000, rows), "header.png": png_of(40000, 40000), "long.png": png_of(1, 2**31 - 1),
        "just.png": png_of(9000, 8900), "a.bmp": bmp, "a.gif": gif,
        "a.webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }  # fmt: skip


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    paths = []
    for name, content in bombs().items():
        assert len(content) < 2_000_000
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    # In a process of its own, whose peak is not that of other tests. Decoded, the first one takes 300 MB.
    script = """
import resource, sys
from sam_bigltl.images import read_image
from sam_bigltl.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_image(path)
        print("read", path)
    except InputError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *paths], capture_output=True, text=True, check=True
    )
    *messages, peak = done.stdout.splitlines()
    assert len(messages) == len(paths) and done.stderr == ""
    for path, message in zip(paths, messages):
        assert message.startswith(path) and "80 megapixels" in message
    assert int(peak) < 40 * 1024  # KB


def test_the_limit_is_on_pixels_not_on_sides():
    zeros = zlib.compress(bytes(20_000 * (1 + 3)))
    assert decode_image(png_of(1, 20_000, zeros), "tall").shape == (20_000, 1, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow's own
def test_truncated_at_any_length(rgb):
    for suffix in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        buffer = BytesIO()
        Image.fromarray(rgb).save(buffer, suffix)
        whole = buffer.getvalue()
        shape = decode_image(whole, "whole").shape
        refused = 0
        for length in range(len(whole)):
            try:
                assert decode_image(whole[:length], "cut").shape == shape  # what ends in padding or comments
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and str(error).startswith("cut ")
        assert refused > len(whole) // 2, suffix


@pytest.mark.filterwarnings("ignore")  # Pillow's own
def test_damaged_bytes_are_one_line(rgb):
    """Formats whose decoders raise anything: IndexError (QOI), RuntimeError (AVIF), NotImplementedError (DDS)."""
    random = np.random.default_rng(3)
    Image.init()
    for kind in sorted(
        {"QOI", "DDS", "JPEG2000", "TIFF", "PNG", "PCX"} & Image.SAVE.keys()
    ):  # older Pillows write no QOI
        buffer = BytesIO()
        Image.fromarray(rgb).save(buffer, kind)
        for _ in range(100):
            content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            content[random.integers(0, min(200, len(content)), 4)] = random.integers(0, 256, 4)
            try:
                image = decode_image(content[: random.integers(20, len(content))].tobytes(), "a")
                check(image, (*image.shape[:2], 3))
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore")  # Pillow's own
def test_damaged_exif_leaves_the_pixels(rgb):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", exif=exif)
    whole = buffer.getvalue()
    assert decode_image(whole, "a").shape == (20, 12, 3)
    start = whole.index(b"eXIf")
    length = struct.unpack(">I", whole[start - 4 : start])[0]
    random = np.random.default_rng(0)
    for _ in range(60):
        block = np.frombuffer(whole[start + 4 : start + 4 + length], np.uint8).copy()
        block[random.integers(0, length, 3)] = random.choice([0, 1, 255], 3)
        damaged = whole[: start - 4] + png_chunk(b"eXIf", block.tobytes()) + whole[start + 8 + length :]
        image = decode_image(damaged, "a")
        assert (image == (rgb if image.shape == rgb.shape else np.rot90(rgb, -1))).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_of_every_kind(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / f"a.{suffix}").n_frames == 2
    assert (read_image(tmp_path / f"a.{suffix}") == (255, 0, 0)).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_postscript_is_not_run(tmp_path, rgb, monkeypatch):
    Image.fromarray(rgb).save(tmp_path / "a.eps")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(InputError, match="PostScript"):
        read_image(tmp_path / "a.eps")


def test_the_command_line_says_one_line(tmp_path):
    """Pillow warns of what it meets; a command does not repeat that."""
    (tmp_path / "a.png").write_bytes(png_of(12000, 12000))  # above Pillow's limit for a warning
    command = [sys.executable, "-m", "sam_bigltl.cli", "segment", str(tmp_path / "a.png"), "--point", "1,1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "megapixels" in done.stderr


def test_the_demo_has_the_same_limit():
    from sam_bigltl.demo.photos import open_photo
    from sam_bigltl.predict.resize import ResizeLongestSideFloat32

    with pytest.raises(InputError, match="80 megapixels"):
        open_photo(png_of(9000, 8900), "a.png", ResizeLongestSideFloat32(1024), 1280)
