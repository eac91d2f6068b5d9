"""Files are whole or not there, no planted link is followed, and names may be of any bytes."""

from __future__ import annotations

import csv
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import picture, tiny_sam
from little_models import dense_config, dense_sam
from torch import nn

from sam_bigltl.convert import load_sam, save_sam
from sam_bigltl.convert.classifiers import save_classifier
from sam_bigltl.convert.hub import save_pretrained
from sam_bigltl.data.files import csv_cell, encodable, remove_partial, utf8_path, whole_file, whole_path, write_csv
from sam_bigltl.data.images import read_image, write_image
from sam_bigltl.data.skipped import write_skipped
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.detections import write_results
from sam_bigltl.evaluation.results import InstanceResult
from sam_bigltl.evaluation.run import _write_instances
from sam_bigltl.predict import embeddings
from sam_bigltl.predict.segment import write_masks
from sam_bigltl.predict.segment_folder import keep_settings

NAME = os.fsdecode(b"caf\xe9")  # in Latin-1


# ---------------------------------------------------------------- whole or not there
def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as file:
        file.write("one")
        assert not path.exists()
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write("two")
        raise KeyboardInterrupt
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a.txt") as file:
            file.write("one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Each file is one of those that were written, not a mixture."""
    path, texts, failures = tmp_path / "a.txt", [str(digit) * 300_000 for digit in range(4)], []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                with whole_path(path) as partial:
                    partial.write_text(text)
                assert path.read_text() in texts
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_stays(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(InputError, match="cannot write"), whole_file(path):
            pass
    assert pipe.is_fifo() and folder.is_dir() and len(list(tmp_path.iterdir())) == 2


def test_leftovers_of_one_file_are_removed_and_of_others_not(tmp_path):
    (tmp_path / "partial-state-abc").mkdir()
    (tmp_path / "partial-state-abc" / "part").write_bytes(b"half")
    (tmp_path / "partial-stately-abc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "partial-state-link").symlink_to(tmp_path / "elsewhere")
    remove_partial(tmp_path / "state.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"partial-stately-abc", "elsewhere", "partial-state-link"}
    remove_partial(tmp_path / "missing" / "state.pt")


# ---------------------------------------------------------------- planted links
def instances(path: Path) -> None:
    _write_instances(path, [])


def save_embedding(path: Path) -> None:
    embeddings.save(path, tiny_sam(), torch.zeros(1, 32, 4, 4), [((40, 52), (49, 64))])


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "masks": ("a_masks.json", lambda path: write_masks(path.parent, "a.jpg", [])),
    "picture": ("a.png", lambda path: write_image(path, picture())),
    "settings": ("settings.json", lambda path: keep_settings(path.parent, {})),
    "results": ("results.json", lambda path: write_results(path, [])),
    "instances": ("instances.csv", instances),
    "bench": ("a.csv", lambda path: write_csv(path, ("a",), [{"a": 1}])),
    "skipped": ("skipped.csv", lambda path: write_skipped(path, {"a": "b"})),
    "model": ("a.safetensors", lambda path: save_sam(dense_sam(dense_config()), path)),
    "classifier": ("a.safetensors", lambda path: save_classifier(nn.Linear(2, 2), {"a": torch.zeros(2)}, path)),
    "embedding": ("a.safetensors", save_embedding),
    "repository": ("config.json", lambda path: save_pretrained(dense_sam(dense_config()), path.parent)),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_no_planted_link_is_followed(tmp_path, name, write):
    """Neither where a temporary file could be expected nor at the name itself."""
    victim, path = tmp_path / "victim", tmp_path / "shared" / name
    victim.write_text("theirs")
    path.parent.mkdir()
    links = [path.with_name(f"{path.name}{suffix}") for suffix in (".part", ".partial", ".tmp")]
    links += [path.with_name(f"{path.stem}.partial{path.suffix}"), path.with_suffix(".partial")]
    if name != "settings.json":  # one that is there is read
        links.append(path)
    for link in links:
        if not link.is_symlink():
            link.symlink_to(victim)
    write(path)
    assert victim.read_text() == "theirs" and path.is_file() and not path.is_symlink()
    assert not list(path.parent.glob("partial-*"))


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_what_cannot_be_written_is_one_line(tmp_path, name, write):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot write") as error:
        write(tmp_path / "file" / name)
    assert "\n" not in str(error.value) and str(tmp_path / "file") in str(error.value)


# ---------------------------------------------------------------- names and text
def test_a_picture_of_a_format_that_is_not_known_is_refused(tmp_path):
    for name in ("a", "a.nothing"):
        with pytest.raises(ValueError, match="ends in .png"):
            write_image(tmp_path / name, picture())
    assert not list(tmp_path.iterdir())
    write_image(tmp_path / "A.PNG", picture())
    assert (read_image(tmp_path / "A.PNG") == picture()).all()


def test_names_that_are_not_utf8(tmp_path):
    folder = tmp_path / NAME
    sam = dense_sam(dense_config(little_dim=8))
    save_sam(sam, folder / f"{NAME}.safetensors")
    again = load_sam(folder / f"{NAME}.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in sam.state_dict().items())
    torch.save(sam.state_dict(), folder / f"{NAME}.pth")
    assert load_sam(folder / f"{NAME}.pth").image_encoder.config == sam.image_encoder.config
    save_embedding(folder / NAME)
    assert embeddings.load(folder / NAME, tiny_sam())[1] == [((40, 52), (49, 64))]
    write_image(folder / f"{NAME}.png", picture())
    assert (read_image(folder / f"{NAME}.png") == picture()).all()
    with utf8_path(folder / NAME) as readable:
        assert str(readable).isascii() and os.path.samefile(readable, folder / NAME)
    with utf8_path(tmp_path / "café") as readable:
        assert readable == tmp_path / "café"


def test_halves_of_surrogate_pairs_become_escapes(tmp_path):
    with whole_file(tmp_path / "a.txt") as file:
        file.write("café 图 \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "café 图 \\ud800"
    assert encodable(NAME + " 图") == "caf\\udce9 图"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_no_cell_is_a_formula(tmp_path, text):
    assert csv_cell(text) == "'" + text and csv_cell("a" + text) == "a" + text
    assert csv_cell(-1.5) == -1.5 and csv_cell(None) is None and csv_cell("") == ""
    write_csv(tmp_path / "bench.csv", ("model", "s"), [{"model": text, "s": -1.5}])
    write_skipped(tmp_path / "skipped.csv", {text: "is damaged"})
    rows = [InstanceResult(text, 1, 9.0, 1.0, "box", 0, 0.5, 0.5, counts="")]
    _write_instances(tmp_path / "instances.csv", rows)
    for name in ("bench.csv", "skipped.csv", "instances.csv"):
        with open(tmp_path / name, newline="") as file:
            assert list(csv.reader(file))[1][0] == "'" + text
    with open(tmp_path / "bench.csv", newline="") as file:
        assert list(csv.reader(file))[1][1] == "-1.5"
