"""`sam-bigltl tune` as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_cli
import torch
from PIL import Image
from safetensors.numpy import load_file
from test_tuning import photographs

from sam_bigltl import save_sam
from sam_bigltl.fast.native import levels
from sam_bigltl.modeling.registry import build_sam

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny model, a folder of photographs, and one of three."""
    folder = tmp_path_factory.mktemp("tune")
    torch.manual_seed(0)
    for name in ("vit", "bigltl"):
        save_sam(build_sam(tiny_cli.TINY[f"{name}_tiny"]), folder / f"{name}.safetensors")
    for name, count in (("photos", 9), ("few", 3)):
        (folder / name).mkdir()
        for number, pixels in enumerate(photographs(count, (72, 96))):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    return folder


def tune(folder: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / "tiny_cli.py", "tune", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)


QUICK = ("--fit", "4", "--measure", "4", "--objects", "2", "--keep-ratio", "1", "0.5", "--dtype", "float32")


def test_the_whole_command(folder: Path):
    done = tune(folder, "vit.safetensors", "--images", "photos", "--output", "out dir", "--target", "0.3", *QUICK)
    assert done.returncode == 0, done.stderr
    plan = next(line for line in done.stdout.splitlines() if line.startswith("plan: "))
    settings = 3 if levels.level() is None else 6  # each in torch and in the kernels
    assert f"fit the little path to 4 photographs, measure {settings} settings on 4 others" in plan
    assert "memory: about" in done.stdout
    assert "1 photograph cannot be used, such as broken.jpg" in done.stdout
    out = folder / "out dir"
    content = json.loads((out / "tune.json").read_text())
    assert len(content["rows"]) == settings
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "journal.jsonl", "report.html", "tune.json", "tune.png"
    }  # fmt: skip
    # What it says can be typed as it is.
    line = next(line.strip() for line in done.stdout.splitlines() if "sam-bigltl segment" in line)
    assert "--tuned" in line and "'out dir/model.safetensors'" in line
    again = tune(folder, "vit.safetensors", "--images", "photos", "--output", "out dir", "--target", "0.9", *QUICK)
    assert again.returncode == 0, again.stderr
    assert "going on with what the folder holds" in again.stdout and "timing" not in again.stdout
    other = json.loads((out / "tune.json").read_text())
    assert [row["seconds"] for row in other["rows"]] == [row["seconds"] for row in content["rows"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vit.safetensors", "--images", "few"], "3 photographs are too few"),
        (["vit.safetensors", "--images", "nowhere"], "nowhere does not exist"),
        (["photos/0.png", "--images", "photos"], "photos/0.png"),
        (["vit.safetensors", "--images", "photos", "--budget", "0.0001"], "--budget"),
        (["vit.safetensors", "--images", "photos", "--keep-ratio", "2"], "--keep-ratio"),
        (["bigltl.safetensors", "--images", "photos", "--minutes", "1"], "has a little path already"),
        (["vit.safetensors", "--images", "photos", "--output", "photos/0.png"], "photos/0.png"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(folder: Path, arguments: list[str], words: str):
    done = tune(folder, *arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_a_little_path_that_is_there_is_kept(folder: Path):
    done = tune(folder, "bigltl.safetensors", "--images", "photos", "--output", "kept", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "its little path is kept" in done.stdout
    before, after = (load_file(folder / name) for name in ("bigltl.safetensors", "kept/model.safetensors"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
