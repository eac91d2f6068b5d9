"""read_image: every kind of picture becomes upright uint8 RGB, everything else one line of InputError."""

import numpy as np
import pytest
from PIL import Image

from sam_bigltl.errors import InputError
from sam_bigltl.images import read_image, write_image


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
    save(Image.fromarray(np.full((4, 4), 70000, np.int32)), folder / "int.tif")
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
