"""The quickstart on an untrained model: photographs without a download, pictures, and a table that adds up."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_bigltl.cli import quickstart
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.data.images import read_image
from sam_bigltl.errors import InputError
from sam_bigltl.predict.predictor import SamPredictor


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    quickstart.add_arguments(parser)
    return parser.parse_args([str(value) for value in arguments])


def test_photos_and_prompts():
    photos = quickstart.sample_photos()
    assert [photo.name for photo in photos] == ["astronaut", "coffee", "chelsea"]
    for photo in photos:
        for prompt in photo.objects.values():
            assert prompt.clipped(photo.image.shape[:2]) == prompt
        prompts = photo.objects.values()
        assert any(prompt.box for prompt in prompts) and any(prompt.points for prompt in prompts)


def test_run_writes_a_strip_per_photo(monkeypatch, tmp_path, capsys):
    torch.manual_seed(0)
    sam = sam_model_registry["bigltl_mini"]()
    monkeypatch.setattr(quickstart, "load_predictor", lambda *_: SamPredictor(sam))
    monkeypatch.setattr(quickstart, "WARMUP", 0)
    quickstart.run(options("--out", tmp_path, "--runs", 1, "--device", "cpu"))
    output = capsys.readouterr().out
    for name in ("astronaut", "coffee", "chelsea"):
        strip = read_image(tmp_path / f"quickstart_{name}.png")
        assert strip.shape[1] > 3 * strip.shape[0] and str(tmp_path / f"quickstart_{name}.png") in output
    rows = [line.split() for line in output.splitlines()]
    times = {row[0]: row[1:] for row in rows if len(row) == 3 and row[2].endswith("x")}
    assert set(times) == {"1", "0.5", "0.25"} and times["1"][1] == "1.00x"
    values = [row for row in rows if row and row[0] in ("astronaut", "coffee", "chelsea")]
    assert len(values) == 3 * 3 * 2
    assert all(float(row[-1]) == 1.0 for row in values if row[-3] == "1")


def test_bad_options(monkeypatch):
    with pytest.raises(InputError, match="runs"):
        quickstart.run(options("--runs", 0))
    dense = sam_model_registry["vit_mini"]()
    monkeypatch.setattr(quickstart, "load_predictor", lambda *_: SamPredictor(dense))
    with pytest.raises(InputError, match="big.LITTLE"):
        quickstart.run(options("--device", "cpu"))


def test_iou():
    a = np.array([[True, True, False]])
    assert quickstart.iou(a, np.array([[False, True, True]])) == pytest.approx(1 / 3)
    assert quickstart.iou(~a & a, ~a & a) == 1.0


def test_the_script_with_the_shipped_weights(tmp_path):
    script = Path(__file__).resolve().parents[1] / "demo" / "quickstart.py"
    command = [sys.executable, str(script), "--runs", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"quickstart_{name}.png" for name in ("astronaut", "chelsea", "coffee")
    ]


def test_the_picture_of_failures(tmp_path):
    out = tmp_path / "failures.jpg"
    command = [sys.executable, str(Path(__file__).resolve().parents[1] / "demo" / "failures.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 20_000 and "wrote" in done.stdout
