"""HEIC: read where pillow-heif is installed, named where it is not."""

from __future__ import annotations

import builtins
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sam_bigltl.data.images import decode_image, image_size, read_image
from sam_bigltl.errors import InputError

HEADER = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    """It was "not an image that Pillow can read"."""
    real = builtins.__import__

    def none(name, *rest, **more):
        if name.startswith("pillow_heif"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", none)
    for brands in (HEADER, HEADER.replace(b"ftypheic", b"ftypmif1")):
        with pytest.raises(InputError, match="a.heic is HEIC.*pip install pillow-heif") as error:
            decode_image(brands + bytes(100), "a.heic")
        assert "\n" not in str(error.value)
    (tmp_path / "a.heic").write_bytes(HEADER + bytes(100))
    with pytest.raises(InputError, match="pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_with_it_photographs_come_upright(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:10] = (10, 10, 250)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "HEIF", exif=exif.tobytes(), quality=95)
    (tmp_path / "a.heic").write_bytes(buffer.getvalue())
    found = read_image(tmp_path / "a.heic")
    assert found.shape == (64, 40, 3) and image_size(tmp_path / "a.heic") == (64, 40)
    assert np.abs(found.astype(int) - np.rot90(pixels, -1)).mean() < 3
    with pytest.raises(InputError, match="a.heic is"):
        decode_image(HEADER + bytes(100), "a.heic")
