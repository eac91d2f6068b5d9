"""`sam-bigltl train`: what it writes, interruption from outside, and bad input."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_cli
import torch
from PIL import Image
from training_toy import edit, write_shapes

from sam_bigltl.cli import main
from sam_bigltl.convert import load_sam, registry, save_sam

FILES = ("model.safetensors", "log.csv", "val.csv", "curve.png", "state.pt")
TIMES = ("seconds", "images_per_s")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def flags(shapes: Path, output: Path, *more: object, model: str = "vit_tiny", steps: int = 4) -> list[str]:
    given = [
        "train", "--model", model, "--data", shapes, "--images", shapes.parent / "images", "--output", output,
        "--steps", steps, "--batch-size", 2, "--prompts", 2, "--crop", 64, "--workers", 0, "--warmup", 2, "--device",
        "cpu", *more,
    ]  # fmt: skip
    return [str(flag) for flag in given]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=ENVIRONMENT)


# ---------------------------------------------------------------- runs
def test_dense_then_distilled(tiny, shapes, tmp_path, capsys):
    main(flags(shapes, tmp_path / "dense", "--val", shapes, "--val-images", 2, "--val-every", 2))
    dense = tmp_path / "dense"
    assert all((dense / name).is_file() for name in FILES)
    with Image.open(dense / "curve.png") as curve:
        assert curve.size[0] > 500
    val = rows(dense / "val.csv")
    assert [(row["step"], row["prompt"]) for row in val] == [(s, p) for s in "24" for p in ("box", "point")]
    assert all(0 <= float(row["all"]) <= 100 for row in val)
    state = torch.load(dense / "state.pt", weights_only=True)
    written = load_sam(dense / "model.safetensors", "vit_tiny").state_dict()
    assert all(torch.equal(written[name], value) for name, value in state["average"].items())

    little = tmp_path / "little"
    teaching = ("--teacher", dense / "model.safetensors", "--distill-weight", 1, "--keep-ratios", 1.0, 0.5)
    main(flags(shapes, little, *teaching, "--freeze-decoder", "--val", shapes, "--val-images", 1, model="bigltl_tiny"))
    assert all((little / name).is_file() for name in FILES)
    student = load_sam(little / "model.safetensors", "bigltl_tiny").state_dict()
    for name, value in written.items():  # the decoder is frozen, and the stem's statistics are the teacher's
        same = not name.startswith("image_encoder.") or "running_" in name or value.numel() == 1
        assert torch.equal(student[name], value) == same, name
    assert {row["keep_ratio"] for row in rows(little / "val.csv")} == {"1.0", "0.5"}
    said = capsys.readouterr().out
    count = len(json.loads(shapes.read_text())["annotations"])
    assert "warm start" in said and said.count(f"training annotations: {count} used, none left out\n") == 2
    assert re.search(r"\nvalidation annotations: \d used, \d+ left out \(\d+ of images beyond --val-images\)\n", said)
    assert float(rows(little / "log.csv")[0]["cosine"]) < 0.5  # it starts from the teacher


def test_real_types_in_the_real_command(shapes, tmp_path):
    torch.manual_seed(0)
    save_sam(registry.sam_model_registry["vit_mini"](), tmp_path / "teacher.safetensors")
    teaching = ("--teacher", tmp_path / "teacher.safetensors", "--distill-weight", 1, "--keep-ratios", 0.25)
    given = flags(shapes, tmp_path / "run", *teaching, "--val", shapes, "--val-images", 1, model="bigltl_mini", steps=2)
    given[given.index("--crop") + 1] = "112"
    done = run("-m", "sam_bigltl.cli", *given)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "run" / name).is_file() for name in FILES)
    load_sam(tmp_path / "run" / "model.safetensors", "bigltl_mini")
    assert "model.safetensors after 2 steps" in done.stdout


SCRIPT = str(Path(tiny_cli.__file__))
STEPS = 40


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory) -> Path:
    """The folder of a run of `STEPS` steps."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run(SCRIPT, *flags(shapes, folder, steps=STEPS))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside(number: int, shapes, uninterrupted, tmp_path):
    """Wherever in the run it comes: exit code 130, and the continued run is the uninterrupted one."""
    command = flags(shapes, tmp_path / "parts", "--workers", 1, steps=STEPS)
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    log = tmp_path / "parts" / "log.csv"
    deadline = time.monotonic() + 300
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "sam-bigltl train: interrupted"
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert 10 <= state["step"] < STEPS
    done = run(SCRIPT, *flags(shapes, tmp_path / "parts", "--resume", steps=STEPS))
    assert done.returncode == 0, done.stderr
    for name in ("log.csv", "val.csv"):
        assert (tmp_path / "parts" / name).exists() == (uninterrupted / name).exists()
    assert rows(tmp_path / "parts" / "log.csv") == rows(uninterrupted / "log.csv")
    files = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "parts", uninterrupted)]
    assert files[0] == files[1]


def test_starting_from_weights_and_not_overwriting_a_run(tiny, shapes, tmp_path, capsys):
    main(flags(shapes, tmp_path / "a", steps=1))
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    for more, word in (([], "--resume"), (["--resume", "--lr", 5e-4], "lr"), (["--resume", "--seed", 3], "seed")):
        assert "error" in refused(flags(shapes, tmp_path / "a", *more, steps=1), capsys, word)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    main(flags(shapes, tmp_path / "b", "--init", tmp_path / "a" / "model.safetensors", "--lr", 1e-12, steps=1))
    start, end = (load_sam(tmp_path / x / "model.safetensors").state_dict() for x in "ab")
    for name, value in start.items():
        if "running" not in name and value.is_floating_point():
            assert torch.allclose(value, end[name], atol=1e-6), name


def test_sharper_positions_are_made_once(tiny, shapes, tmp_path):
    main(flags(shapes, tmp_path / "a", steps=1))
    start = ["--init", tmp_path / "a" / "model.safetensors"]
    main(flags(shapes, tmp_path / "b", *start, "--sharpen-positions", steps=2))
    main(flags(shapes, tmp_path / "b", "--resume", "--sharpen-positions", steps=2))
    key = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    before, after = (load_sam(tmp_path / x / "model.safetensors").state_dict()[key] for x in "ab")
    factor = torch.cat([torch.ones(8), torch.full((4,), 3.0), torch.full((4,), 7.0)])
    assert before.shape == (2, 16) and torch.allclose(after, before * factor, rtol=2e-3)


def test_two_processes_do_what_one_does(tiny, shapes, tmp_path):
    save_sam(registry.sam_model_registry["vit_tiny"](), tmp_path / "teacher.safetensors")
    exact = ("--precision", "float32", "--batch-size", 4, "--rounds", 3, "--log-every", 1)
    exact += ("--teacher", tmp_path / "teacher.safetensors", "--keep-ratios", 1.0, 0.5)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for count, launch in ((1, []), (2, two)):
        done = run(*launch, SCRIPT, *flags(shapes, tmp_path / str(count), *exact, model="bigltl_tiny"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("training annotations") == done.stdout.count("wrote ") == 1
    ours, theirs = (
        [{k: float(v) for k, v in row.items()} for row in rows(tmp_path / name / "log.csv")] for name in "21"
    )
    assert [row["images"] for row in ours] == [4, 8, 12, 16]
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)
    done = run(*two, SCRIPT, *flags(shapes, tmp_path / "statistics", "--batch-size", 4))
    assert done.returncode and "batch norms" in done.stderr


# ---------------------------------------------------------------- bad input
def refused(arguments: list[str], capsys, word: str) -> str:
    """The one line on stderr with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert end.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("sam-bigltl train: error: ") and word in lines[0], lines
    return lines[0]


BAD_FLAGS = {
    "--data": ["absent.json", "absent.json"],
    "--images": ["absent", "absent"],
    "--val": ["absent.json", "absent.json"],
    "--init": ["absent.safetensors", "absent.safetensors"],
    "--teacher": ["absent.safetensors", "absent.safetensors"],
    "--crop": ["40", "multiple of 16"],
    "--steps": ["0", "--steps"],
    "--batch-size": ["0", "--batch-size"],
    "--prompts": ["-1", "--prompts"],
    "--keep-ratios": ["0", "keep_ratio"],
    "--lr": ["-1", "--lr"],
    "--clip": ["nan", "--clip"],
    "--ema": ["1", "--ema"],
    "--as-is": ["-0.1", "--as-is"],
    "--box-share": ["1.5", "--box-share"],
    "--box-jitter": ["nan", "--box-jitter"],
    "--seed": ["-1", "--seed"],
    "--workers": ["-1", "--workers"],
    "--warmup": ["-5", "--warmup"],
    "--distill-weight": ["1", "--teacher"],
    "--device": ["toaster", "toaster"],
    "--model": ["vit_x", "vit_x"],
    "--precision": ["int8", "int8"],
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_bad_flags(flag: str, tiny, shapes, tmp_path, capsys):
    value, word = BAD_FLAGS[flag]
    refused(flags(shapes, tmp_path / "run", f"{flag}={value}"), capsys, word)
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize(
    ("more", "word", "model"),
    [
        (["--keep-ratios", 0.5, 1.5], "keep_ratio", "bigltl_tiny"),
        (["--keep-ratios", 0.5], "dense", "vit_tiny"),
        (["--crop", 0], "multiple of 16", "vit_tiny"),
        (["--crop", 256], "multiple of 16", "vit_tiny"),
        (["--scale", 1.5, 0.5], "--scale", "vit_tiny"),
        (["--resume"], "nothing to resume", "vit_tiny"),
    ],
)
def test_bad_combinations(more: list, word: str, model: str, tiny, shapes, tmp_path, capsys):
    refused(flags(shapes, tmp_path / "run", *more, model=model), capsys, word)


def test_teachers_that_cannot_teach(tiny, shapes, tmp_path, capsys):
    save_sam(registry.build_sam(tiny_cli.TINY["vit_tiny"]), tmp_path / "tiny.safetensors")
    save_sam(registry.build_sam(registry.ENCODERS["vit_mini"]), tmp_path / "mini.safetensors")
    teach = ("--teacher", tmp_path / "mini.safetensors")
    refused(flags(shapes, tmp_path / "run", *teach, model="bigltl_tiny"), capsys, "vit_mini")
    start = ("--init", tmp_path / "tiny.safetensors")
    refused(flags(shapes, tmp_path / "run", *teach, *start), capsys, "vit_mini")
    refused(flags(shapes, tmp_path / "run", "--init", tmp_path / "mini.safetensors"), capsys, "vit_mini")


def _forget(key: str):
    return lambda content: [entry.pop(key) for entry in content["annotations"]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda content: content.clear(), "images"),
        (lambda content: content["annotations"].clear(), "annotations"),
        (_forget("segmentation"), "segmentation"),
        (lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]], "18 marked as crowd"),
    ],
)
def test_bad_annotations(change, word: str, tiny, tmp_path, capsys):
    refused(flags(edit(write_shapes(tmp_path / "set"), change), tmp_path / "run"), capsys, word)


def test_bad_files(tiny, shapes, tmp_path, capsys):
    for content in ("", "no json", json.dumps([])):
        (tmp_path / "a.json").write_text(content)
        refused(flags(shapes, tmp_path / "run", f"--data={tmp_path / 'a.json'}"), capsys, "a.json")
    (tmp_path / "file").write_text("")
    refused(flags(shapes, tmp_path / "file"), capsys, "file")
