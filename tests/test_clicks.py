"""The click benchmark: the same model and masks for both predictors, and its files. No timing is asserted."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture

from sam_bigltl.bench import clicks
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.data.images import write_image
from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import levels

ROOT = Path(__file__).resolve().parents[1]


def test_the_model_is_sams_size_with_the_shipped_decoder() -> None:
    sam = clicks.model_at_full_size(default_checkpoint(), picture())
    assert sam.image_encoder.img_size == 1024 and sam.prompt_encoder.image_embedding_size == (64, 64)
    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(picture())
    assert predictor.features.shape == (1, 256, 64, 64)
    masks, _, low_res = predictor.predict(box=np.array([5, 5, 40, 30]))
    assert masks.shape[1:] == picture().shape[:2] and low_res.shape == (3, 256, 256)
    height, _ = predictor.input_size  # beyond the photograph there is nothing
    beyond = predictor.features[..., height // 16 + 1 :, :]
    assert predictor.features.abs().sum() > 0 and beyond.abs().sum() == 0


def test_boxes_lie_inside_and_have_an_area() -> None:
    boxes = clicks.some_boxes((300, 500), 64)
    assert boxes.shape == (64, 4) and torch.equal(boxes, clicks.some_boxes((300, 500), 64))
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
    assert (boxes[:, 2] <= 500).all() and (boxes[:, 3] <= 300).all()


def test_lowest_iou_by_hand() -> None:
    left, right = np.zeros((2, 2, 4), bool), np.zeros((2, 2, 4), bool)
    left[0, 0], left[1, 1, :2] = True, True
    right[0, 1, :3], right[1, 0] = True, True  # in another order; the second shares 2 of 3 pixels
    assert clicks.lowest_iou(left, right) == pytest.approx(2 / 3)
    assert clicks.lowest_iou(left, left) == 1
    assert clicks.lowest_iou(left, right[:1]) == 0
    assert clicks.lowest_iou(left[:0], right[:0]) == 1


def test_the_script(tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    write_image(image, picture())
    output = tmp_path / "clicks.csv"
    command = [
        sys.executable, str(ROOT / "eval" / "click_latency.py"), "--image", str(image), "--runs", "1",
        "--tasks", "1 box", "everything", "--points-per-side", "1", "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == clicks.COLUMNS
    assert [(row["task"], row["predictor"], row["memory"]) for row in rows] == [
        (task, predictor, memory)
        for task in ("1 box", "everything")
        for predictor in ("segment_anything", "sam_bigltl")
        for memory in ("default", "kept")
    ]  # fmt: skip
    assert all(row["masks"] == "3" and float(row["lowest_iou"]) > 0.99 for row in rows[:4])
    assert all(float(row["lowest_iou"]) > 0.95 for row in rows[4:])
    assert "speedup" in done.stdout


def test_a_whole_click_is_that_of_sams_predictor() -> None:
    try:
        levels.function("linear")
    except InputError as error:
        pytest.skip(str(error))
    rest = (default_checkpoint(), None, 1, ("click bigltl_mini",), False, None, 1.0, "float32")
    masks = []
    for predictor in ("segment_anything", "sam_bigltl"):
        job = clicks.ClickJob(predictor, *rest)
        (task,) = job._whole(picture(60, 90))
        masks.append(task.call())
        assert masks[-1].shape == (3, 60, 90) and masks[-1].any()
    assert clicks.lowest_iou(*masks) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "0"], "--runs 0 is below 1"),
        (["--points-per-side", "0"], "--points-per-side 0 is below 1"),
        (["--keep-ratio", "0"], "--keep-ratio 0 is not in (0, 1]"),
        (["--image", "missing.png"], "missing.png"),
        (["--checkpoint", "missing.safetensors"], "no checkpoint at missing.safetensors"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        clicks.main(options)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("click_latency.py: error: ") and error.count("\n") == 1 and message in error
