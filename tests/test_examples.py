"""The examples run as they are, with the shipped weights, and write what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sam_bigltl.data.images import read_image

FOLDER = Path(__file__).resolve().parents[1] / "examples"
QUICK = {
    "one_image": [],
    "many_images": [],
    "keep_ratio": ["--ratios", "1", "0.25", "--runs", "1"],
    "everything": ["--points-per-side", "10"],
    "convert_and_distill": ["--steps", "1"],
    "classify": ["--runs", "1", "--keep-ratio", "1", "0.25"],
}


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def succeed(name: str, out: Path | None) -> str:
    done = run(name, *QUICK[name], *(() if out is None else ("--out", out)))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_here_and_short():
    files = sorted(FOLDER.glob("*.py"))
    assert [path.stem for path in files] == sorted(QUICK)
    for path in files:
        assert len(path.read_text().splitlines()) < 60, path.name
        assert f"python examples/{path.name}" in path.read_text(), path.name


def test_one_image(tmp_path):
    text = succeed("one_image", tmp_path)
    pixels = int(re.search(r"(\d+) pixels", text)[1])
    box = 220 * 171  # of the example, in pixels
    assert 0.3 * box < pixels < box
    assert read_image(tmp_path / "one_image.png").shape == (512, 512, 3)


def test_many_images(tmp_path):
    text = succeed("many_images", tmp_path)
    assert text.count("from the file the same: True") == 3 and "False" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "many_astronaut.png", "many_chelsea.png", "many_coffee.png", "photos.safetensors",
    ]  # fmt: skip


def test_keep_ratio(tmp_path):
    rows = [line.split() for line in succeed("keep_ratio", tmp_path).splitlines()[1:3]]
    assert [row[:2] for row in rows] == [["1", "1600"], ["0.25", "400"]]  # of the 40 x 40 tokens of 640 px
    assert float(rows[0][4]) == 1.0 and 0.7 < float(rows[1][4]) <= 1.0
    assert (read_image(tmp_path / "routing_1.png") != read_image(tmp_path / "routing_0.25.png")).any()


def test_everything(tmp_path):
    text = succeed("everything", tmp_path)
    count = int(re.search(r"(\d+) masks", text)[1])
    assert count >= 3 and len(re.findall(r"predicted IoU", text)) == count
    assert (tmp_path / "everything.png").is_file()


def test_convert_and_distill(tmp_path):
    pytest.importorskip("accelerate")
    errors = dict(re.findall(r"keep_ratio ([\d.]+): .* (\S+)\n", succeed("convert_and_distill", tmp_path)))
    assert float(errors["1"]) < 1e-9 and 0 < float(errors["0.25"]) < 1
    assert (tmp_path / "run" / "stage1" / "model.safetensors").is_file()


def test_classify():
    pytest.importorskip("timm")
    text = succeed("classify", None)
    assert "196 of 196 patches big" in text and "49 of 196 patches big" in text
    differences = [float(value) for value in re.findall(r"max abs difference (\S+)", text)]
    assert differences[0] < 1e-5 < differences[1]


def test_a_photograph_that_is_not_there_is_one_line():
    done = run("one_image", "--photo", "nowhere.jpg")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "nowhere.jpg" in done.stderr
