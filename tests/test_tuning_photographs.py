"""Photographs to tune on: what is read, near copies on one side, the split, and what is said of bad input."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_bigltl.errors import InputError
from sam_bigltl.tuning.photographs import list_photographs, open_photographs


@cache
def scene(seed: int, height: int = 180, width: int = 240) -> np.ndarray:
    """Ellipses and rectangles of any colour on a slope of brightness."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(*rng.uniform(60, 200, (2, 3)), height)[:, None].repeat(width, axis=1).copy()
    for _ in range(9):
        centre, half = rng.uniform(0, (width, height)), rng.uniform(8, 50, 2)
        colour = rng.uniform(0, 255, 3).tolist()
        if rng.random() < 0.5:
            cv2.rectangle(pixels, (centre - half).astype(int), (centre + half).astype(int), colour, -1)
        else:
            cv2.ellipse(pixels, (centre, 2 * half, float(rng.uniform(0, 180))), colour, -1)
    return (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder_of(path: Path, count: int) -> Path:
    for number in range(count):
        save(path / f"{number}.png", scene(number))
    return path


def keys(photographs) -> list[str]:
    return [photograph.key for photograph in photographs]


COPIES = {
    "double": lambda x: x,
    "resized": lambda x: cv2.resize(x, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
    "squeezed": lambda x: cv2.resize(x, (200, 200), interpolation=cv2.INTER_AREA),
    "compressed": lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], 1),
    "mirrored": lambda x: x[:, ::-1],
    "cropped at one side": lambda x: x[:, 20:],
    "cropped and mirrored": lambda x: x[8:-12, 6:-14][:, ::-1],
    "brighter": lambda x: (255 * (x / 255) ** 0.7).astype(np.uint8),
}


@pytest.mark.parametrize("copy", COPIES)
def test_of_near_copies_one_is_used(copy):
    scenes = [scene(number) for number in range(8)]
    twin = np.ascontiguousarray(COPIES[copy](scenes[0]))
    for images in ([*scenes, twin], [twin, *scenes]):  # which one comes first is drawn from the names
        found = open_photographs(images)
        assert (len(found.fit), len(found.measure), found.near_copies) == (4, 4, 1)


def test_different_scenes_are_not_copies():
    found = open_photographs([scene(number) for number in range(60)], fit=None, measure=None)
    assert (len(found.fit), len(found.measure), found.near_copies) == (40, 20, 0)


def test_empty_pictures_are_copies_of_each_other():
    blank = [np.full((30, 40, 3), grey, np.uint8) for grey in (0, 0, 120, 255)]
    assert open_photographs([scene(number) for number in range(8)] + blank).near_copies == 3


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [((40, 20), (10, 5)), ((8, 4), (8, 4)), ((6, 6), (6, 6)), ((40, 4), (11, 4)), ((5, None), (5, 5)),
     ((0, 20), (0, 15)), ((0, None), (0, 15)), ((4, 100), (4, 11))],
)  # fmt: skip
def test_how_many(limits, sizes):
    found = open_photographs([scene(number) for number in range(15)], *limits)
    assert (len(found.fit), len(found.measure)) == sizes
    chosen = keys(found.fit + found.measure)
    assert len(set(chosen)) == len(chosen)


def test_the_same_split_wherever_the_photographs_lie_and_in_whatever_order(tmp_path):
    first = folder_of(tmp_path / "a", 9)
    for number in reversed(range(9)):
        save(tmp_path / "b" / "c" / f"{number}.png", scene(number))
    found, other = open_photographs(first), open_photographs(str(tmp_path / "b" / "c"))
    assert keys(found.fit) == keys(other.fit) and keys(found.measure) == keys(other.measure)
    paths = [first / f"{number}.png" for number in range(9)]
    shuffled = open_photographs(paths[::-1])
    assert keys(open_photographs(paths).fit) == keys(shuffled.fit)
    assert set(keys(open_photographs(first, seed=1).fit)) != set(keys(found.fit))


def test_a_folder_with_its_subfolders(tmp_path):
    for number, name in enumerate(("b.jpg", "a/2.PNG", "a/b/3.webp", "c.tiff", "d.bmp", "e.JPEG", "f.jfif", "g.tif")):
        save(tmp_path / name, scene(number), **({"format": "JPEG"} if name == "f.jfif" else {}))
    save(tmp_path / ".thumbnails" / "b.jpg", scene(20))
    (tmp_path / "notes.txt").write_text("none")
    found = open_photographs(tmp_path)
    assert not found.skipped and found.near_copies == 0
    read = {photograph.key: photograph.pixels() for photograph in found.fit + found.measure}
    assert sorted(read) == ["a/2.PNG", "a/b/3.webp", "b.jpg", "c.tiff", "d.bmp", "e.JPEG", "f.jfif", "g.tif"]
    assert np.array_equal(read["a/2.PNG"], scene(1)) and read["b.jpg"].shape == (180, 240, 3)


def test_pictures_of_an_earlier_tuning_are_no_photographs(tmp_path):
    before = open_photographs(folder_of(tmp_path, 9))
    save(tmp_path / "tuned" / "tune.png", scene(77))
    after = open_photographs(tmp_path, output=tmp_path / "tuned")
    assert [each.key for each in after.fit + after.measure] == [each.key for each in before.fit + before.measure]


def test_a_list_of_paths(tmp_path):
    folder_of(tmp_path / "photos" / "in", 8)
    elsewhere = save(tmp_path / "else where" / "#1.gif", scene(30))
    lines = [
        "\ufeff# mine",
        "",
        *(f"in/{number}.png  " for number in range(7)),
        "in\\7.png",
        "in/0.png",
        str(elsewhere),
    ]
    (tmp_path / "photos" / "list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    found = open_photographs(tmp_path / "photos" / "list.txt")
    assert (len(found.fit), len(found.measure), found.near_copies, found.skipped) == (5, 4, 0, {})
    assert str(elsewhere) in keys(found.fit + found.measure)


def test_pixels_are_read_when_they_are_asked_for(tmp_path):
    found = open_photographs(folder_of(tmp_path, 8))
    (tmp_path / found.fit[0].key).unlink()
    with pytest.raises(InputError, match="not found"):
        found.fit[0].pixels()
    assert np.array_equal(found.fit[1].pixels(), scene(int(found.fit[1].key[0])))


def test_unreadable_ones_are_skipped_and_named(tmp_path):
    folder_of(tmp_path, 8)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (tmp_path / "empty.png").write_bytes(b"")
    found = open_photographs(tmp_path)
    assert sorted(found.skipped) == ["cut.jpg", "empty.png"] and "0 bytes" in found.skipped["empty.png"]
    assert (len(found.fit), len(found.measure)) == (4, 4)


def test_it_stops_reading_when_it_has_enough():
    scenes = [scene(number) for number in range(40)]
    broken = [f"missing/{number}.png" for number in range(40)]
    found = open_photographs([*scenes, *broken], 4, 4)
    assert len(found.skipped) < 40 and (len(found.fit), len(found.measure)) == (4, 4)


def bad(images, *words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        open_photographs(images, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message


def test_bad_input_is_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bad(empty, "no photograph in", ".jpg")
    bad([], "images is empty")
    bad(tmp_path / "nowhere", "does not exist", "folder")
    bad(save(tmp_path / "one.png", scene(0)), "one photograph", "folder")
    bad(folder_of(tmp_path / "three", 3), "3 photographs are too few", "at least 8", "4 to fit to and 4 to measure on")
    bad(tmp_path / "three", "3 photographs", "at least 4 different", "to measure on", fit=0)
    (tmp_path / "comments.txt").write_text("# nothing\n\n")
    bad(tmp_path / "comments.txt", "names no photograph")
    (tmp_path / "model.pth").write_bytes(b"PK\3\4" + bytes(100))
    bad(tmp_path / "model.pth", "no list of photographs")
    (tmp_path / "train.json").write_text("[" + "1, " * 9000)
    bad(tmp_path / "train.json", "no list of photographs")
    bad(3, "images is one thing")
    bad(scene(0), "images is one thing")
    bad([scene(0).astype(np.float32)], "images[0] is float32 (180, 240, 3)", "uint8")
    bad([scene(0), scene(0)[..., 0]], "images[1]", "(180, 240)")
    bad([None], "images[0] is a NoneType")
    bad(tmp_path / "three", "3 photographs to measure on are too few", measure=3)
    bad("x" * 5000, "cannot be opened")


def test_photographs_all_alike(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number}.jpg", scene(0)[number:], quality=95 - 5 * number)
    bad(tmp_path, "the 12 photographs are all alike", "none left to measure on", "at least 8 different")
    (tmp_path / "x.jpg").write_bytes(b"x")
    bad(tmp_path, "the 12 photographs are all alike", "1 more cannot be read")
    for number in range(1, 5):
        save(tmp_path / f"other{number}.png", scene(number))
    bad(tmp_path, "5 of 17 photographs can be used", "11 are near copies", "1 cannot be read", "x.jpg")


def test_all_unreadable(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    bad(tmp_path, "none of 9 photographs can be read", "the first:", ".jpg is not an image")
    lines = "\n".join(f"{number}.png" for number in range(9))
    (tmp_path / "list.txt").write_text(lines)
    bad(tmp_path / "list.txt", "none of 9 photographs can be read", "image not found")


def test_arrays_of_one_block():
    block = np.stack([scene(number) for number in range(9)])
    assert [photograph.key for photograph in list_photographs(block)][:2] == ["images[0]", "images[1]"]
