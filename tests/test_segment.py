"""`sam-bigltl segment`: what it writes and prints, and one line for every bad input; then the pictures it draws."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, tiny_sam
from PIL import Image
from pycocotools import mask as mask_utils

from sam_bigltl.cli import prompts, segment
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.data.images import read_image
from sam_bigltl.errors import InputError, run_cli
from sam_bigltl.modeling.routing import Route, RouteGroup
from sam_bigltl.predict.predictor import SamPredictor
from sam_bigltl.predict.visualize import overlay, routing_picture, side_by_side

BOX = "5,4,60,40"


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(picture(48, 80)).save(path, quality=95)
    return str(path)


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    return sam_model_registry["bigltl_mini"]()


@pytest.fixture(scope="module")
def checkpoint(mini, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "mini.pth"
    torch.save(mini.state_dict(), path)
    return str(path)


@pytest.fixture
def run(monkeypatch, mini):
    """Run the command in this process on an untrained model."""
    monkeypatch.setattr(segment, "load_predictor", lambda *_: SamPredictor(mini))

    def run(*arguments: object) -> None:
        parser = argparse.ArgumentParser()
        segment.add_arguments(parser)
        run_cli("sam-bigltl segment", segment.run, parser.parse_args([str(value) for value in arguments]))

    return run


def test_writes_masks_json_and_pictures(run, photo, tmp_path, capsys):
    run(photo, "--box", BOX, "--box", "0,0,80,48", "--keep-ratio", "0.5", "--out", tmp_path / "new" / "o")
    folder = tmp_path / "new" / "o"
    names = {"photo_overlay.png", "photo_mask_1.png", "photo_mask_2.png", "photo_routing.png", "photo_masks.json"}
    assert {path.name for path in folder.iterdir()} == names
    records = json.loads((folder / "photo_masks.json").read_text())
    assert [record["prompt"] for record in records] == [{"box": [5, 4, 60, 40]}, {"box": [0, 0, 80, 48]}]
    for number, record in enumerate(records, start=1):
        mask = np.asarray(Image.open(folder / f"photo_mask_{number}.png"))
        assert mask.shape == (48, 80) and set(np.unique(mask)) <= {0, 255}
        assert (mask_utils.decode(record["segmentation"]) * 255 == mask).all()
        assert record["area"] == (mask > 0).sum() and record["size"] == [48, 80]
        assert record["file_name"] == "photo.jpg" and 0 <= record["bbox"][2] <= 80
    for name in ("photo_overlay.png", "photo_routing.png"):
        drawn = read_image(folder / name)
        assert drawn.shape == (48, 80, 3) and (drawn != read_image(photo)).any()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mask", "prompt", "predicted", "IoU", "area", "px", "decoder", "ms"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert str(records[1]["area"]) in lines[2] and f"{records[1]['predicted_iou']:.3f}" in lines[2]
    assert lines[3].startswith("encoder ") and str(folder / "photo_masks.json") in lines[4]


def test_masks_are_those_of_the_predictor(run, photo, mini, tmp_path):
    run(photo, "--box", BOX, "--point", "20,20", "--point", "70,40,0", "--all-masks", "--keep-ratio", "1",
        "--out", tmp_path)  # fmt: skip
    predictor = SamPredictor(mini)
    predictor.set_image(read_image(photo))
    masks, scores, _ = predictor.predict(np.array([[20, 20], [70, 40]]), np.array([1, 0]), np.array([5, 4, 60, 40]))
    records = json.loads((tmp_path / "photo_masks.json").read_text())
    assert len(records) == 3
    for record, index in zip(records, np.argsort(-scores)):
        assert (mask_utils.decode(record["segmentation"]) == masks[index]).all()
        assert record["predicted_iou"] == pytest.approx(float(scores[index]))
        assert record["prompt"] == {
            "box": [5, 4, 60, 40], "point_coords": [[20, 20], [70, 40]], "point_labels": [1, 0]
        }  # fmt: skip


@pytest.mark.parametrize("text,expected", [("0.5", 0.5), ("auto", "auto"), ("1,0.5,0.25", (1.0, 0.5, 0.25))])
def test_keep_ratio_reaches_the_encoder(run, photo, mini, tmp_path, text, expected):
    run(photo, "--point", "9,9", "--keep-ratio", text, "--out", tmp_path)
    assert mini.image_encoder.keep_ratio == expected


def test_plain_encoder_has_no_routing_picture(run, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment, "load_predictor", lambda *_: SamPredictor(tiny_sam()))
    run(photo, "--box", BOX, "--out", tmp_path)
    assert not (tmp_path / "photo_routing.png").exists() and (tmp_path / "photo_overlay.png").exists()
    with pytest.raises(SystemExit):
        run(photo, "--box", BOX, "--keep-ratio", "0.5", "--out", tmp_path)
    assert "plain ViT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(photo, "--box", BOX, "--focus", "--out", tmp_path)
    assert "computes every token: leave --focus out" in capsys.readouterr().err


def test_focus_encodes_once_for_each_box(run, photo, mini, tmp_path):
    run(photo, "--box", BOX, "--box", "40,20,80,48", "--keep-ratio", "0.25", "--focus", "--out", tmp_path)
    records = json.loads((tmp_path / "photo_masks.json").read_text())
    predictor = SamPredictor(mini)
    for number, (box, record) in enumerate(zip(([5, 4, 60, 40], [40, 20, 80, 48]), records, strict=True), start=1):
        predictor.set_image(read_image(photo), boxes=[box])
        masks, scores, _ = predictor.predict(box=np.array(box))
        assert record["prompt"] == {"box": box}
        assert (mask_utils.decode(record["segmentation"]) == masks[scores.argmax()]).all()
        drawn = read_image(tmp_path / f"photo_routing_{number}.png")
        assert (drawn == routing_picture(read_image(photo), predictor.route)).all()
    assert not (tmp_path / "photo_routing.png").exists()


BAD = {
    "no prompt": [],
    "focus on a point": ["--point", "5,5", "--focus"],
    "three numbers": ["--box", "1,2,3"],
    "text": ["--box", "a,b,c,d"],
    "nan": ["--box", "nan,0,9,9"],
    "inverted": ["--box", "20,20,10,30"],
    "outside": ["--box", "0,0,81,20"],
    "negative": ["--box=-1,0,9,9"],
    "point outside": ["--point", "5,49"],
    "infinite point": ["--point", "inf,4"],
    "label 2": ["--point", "5,5,2"],
    "one number": ["--point", "5"],
    "boxes and points": ["--box", BOX, "--box", BOX, "--point", "5,5"],
    "ratio 0": ["--box", BOX, "--keep-ratio", "0"],
    "ratio 1.5": ["--box", BOX, "--keep-ratio", "1.5"],
    "ratio text": ["--box", BOX, "--keep-ratio", "half"],
    "stages": ["--box", BOX, "--keep-ratio", "0.5,0.5"],
    "device": ["--box", BOX, "--device", "toaster"],
    "no such device": ["--box", BOX, "--device", "cuda:77"],
    "dtype": ["--box", BOX, "--dtype", "float16"],
    "out is a file": ["--box", BOX, "--out", __file__],
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(run, photo, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as caught:
        run(photo, "--out", tmp_path / "o", *options)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("sam-bigltl segment: error: ")
    assert captured.out == "" and not (tmp_path / "o").exists()


def test_a_box_that_rounding_has_put_outside_is_clipped(run, photo, mini, tmp_path):
    run(photo, "--box=-0.5,4,80.01,40", "--point", "20,48.5", "--keep-ratio", "1", "--out", tmp_path)
    predictor = SamPredictor(mini)
    predictor.set_image(read_image(photo))
    masks, scores, _ = predictor.predict(np.array([[20, 48]]), np.array([1]), np.array([0, 4, 80, 40]))
    record = json.loads((tmp_path / "photo_masks.json").read_text())[0]
    assert (mask_utils.decode(record["segmentation"]) == masks[scores.argmax()]).all()
    assert record["predicted_iou"] == float(scores.max()) and record["prompt"]["box"] == [-0.5, 4, 80.01, 40]


def test_a_bad_box_costs_one_mask(run, photo, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(photo, "--box", "0,0,81,20", "--box", BOX, "--out", tmp_path)
    captured = capsys.readouterr()
    assert end.value.code == 1 and "wrote " in captured.out
    assert captured.err.splitlines()[0] == "1 of 2 prompts could not be used:" and "81,20 lies outside" in captured.err
    records = json.loads((tmp_path / "photo_masks.json").read_text())
    assert [record["prompt"] for record in records] == [{"box": [5, 4, 60, 40]}]


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "sam_bigltl.cli", "segment", *arguments],
        capture_output=True, text=True, cwd=folder, env=environment,
    )  # fmt: skip


def test_command_line(photo, checkpoint, tmp_path):
    done = command(photo, "--checkpoint", checkpoint, "--box", BOX, "--dtype", "bfloat16", "--device", "cpu",
                   "--keep-ratio", "0.25", folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "photo_mask_1.png").is_file() and "predicted IoU" in done.stdout


@pytest.mark.parametrize("options", [["--checkpoint", "missing.safetensors", "--box", BOX], ["--box", "1,1,99,9"]])
def test_command_line_error(photo, tmp_path, options):
    done = command(photo, *options, folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "error: " in done.stderr and "Traceback" not in done.stderr


def route(*groups: list[int]) -> Route:
    """Selections of a 4 x 4 grid, the second image of a batch selecting nothing but token 0."""
    rows = [torch.tensor([group, [0] + [-1] * (len(group) - 1)]) for group in groups]
    return Route((4, 4), tuple(RouteGroup((index,), row, None) for index, row in enumerate(rows)))


def test_routing_picture_marks_the_big_tokens_of_the_photograph():
    image = np.full((40, 80, 3), 100, np.uint8)  # the frame is 80 x 80: tokens of 20 px, rows 2 and 3 are padding
    drawn = routing_picture(image, route([1, 6], [1, 15])).astype(int)
    assert drawn.shape == image.shape
    centre = drawn[10::20, 10::20].sum(axis=2)  # (2, 4) tokens
    dark = centre < 100
    assert dark.tolist() == [[True, False, True, True], [True, True, False, True]]
    assert abs(drawn[10, 30] - drawn[30, 50]).max() > 20  # twice and once
    second = routing_picture(image, route([1, 6], [1, 15]), image_index=1)[10::20, 10::20].sum(axis=2) < 100
    assert second.tolist() == [[False, True, True, True], [True] * 4]
    assert (image == 100).all()


def test_overlay_draws_masks_boxes_and_points():
    image = np.zeros((60, 90, 3), np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[20:40, 20:40] = True
    drawn = overlay(image, [mask], [(50, 10, 80, 50)], [(10, 50), (70, 30)], [1, 0])
    assert drawn[30, 30].any() and drawn[30, 50].any() and not drawn[50, 30].any() and not image.any()
    assert drawn[50, 10, 1] > drawn[50, 10, 0] and drawn[30, 70, 0] > drawn[30, 70, 1]  # green, red


def test_side_by_side_scales_and_captions():
    strip = side_by_side([picture(30, 60), picture(100, 50)], ["first", "second " * 20], height=120)
    assert strip.dtype == np.uint8 and strip.shape[1] == 240 + 8 + 160
    assert (strip[124:, :240] < 100).any() and (strip[124:, 248:] < 150).any()


def test_parse_errors_are_input_errors():
    with pytest.raises(InputError):
        prompts.parse_prompts(["1,2,3,4,5"], [])
    with pytest.raises(InputError):
        prompts.parse_keep_ratio("")
