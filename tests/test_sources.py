"""Photographs of every kind of source: all of them, once an epoch, whatever the number of streams; and damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from training_toy import cut_tar, edit, encode, read_tar, shapes_in, write_shapes, write_shards, write_tar

import sam_bigltl.training.frames as frames
from sam_bigltl.data.sources import START, Photo, Skipped, Source, open_source
from sam_bigltl.errors import InputError
from sam_bigltl.training.frames import FrameConfig, FrameStreams

SHARDS, EACH, FILES = 3, 4, 7
KINDS = ("folder", "json", "shards")
NAMES = ("0.png", "a/1.png", "a/2.png", "b/c/3.png", "b/c/4.png", "b/c/5.png", "6.PNG")
NOISE = np.random.default_rng(1).bytes(50_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Photographs in `json/images`, the same in subfolders of `folder`, in `shards`, and in `damaged` shards."""
    root = tmp_path_factory.mktemp("root")
    images = write_shapes(root / "json", FILES).parent / "images"
    for number, name in enumerate(NAMES):
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"{number}.png", root / "folder" / name)
    (root / "folder" / "a" / "notes.txt").write_text("no photograph")
    write_shards(root / "shards", SHARDS, EACH, ".png")
    _, broken, cut, noise, empty = write_shards(root / "damaged", 5, 3, ".png")
    write_tar(broken, read_tar(broken) | {"sa_4.png": read_tar(broken)["sa_4.png"][:200]})
    cut_tar(cut, "sa_7.png")
    Path(noise).write_bytes(NOISE)
    write_tar(empty, {})
    return root


@pytest.fixture(scope="module")
def sources(root) -> dict[str, Source]:
    by_json = open_source(str(root / "json" / "train.json"), root / "json" / "images")
    return {name: open_source(str(root / name)) for name in ("folder", "shards", "damaged")} | {"json": by_json}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def everything(source: Source) -> list[Photo | Skipped]:
    return [item for name in source.units() for item in source.unit(name)]


def value(item: Photo | Skipped) -> tuple:
    """All that an item is, to compare."""
    if isinstance(item, Skipped):
        return item.key, item.reason
    return item.key, item.pixels.shape, item.pixels.tobytes(), json.dumps(item.masks, default=str)


def epoch_of(source: Source, count: int, units: int, epoch: int) -> list[Photo | Skipped]:
    """What `count` streams give in one epoch of `units` photographs, shards or pieces, when each takes one in turn."""
    found = []
    for index in range(count):
        for cursor, item in source.stream(index, count, 0):
            turn = (cursor[0] - (cursor[1] == 0)) * count + index  # a cursor says how many units are complete
            if turn >= (epoch + 1) * units:
                break
            if turn >= epoch * units:
                found.append(item)
    return found


# ---------------------------------------------------------------- what is read
def check_photographs(source: Source, wanted: dict[str, np.ndarray], masks: bool) -> None:
    items = everything(source)
    assert source.has_masks == masks and sorted(item.key for item in items) == sorted(wanted)
    for item in items:
        assert item.pixels.dtype == np.uint8 and np.array_equal(item.pixels, wanted[item.key])
        shapes = shapes_in(wanted[item.key]) if masks else []
        assert len(item.masks) == len(shapes)
        for mask, shape in zip(item.masks, shapes):
            assert np.array_equal(coco_mask.decode(mask).astype(bool), shape)


def test_a_folder_with_subfolders_and_a_json(sources, root):
    check_photographs(sources["folder"], {name: pixels_of(root / "folder" / name) for name in NAMES}, masks=False)
    wanted = {str(number): pixels_of(root / "json" / "images" / f"{number}.png") for number in range(FILES)}
    check_photographs(sources["json"], wanted, masks=True)


def test_polygons_and_crowds_of_a_json(tmp_path):
    path = write_shapes(tmp_path, 1)

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[10, 20, 40, 20, 40, 50, 10, 50]]
        content["annotations"][1]["iscrowd"] = 1

    edit(path, change)
    (photo,) = everything(open_source(str(path), tmp_path / "images"))
    rectangle = np.zeros(photo.pixels.shape[:2], bool)
    rectangle[20:50, 10:40] = True
    assert len(photo.masks) == 2
    for mask, shape in zip(photo.masks, (rectangle, shapes_in(photo.pixels)[2])):
        assert np.array_equal(coco_mask.decode(mask).astype(bool), shape)


def test_shards_by_folder_and_by_pattern(sources, root):
    photos = root / "shards" / "shapes" / "images"
    wanted = {f"sa_{i // EACH:06d}.tar/sa_{i}": pixels_of(photos / f"{i}.png") for i in range(SHARDS * EACH)}
    pattern = str(root / "shards" / "sa_{000000..000002}.tar")
    for source in (sources["shards"], open_source(pattern)):
        check_photographs(source, wanted, masks=True)
    assert open_source(pattern.replace("{000000..000002}", "000001")).units() == source.units()[1:2]


def test_names_are_unique_where_those_of_shards_are_not(tmp_path):
    for name in "ab":
        write_shards(tmp_path / name, 1, 3)
    assert len({photo.key for photo in everything(open_source(str(tmp_path / "{a,b}" / "sa_000000.tar")))}) == 6


def test_jpegs_without_json_in_a_shard(tmp_path):
    path, *_ = write_shards(tmp_path, 1, 2)
    write_tar(path, {name: content for name, content in read_tar(path).items() if name != "sa_1.json"})
    first, second = everything(open_source(path))
    original = pixels_of(tmp_path / "shapes" / "images" / "1.png").astype(float)
    assert np.abs(second.pixels - original).mean() < 8  # JPEG
    assert len(first.masks) == 3 and len(second.masks) == 0


# ---------------------------------------------------------------- streams
@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("kind", [*KINDS, "damaged"])
def test_an_epoch_is_everything_once(kind: str, count: int, sources):
    source = sources[kind]
    wanted = sorted(value(item) for item in everything(source) if isinstance(item, Photo))
    number = len(source.units())
    units = number if kind in ("folder", "json") else number * -(-count // number)  # shards have pieces
    for epoch in (0, 2):
        items = epoch_of(source, count, units, epoch)
        assert sorted(value(item) for item in items if isinstance(item, Photo)) == wanted
        assert {value(item) for item in items} == {value(item) for item in everything(source)}


@pytest.mark.parametrize("kind", KINDS)
def test_orders_come_from_the_seed_and_the_epoch(kind: str, sources):
    source = sources[kind]
    total = len(everything(source))

    def order(seed: int) -> list[tuple[str, ...]]:
        drawn = [item.key for _, item in islice(source.stream(0, 1, seed), 8 * total)]
        return [tuple(drawn[start : start + total]) for start in range(0, 8 * total, total)]

    assert order(3) == order(3) != order(4)
    assert len(set(order(3))) > 3 and all(len(set(epoch)) == total for epoch in order(3))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", [*KINDS, "damaged"])
def test_a_stream_goes_on_from_every_cursor(kind: str, count: int, sources):
    source = sources[kind]
    for index in {0, count - 1}:
        whole = [(cursor, value(item)) for cursor, item in islice(source.stream(index, count, 5, START), 24)]
        assert len({cursor for cursor, _ in whole}) == len(whole)
        for place, (cursor, _) in enumerate(whole, 1):
            again = source.stream(index, count, 5, cursor)
            assert [(cursor, value(item)) for cursor, item in islice(again, len(whole) - place)] == whole[place:]


def test_estimates(sources, tmp_path):
    assert sources["folder"].estimate() == sources["json"].estimate() == FILES
    assert abs(sources["shards"].estimate() - SHARDS * EACH) <= 1  # photographs are of about one size
    first, second = write_shards(tmp_path, 2, 3, ".png")
    files = read_tar(first)
    write_tar(second, {f"{copy}_{name}": content for copy in range(20) for name, content in files.items()})
    assert abs(open_source(str(tmp_path)).estimate() - 21 * 3) < 4
    assert (
        open_source("pipe:cat absent_{0..2}.tar", addresses=True).estimate() == 33_000
    )  # SA-1B's, where there is nothing to measure


# ---------------------------------------------------------------- damaged photographs and shards
def check_skipped(source: Source, words: dict[str, str], left: int) -> None:
    """What `words` names is skipped, each for a reason with its word, and the `left` other photographs come."""
    items = everything(source)
    skipped = [item for item in items if isinstance(item, Skipped)]
    assert sorted(item.key for item in skipped) == sorted(words)
    for item in skipped:
        assert words[item.key] in item.reason and "\n" not in item.reason and 10 < len(item.reason) < 300
    assert len({item.key for item in items} - set(words)) == left == len(items) - len(skipped)


def test_damaged_photographs_of_a_json(tmp_path):
    path = write_shapes(tmp_path, 5)
    source = open_source(str(path), tmp_path / "images")
    (tmp_path / "images" / "0.png").write_bytes((tmp_path / "images" / "3.png").read_bytes()[:120])
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "1.png")
    (tmp_path / "images" / "2.png").unlink()
    words = {"0": "0.png is damaged", "1": "1.png is 50 x 40 pixels, but the annotations say 80 x 112", "2": "2.png"}
    check_skipped(source, words, 2)


def _with(segmentation: Any) -> bytes:
    return json.dumps({"image": {}, "annotations": [{"segmentation": segmentation}]}).encode()


NO_SA1B = "needs 'annotations' with a 'segmentation' each"
NARROW = encode(np.ones((112, 79), bool))["counts"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        *((content, NO_SA1B) for content in (b"", b"\xff\xfe\x00", b"[1]", b"7", b"[" * 99_999)),
        *((b'{"annotations": ' + content, NO_SA1B) for content in (b"null}", b"[3]}", b'[{"bbox": [0, 0, 1, 1]}]}')),
        (_with([[1, 1, 5, 1, 5, 5]]), "no compressed RLE"),
        (_with({"size": [112, 80], "counts": [112 * 80]}), "no compressed RLE"),
        (_with({"counts": "abc"}), "size"),
        (_with(encode(np.ones((80, 112), bool))), "size [80, 112]"),
        (_with({"size": [112, 80], "counts": NARROW}), "do not fill 112 x 80"),
        (_with({"size": [112, 80], "counts": "~~~~ \u20ac"}), "do not fill"),
    ],
)
def test_json_in_a_shard_that_is_not_sa1b(content: bytes, word: str, tmp_path):
    path, _ = write_shards(tmp_path, 2, 3, ".png")
    write_tar(path, read_tar(path) | {"sa_1.json": content})
    check_skipped(open_source(str(tmp_path)), {"sa_000000.tar/sa_1": word}, 5)


def test_damaged_images_in_a_shard(tmp_path):
    path, _ = write_shards(tmp_path, 2, 4)
    files = read_tar(path)
    del files["sa_2.jpg"]
    write_tar(path, files | {"sa_0.jpg": files["sa_0.jpg"][:300], "sa_1.jpg": b"noise"})
    words = ("sa_0 is damaged", "sa_1 is not an image", "has no image beside it")
    check_skipped(open_source(str(tmp_path)), {f"sa_000000.tar/sa_{i}": word for i, word in enumerate(words)}, 5)


REST = "the rest of the shard cannot be read"


@pytest.mark.parametrize(
    ("damage", "word", "left"),
    [
        (lambda path: cut_tar(path, "sa_4.jpg"), f"{REST} (unexpected end of data)", 1),
        (lambda path: cut_tar(path, "sa_3.jpg"), f"{REST} (unexpected end of data)", 0),
        (lambda path: Path(path).write_bytes(NOISE), REST, 0),
        (lambda path: Path(path).write_bytes(b""), REST, 0),
        (lambda path: Path(path).unlink(), "No such file", 0),
        (lambda path: write_tar(path, {}), "no photographs", 0),
        (lambda path: write_tar(path, {"README": b"no sample"}), "no photographs", 0),
    ],
)
def test_damaged_shards(damage: Callable[[str], None], word: str, left: int, tmp_path):
    path = write_shards(tmp_path, 3, 3)[1]
    source = open_source(str(tmp_path))
    damage(path)
    check_skipped(source, {"sa_000001.tar": word}, 6 + left)


@pytest.mark.parametrize("damage", ["images", "empty"])
def test_nothing_that_can_be_used_ends_in_one_line(damage: str, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "GIVE_UP", 9)
    for path in write_shards(tmp_path, 2, 3):
        files = {name: content[:100] for name, content in read_tar(path).items()}
        write_tar(path, files if damage == "images" else {})
    streams = FrameStreams(open_source(str(tmp_path)), FrameConfig(64), [0, 1], 2, 1, 0, {0: START, 1: START}, 0)
    with pytest.raises(InputError, match=r"^9 photographs in a row cannot be used, the last: .+\Z"):
        next(iter(streams))


# ---------------------------------------------------------------- what there is nothing of
@pytest.mark.parametrize(
    ("data", "images", "words"),
    [
        ("train.json", None, ["train.json", "--images"]),
        ("train.json", "absent", ["absent"]),
        ("absent.json", "images", ["absent.json"]),
        ("empty", None, ["empty", "neither photographs nor tar shards"]),
        ("sa_000007.tar", None, ["no shard", "sa_000007.tar"]),
        ("sa_{000000..000003}.tar", None, ["sa_000001.tar", "2 more are missing"]),
        ("sa_{000000..000001.tar", None, ["braces that do not close"]),
        ("absent", None, ["absent", "neither a COCO-format .json, nor a folder, nor .tar shards"]),
        ("images/0.png", None, ["0.png", "neither a COCO-format .json"]),
    ],
)
def test_data_that_is_not_there(data: str, images: str | None, words: list[str], tmp_path):
    write_shapes(tmp_path, 2)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    write_tar(str(tmp_path / "sa_000000.tar"), {})
    with pytest.raises(InputError) as error:
        open_source(str(tmp_path / data), tmp_path / images if images else None)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
