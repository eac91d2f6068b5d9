"""Files of an evaluation on a full disk, and cells that a spreadsheet would run."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluation_toy import IMAGES, ROOT, arguments, main, results, toy

from sam_bigltl import InputError
from sam_bigltl.data.files import csv_cell, csv_text, whole_file, write_csv
from sam_bigltl.evaluation.compare import compare
from sam_bigltl.evaluation.journal import Journal, remove_journals
from sam_bigltl.training.distill import write_skipped


# ---------------------------------------------------------------- a disk that is full
def evaluated(many: SimpleNamespace, out: str, most: int | None = None) -> subprocess.CompletedProcess:
    """The command, in a process whose files have `most` bytes at most, as under a quota."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    flags = ["--annotations", many.json, "--images", many.images, "--model", "slow_model.py:make", "--output", out]
    return subprocess.run(
        [sys.executable, str(ROOT / "eval" / "coco_miou.py"), *map(str, flags), "--no-report"], preexec_fn=limit,
        cwd=many.out.parent, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_full_disk_costs_no_image_that_was_measured(many: SimpleNamespace) -> None:
    assert evaluated(many, "whole").returncode == 0
    log, journal = many.out.parent / "images.log", many.out.parent / "cut" / "journal-0.jsonl"
    lines = (many.out.parent / "whole" / "journal-0.jsonl").read_bytes().splitlines(keepends=True)
    log.unlink()
    done = evaluated(many, "cut", most=sum(map(len, lines[:3])) + len(lines[3]) // 2)
    assert done.returncode == 2 and done.stderr == (
        "coco_miou.py: error: cannot write cut/journal-0.jsonl: File too large: make room, then the same command goes "
        "on where it stopped\n"
    )
    assert journal.read_bytes().count(b"\n") >= 2 and not journal.read_bytes().endswith(b"\n")  # torn
    measured = journal.read_bytes().count(b"\n") - 1
    done = evaluated(many, "cut")
    assert done.returncode == 0, done.stderr
    seen = [int(line) for line in log.read_text().split()]
    assert sorted(set(seen)) == list(range(IMAGES)) and all(seen.count(i) == 1 for i in range(measured))
    assert results(many, "cut") == results(many, "whole")


def test_a_disk_that_is_full_in_the_end(many: SimpleNamespace) -> None:
    assert evaluated(many, "out").returncode == 0
    expected = results(many, "out")
    for name in ("results.json", "instances.csv"):
        (many.out.parent / "out" / name).unlink()
    done = evaluated(many, "out", most=200)
    said = "coco_miou.py: error: cannot write out/instances.csv: File too large: make room, then start again\n"
    assert done.returncode == 2 and done.stderr == said
    assert evaluated(many, "out").returncode == 0 and results(many, "out") == expected


def test_a_full_disk_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, {"seed": 0})
    for code, advice in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EIO, False)):

        def full(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            patch.setattr(os, "replace", full)
            with pytest.raises(InputError, match=f"cannot write .*journal-0.jsonl: {os.strerror(code)}") as caught:
                journal._append({})
            assert ("make room" in str(caught.value)) == advice
            with pytest.raises(InputError, match=f"cannot write .*a.json: {os.strerror(code)}") as caught:
                with whole_file(tmp_path / "a.json") as stream:
                    stream.write("{}")
            assert ("make room" in str(caught.value)) == advice and not (tmp_path / "a.json").exists()


def test_a_journal_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "journal-0.jsonl").mkdir()
    with pytest.raises(InputError, match="journal-0.jsonl cannot be used: Is a directory"):
        Journal(tmp_path, {})
    with pytest.raises(InputError, match="journal-0.jsonl cannot be read: Is a directory"):
        Journal(tmp_path, {}, rank=1)
    with pytest.raises(InputError, match="journal-0.jsonl cannot be removed: Is a directory"):
        remove_journals(tmp_path)


# ---------------------------------------------------------------- cells
TEXTS = ["=1+1", "+1", "-5", "@x", "\tx", "\rx", "'=1", "''-1", "=cmd|' /C calc'!A0", "'", "'a", "", "a=1", "ä", "7"]


@pytest.mark.parametrize("text", TEXTS)
def test_cells_are_harmless_and_read_back(text: str) -> None:
    cell = csv_cell(text)
    assert csv_text(cell) == text and cell.lstrip("'")[:1] + cell[:1] not in ("==", "++", "--", "@@", "\t\t", "\r\r")
    assert (cell == text) == (text in ("'", "'a", "", "a=1", "ä", "7"))


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    assert [csv_cell(value) for value in (-1.5, -7, None, True)] == [-1.5, -7, None, True]
    write_csv(tmp_path / "a.csv", ("device", "gain"), [{"device": "=1+1", "gain": -0.25}])
    assert (tmp_path / "a.csv").read_text() == "device,gain\n'=1+1,-0.25\n"
    write_skipped(tmp_path / "b.csv", {"=HYPERLINK(1).jpg": "-is damaged", "a.jpg": "is empty"})
    rows = list(csv.reader((tmp_path / "b.csv").open(newline="")))
    assert rows[1:] == [["'=HYPERLINK(1).jpg", "'-is damaged"], ["a.jpg", "is empty"]]


def test_ids_that_are_formulas(data: SimpleNamespace, stub_model: SimpleNamespace) -> None:
    """Text in the JSON, numbers below 0 likewise: written harmlessly, and compared as what they are."""
    content = toy()
    names = {1: "=1+1", 3: "@SUM(1)", 7: "'-7", 2: -2}
    for entry in content["annotations"]:
        entry["id"] = names.get(entry["id"], entry["id"])
    data.write(content)
    main(arguments(data, "--no-report"))
    with (data.out / "instances.csv").open(newline="") as stream:
        cells = [row["annotation_id"] for row in csv.DictReader(stream)]
    assert cells == ["-2", "4", "''-7", "'=1+1", "'@SUM(1)"]
    assert list(map(csv_text, cells)) == ["-2", "4", "'-7", "=1+1", "@SUM(1)"]
    (row, *_) = compare(data.out / "results.json", data.out / "results.json", samples=3)
    assert (row["instances"], row["difference"], row["only_a"]) == (5, 0, 0)


def test_text_that_no_encoding_has_is_written_escaped(tmp_path: Path) -> None:
    """A folder or file whose name is not UTF-8 comes as half of a surrogate pair."""
    with whole_file(tmp_path / "a.txt") as stream:
        stream.write("caf\udce9.json")
    assert (tmp_path / "a.txt").read_text() == "caf\\udce9.json"


def test_annotations_in_a_file_whose_name_is_not_utf8(data: SimpleNamespace, stub_model: SimpleNamespace) -> None:
    path = Path(os.fsdecode(os.fsencode(data.json.parent) + b"/caf\xe9.json"))
    data.json.rename(path)
    main(arguments(data, "--annotations", str(path)))
    assert json.loads((data.out / "results.json").read_text())["settings"]["annotations"] == path.name
    assert "caf\\udce9.json" in (data.out / "report.html").read_text(encoding="utf-8")
