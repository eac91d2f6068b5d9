"""The teacher's embeddings on disk: what is stored, interruptions anywhere, damage, full disks."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_cli
import torch
from safetensors import SafetensorError
from segment_anything.modeling import Sam
from training_toy import read_tar, write_shapes, write_shards, write_tar

import sam_bigltl.training.cache as cache_module
from sam_bigltl.convert import registry
from sam_bigltl.data.sources import START, Photo, Source, open_source
from sam_bigltl.errors import InputError
from sam_bigltl.training.cache import EmbeddingCache
from sam_bigltl.training.distill import fill_cache
from sam_bigltl.training.frames import FrameConfig, FrameStreams, make_frame

SIZE = (4, 3, 3)
KINDS = ("folder", "json", "shards")
TOTAL = 7  # photographs that can be read
UNREADABLE = {"folder": "5.png", "json": "5", "shards": "sa_000001.tar/sa_5"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Source]:
    """Eight photographs each, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("sources")
    shapes = write_shapes(folder, 8)
    photo = folder / "images" / "5.png"
    photo.write_bytes(photo.read_bytes()[:100])
    shards = write_shards(folder / "shards", 2, 4)
    write_tar(shards[1], read_tar(shards[1]) | {"sa_5.jpg": b"noise"})
    return {
        "folder": open_source(str(folder / "images")),
        "json": open_source(str(shapes), folder / "images"),
        "shards": open_source(str(folder / "shards")),
    }


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(cache_module, "GROUP", 2)
    monkeypatch.setattr(cache_module, "OPEN_FILES", 2)


def embedding(photo: Photo) -> np.ndarray:
    """Some function of the pixels."""
    return np.random.default_rng(int(photo.pixels.sum())).normal(size=SIZE).astype(np.float32)


def counting(calls: list[str], until: int | None = None) -> Callable[[Photo], np.ndarray]:
    """`embedding` that notes what it is called for, and is interrupted after `until`."""

    def embed(photo: Photo) -> np.ndarray:
        if len(calls) == until:
            raise KeyboardInterrupt
        calls.append(photo.key)
        return embedding(photo)

    return embed


def photos(source: Source) -> list[Photo]:
    return [photo for name in source.units() for photo in source.unit(name) if isinstance(photo, Photo)]


def filled(folder: Path, source: Source, embed: Callable[[Photo], np.ndarray] = embedding) -> EmbeddingCache:
    cache = EmbeddingCache(folder, "a teacher")
    cache.fill(source, embed, SIZE)
    return cache


def check_content(folder: Path, source: Source, kind: str) -> None:
    """Each photograph's embedding is there, once, and the one that cannot be read is named, once."""
    cache = EmbeddingCache(folder, "a teacher")
    cache.verify()
    wanted = photos(source)
    assert len(wanted) == TOTAL
    for photo in wanted:
        stored = cache.get(photo.key)
        assert stored.dtype == np.float16 and np.array_equal(stored, embedding(photo).astype(np.float16))
    assert cache.get("another") is None and cache.get(UNREADABLE[kind]) is None
    indices = [path.read_text().splitlines()[1:] for path in folder.glob("index*.jsonl")]
    lines = [json.loads(line) for index in indices for line in index]
    assert Counter(key for line in lines for key in line["keys"]) == Counter(photo.key for photo in wanted)
    assert [key for line in lines for key in line["skipped"]] == [UNREADABLE[kind]] == list(cache.skipped)
    assert not list(folder.glob("partial-*"))


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


# ---------------------------------------------------------------- what is stored
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_stored_once(kind: str, sources, tmp_path):
    calls, wanted = [], photos(sources[kind])
    cache = EmbeddingCache(tmp_path / "made" / "cache", "a teacher")
    cache.fill(sources[kind], counting(calls), SIZE)
    assert calls == [photo.key for photo in wanted]
    assert all(np.array_equal(cache.get(photo.key), embedding(photo).astype(np.float16)) for photo in wanted)
    check_content(cache.folder, sources[kind], kind)
    files = {path: path.read_bytes() for path in cache.folder.iterdir()}
    for again in (cache, EmbeddingCache(cache.folder, "a teacher")):
        again.fill(sources[kind], counting(calls, until=TOTAL), SIZE)
    assert len(calls) == TOTAL and {path: path.read_bytes() for path in cache.folder.iterdir()} == files


def test_the_layout_in_memory_does_not_matter(sources, tmp_path):
    """Convolutions give channels-last tensors."""
    filled(tmp_path, sources["folder"], lambda photo: np.asfortranarray(embedding(photo)))
    check_content(tmp_path, sources["folder"], "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_not_tried_again(kind: str, sources, tmp_path, monkeypatch):
    cache = filled(tmp_path, sources[kind])
    assert list(cache.skipped) == [UNREADABLE[kind]] and "\n" not in cache.skipped[UNREADABLE[kind]]
    tried: list[str] = []
    monkeypatch.setattr(sources[kind], "unit", lambda name: tried.append(name) or ())
    for again in (cache, EmbeddingCache(tmp_path, "a teacher")):
        again.fill(sources[kind], embedding, SIZE)
        assert again.skipped == cache.skipped and not tried


def test_more_photographs_are_added(tmp_path):
    paths = write_shards(tmp_path / "shards", 2, 4)
    calls: list[str] = []
    for source in (open_source(paths[0]), open_source(str(tmp_path / "shards"))):
        filled(tmp_path / "cache", source, counting(calls))
    assert calls == [photo.key for photo in photos(source)] and len(calls) == 8


# ---------------------------------------------------------------- interruptions
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on(kind: str, sources, tmp_path):
    """After any number of photographs: what was written is not computed again."""
    for number in range(TOTAL):
        folder, calls, more = tmp_path / str(number), [], []
        with pytest.raises(KeyboardInterrupt):
            filled(folder, sources[kind], counting(calls, until=number))
        assert len(calls) == number
        filled(folder, sources[kind], counting(more))
        assert more == [photo.key for photo in photos(sources[kind])][number // 2 * 2 :]
        check_content(folder, sources[kind], kind)


def test_many_interruptions(sources, tmp_path):
    calls: list[str] = []
    for name in ("partial-embeddings_000000-a_1", "partial-embeddings_1_000000-b_2"):  # the second is another process's
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_bytes(b"left behind")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            filled(tmp_path, sources["shards"], counting(calls, until=len(calls) + 2))
    filled(tmp_path, sources["shards"], counting(calls))
    assert len(calls) == TOTAL
    shutil.rmtree(tmp_path / "partial-embeddings_1_000000-b_2")
    check_content(tmp_path, sources["shards"], "shards")


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_cut_off_anywhere_is_repaired(kind: str, sources, tmp_path):
    filled(tmp_path / "whole", sources[kind])
    index = (tmp_path / "whole" / "index.jsonl").read_bytes()
    wanted = [photo.key for photo in photos(sources[kind])]
    for length in [*range(0, len(index), 37), len(index) - 1]:
        folder, calls = tmp_path / str(length), []
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "index.jsonl").write_bytes(index[:length])
        filled(folder, sources[kind], counting(calls))
        listed = [json.loads(line).get("keys", []) for line in index[:length].split(b"\n")[:-1]]
        assert calls == wanted[sum(map(len, listed)) :]
        check_content(folder, sources[kind], kind)


# ---------------------------------------------------------------- damage
def test_damage_is_found(sources, tmp_path):
    filled(tmp_path / "whole", sources["folder"]).verify()
    for number, path in enumerate(sorted((tmp_path / "whole").glob("*.safetensors"))):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        cache, content = EmbeddingCache(folder, "a teacher"), bytearray(path.read_bytes())
        content[(-1, 0, 100, -20)[number]] ^= 4
        (folder / path.name).write_bytes(content)
        refused(cache.verify, path.name, "damaged", str(folder))
        (folder / path.name).unlink()
        refused(cache.verify, path.name, "damaged", str(folder))
    assert number == 3


def test_another_teacher_is_refused(sources, tmp_path):
    filled(tmp_path, sources["folder"])
    before = (tmp_path / "index.jsonl").read_bytes()
    refused(lambda: EmbeddingCache(tmp_path, "another teacher"), str(tmp_path), "another teacher", "--cache")
    assert (tmp_path / "index.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"no json\n", b"[]\n", b'{"teacher": "a teacher"}\n{}\n', b"\n", b"\xff\n"])
def test_an_index_of_something_else_is_refused(content: bytes, tmp_path):
    (tmp_path / "index.jsonl").write_bytes(content)
    refused(lambda: EmbeddingCache(tmp_path, "a teacher"), "index.jsonl", "start again")


# ---------------------------------------------------------------- full disks
def test_too_little_space_is_found_before_anything_is_computed(sources, tmp_path, monkeypatch):
    source, calls, bytes_each = sources["folder"], [], 2 * 4 * 3 * 3

    def free(amount: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=amount))

    free(8 * bytes_each - 1)
    refused(lambda: filled(tmp_path, source, counting(calls)), f"--cache {tmp_path} needs about", "are free")
    assert not calls and not list(tmp_path.iterdir())
    free(8 * bytes_each)
    filled(tmp_path, source)
    free(bytes_each)  # for what is missing, only
    filled(tmp_path, source)
    check_content(tmp_path, source, "folder")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
@pytest.mark.parametrize("same", [True, False])
def test_a_full_disk_and_room_again(same: bool, error: Exception, sources, tmp_path, monkeypatch):
    source, calls, more = sources["shards"], [], []
    save_file, written = cache_module.save_file, []

    def save(group: dict[str, np.ndarray], path: Path) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise error
        save_file(group, path)
        written.append(path)

    monkeypatch.setattr(cache_module, "save_file", save)
    cache = EmbeddingCache(tmp_path, "a teacher")
    refused(lambda: cache.fill(source, counting(calls), SIZE), f"--cache {tmp_path}: the disk is full", "start again")
    monkeypatch.setattr(cache_module, "save_file", save_file)
    (cache if same else EmbeddingCache(tmp_path, "a teacher")).fill(source, counting(more), SIZE)
    assert len(calls) == 6 and len(more) == TOTAL - 4
    check_content(tmp_path, source, "shards")


def test_a_folder_that_cannot_be_used_is_one_line(sources, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: filled(tmp_path / "file", sources["folder"]), "file cannot be made: File exists")
    (tmp_path / "cache" / "embeddings_000001.safetensors").mkdir(parents=True)  # where a file is to be
    refused(lambda: filled(tmp_path / "cache", sources["folder"]), f"--cache {tmp_path / 'cache'}: ", "directory")


# ---------------------------------------------------------------- in distillation
@pytest.fixture(scope="module")
def teacher() -> Sam:
    torch.manual_seed(0)
    return registry.build_sam(tiny_cli.TINY["vit_tiny"])


@torch.inference_mode()
def taught(teacher: Sam, image: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The teacher's embedding of a frame, the rest of which is padding."""
    pixels = torch.from_numpy(image[:, : size[0], : size[1]].copy()).float()
    return teacher.image_encoder(teacher.preprocess(pixels)[None])[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_cached_embeddings_are_the_teachers_of_the_frames(kind: str, teacher, sources, tmp_path):
    source, config = sources[kind], FrameConfig(teacher.image_encoder.img_size, flip=False)
    cache = fill_cache(tmp_path, source, teacher, "float32")
    for photo in photos(source):
        frame = make_frame(photo, config, np.random.default_rng(0))
        wanted = taught(teacher, frame["image"], frame["size"])
        assert wanted.std() > 0.1
        np.testing.assert_allclose(cache.get(photo.key), wanted, rtol=1e-3, atol=1e-3)
    again = fill_cache(tmp_path, source, teacher, "float32")
    part = next(iter(FrameStreams(source, config, [0], 1, TOTAL, 0, {0: START}, 0, again)))
    assert {skipped.key for skipped in part.skipped} <= {UNREADABLE[kind]}
    for image, size, stored in zip(*(part.arrays[name].numpy() for name in ("image", "size", "embedding"))):
        np.testing.assert_allclose(stored, taught(teacher, image, size), rtol=1e-3, atol=1e-3)


def test_a_cache_is_one_teachers_at_one_precision(teacher, sources, tmp_path):
    fill_cache(tmp_path, sources["folder"], teacher, "float32")
    other = registry.build_sam(tiny_cli.TINY["vit_tiny"])  # of other random weights
    for sam, precision in ((other, "float32"), (teacher, "bfloat16")):
        refused(partial(fill_cache, tmp_path, sources["folder"], sam, precision), "another teacher")
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    refused(lambda: fill_cache(tmp_path, sources["folder"], teacher, "float32"), path.name, "damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_processes_fill_their_shares(kind: str, sources, tmp_path):
    calls: list[str] = []
    parts = [EmbeddingCache(tmp_path, "a teacher", (number, 2)) for number in range(2)]
    for part in parts:
        part.fill(sources[kind], counting(calls), SIZE)
    assert len(calls) == TOTAL and len(set(calls)) == TOTAL and len(list(tmp_path.glob("index*.jsonl"))) == 2
    check_content(tmp_path, sources[kind], kind)
    filled(tmp_path, sources[kind], counting(calls))  # one process finds nothing left of what two did
    assert len(calls) == TOTAL
