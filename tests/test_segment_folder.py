"""`sam-bigltl segment FOLDER`: the masks of the predictor, in whole files, whatever interrupts the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image
from pycocotools import mask as mask_utils

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.cli import main
from sam_bigltl.convert import save_sam
from sam_bigltl.data.images import read_image
from sam_bigltl.errors import InputError
from sam_bigltl.predict.segment_folder import load_prompts

BOXES = [{"box": [5, 4, 60, 40]}, {"box": [20.5, 10, 70, 45]}]
POINTS = {"point_coords": [[20, 20], [70, 40]], "point_labels": [1, 0]}
PROMPTS = {
    "a.png": [*BOXES, POINTS, {"box": [0, 0, 30, 30]}, {"box": [5, 4, 60, 40], **POINTS}],
    "b.jpg": [POINTS],
    "sub/c.png": BOXES,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_sam(dense_sam(dense_config(little_dim=8)), path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, (name, size) in enumerate({"a.png": (48, 80), "b.jpg": (50, 90), "sub/c.png": (60, 72)}.items()):
        Image.fromarray(picture(*size, seed=seed)).save(folder / name)
    return folder


@pytest.fixture
def segment(photos, checkpoint, tmp_path):
    """Run the command in this process; returns the folder of the results."""

    def run(*options: object, prompts: object = PROMPTS, out: str = "out") -> Path:
        path = tmp_path / "prompts.json"
        path.write_text(prompts if isinstance(prompts, str) else json.dumps(prompts))
        fixed = ["--prompts", path, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / out]
        main(["segment", *map(str, [photos, *fixed, *options])])
        return tmp_path / out

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("all_masks", "focus"), [(False, False), (True, False), (False, True), (True, True)])
def test_masks_are_those_of_the_predictor(segment, photos, checkpoint, all_masks, focus):
    out = segment("--dtype", "float32", "--keep-ratio", "0.5", *["--all-masks"] * all_masks, *["--focus"] * focus)
    names = {"settings.json", "a_masks.json", "b_masks.json", "sub/c_masks.json"}
    assert contents(out).keys() == names
    sam = load_sam(checkpoint)
    sam.image_encoder.keep_ratio = 0.5
    predictor = SamPredictor(sam)
    for name, asked in PROMPTS.items():
        predictor.set_image(read_image(photos / name))
        records = json.loads((out / Path(name).with_name(Path(name).stem + "_masks.json")).read_text())
        expected = []
        for prompt in asked:
            if focus:
                predictor.set_image(read_image(photos / name), boxes=[prompt["box"]] if "box" in prompt else None)
            arguments = {key: np.array(value) for key, value in prompt.items()}
            masks, scores, _ = predictor.predict(**arguments)
            chosen = np.argsort(-scores)[: 3 if all_masks else 1]
            expected += [(prompt, masks[i], scores[i]) for i in chosen]
        assert len(records) == len(expected)
        for record, (prompt, mask, score) in zip(records, expected):
            assert record["prompt"] == prompt and record["file_name"] == name
            assert record["predicted_iou"] == pytest.approx(float(score), abs=1e-4)
            assert (mask_utils.decode(record["segmentation"]) == mask).mean() > 0.999
            assert record["area"] == mask_utils.area(record["segmentation"])


def test_any_number_of_workers_writes_the_same_files(segment):
    one = contents(segment("--workers", 1, "--pictures", out="one"))
    assert contents(segment("--workers", 2, "--pictures", out="two")) == one
    assert {"a_overlay.png", "a_mask_5.png", "sub/c_routing.png"} <= one.keys()
    assert not [name for name in one if "partial" in name or ".part" in name]


def test_results_that_are_there_are_kept_and_damaged_or_old_ones_made_again(segment, capsys):
    before = contents(segment())
    out = segment()
    assert "0 of 3 photographs segmented" in capsys.readouterr().out.splitlines()[-1]
    stamp = (out / "b_masks.json").stat().st_mtime_ns
    (out / "a_masks.json").write_bytes(before["a_masks.json"][:200])
    changed = {**PROMPTS, "sub/c.png": BOXES[:1]}
    segment(prompts=changed)
    assert (
        "2 of 3 photographs segmented" in capsys.readouterr().out and (out / "b_masks.json").stat().st_mtime_ns == stamp
    )
    after = contents(out)
    assert after["a_masks.json"] == before["a_masks.json"] and len(json.loads(after["sub/c_masks.json"])) == 1


def test_results_of_one_photograph_do_not_count(segment, photos, checkpoint, tmp_path, capsys):
    """They were made with whatever settings."""
    box = ",".join(map(str, BOXES[0]["box"]))
    main(
        ["segment", *map(str, [photos / "a.png", "--box", box, "--checkpoint", checkpoint, "--out", tmp_path / "out"])]
    )
    segment(prompts={"a.png": BOXES[:1]})
    assert "1 of 1 photographs segmented" in capsys.readouterr().out


def test_other_settings_are_refused(segment, capsys):
    segment("--keep-ratio", "0.5")
    with pytest.raises(SystemExit) as end:
        segment("--keep-ratio", "0.25")
    assert end.value.code == 2 and "other settings (keep_ratio)" in capsys.readouterr().err


def test_photographs_that_cannot_be_read_are_counted_and_named(segment, photos, capsys):
    (photos / "b.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "unasked.jpg").write_bytes(b"")
    prompts = {"gone.jpg": BOXES, **PROMPTS, "sub/c.png": [{"box": [0, 0, 72, 61]}, {"box": [9, 9, 9, 9]}]}
    with pytest.raises(SystemExit) as end:
        segment(prompts=prompts)
    captured = capsys.readouterr()
    assert end.value.code == 1
    lines = captured.err.splitlines()
    assert lines[0] == "3 of 4 photographs could not be segmented:" and len(lines) == 4
    assert all(name in captured.err for name in ("gone.jpg", "b.jpg is damaged", "c.png, prompt 1: 72,61 lies outside"))
    assert "1 of 4 photographs segmented" in captured.out and ": 1 photographs of" in captured.out


BAD_PROMPTS = [
    {"box": [0, 0, 500, 400]}, {"box": [9, 9, 9, 9]}, {"box": [float("nan"), 0, 9, 9]}, {"box": [0, 0, 9]},
    {"box": [-0.9, 0, -0.1, 9]}, {"point_coords": [[1, 2], [1, 49]], "point_labels": [1, 1]},
    {"point_coords": [[1, 2]], "point_labels": [2]},
]  # fmt: skip


@pytest.mark.parametrize("all_masks", [False, True])
def test_a_bad_prompt_costs_one_mask_not_the_photograph(segment, photos, capsys, all_masks):
    """It is named, again when the results are there already, and the masks of the others are as without it."""
    flags = ["--all-masks"] * all_masks
    good = contents(segment(*flags, out="good"))
    prompts = {**PROMPTS, "a.png": [BAD_PROMPTS[0], *PROMPTS["a.png"], *BAD_PROMPTS[1:]]}
    capsys.readouterr()
    for line in ("3 of 3 photographs segmented", "0 of 3 photographs segmented"):
        with pytest.raises(SystemExit) as end:
            segment(*flags, prompts=prompts)
        captured = capsys.readouterr()
        assert end.value.code == 1 and line in captured.out
        first, *lines = captured.err.splitlines()
        assert first == "7 prompts could not be used:" and len(lines) == 7
        numbers = [1, *range(len(PROMPTS["a.png"]) + 2, len(PROMPTS["a.png"]) + 8)]
        assert all(f"{photos / 'a.png'}, prompt {n}: " in line for n, line in zip(numbers, lines))
    assert contents(photos.parent / "out") == good


def test_what_rounding_has_put_outside_is_clipped(segment, photos, checkpoint, capsys):
    """As the predictor answers for the clipped prompt; the record is of the prompt as it was asked."""
    asked = [{"box": [-0.5, 4, 80.01, 48.9]}, {"point_coords": [[20, -0.25], [80.5, 40]], "point_labels": [1, 0]}]
    clipped = [{"box": [0, 4, 80, 48]}, {"point_coords": [[20, 0], [80, 40]], "point_labels": [1, 0]}]
    out = segment(prompts={"a.png": asked})
    predictor = SamPredictor(load_sam(checkpoint))
    predictor.set_image(read_image(photos / "a.png"))
    for record, prompt, inside in zip(json.loads((out / "a_masks.json").read_text()), asked, clipped, strict=True):
        masks, scores, _ = predictor.predict(**{key: np.array(value) for key, value in inside.items()})
        assert record["prompt"] == prompt
        assert (mask_utils.decode(record["segmentation"]) == masks[scores.argmax()]).mean() > 0.999
    segment(prompts={"a.png": asked})
    assert "1 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_as_editors_save_them(tmp_path, encoding):
    (tmp_path / "prompts.json").write_text(json.dumps({"café.png": BOXES}, ensure_ascii=False), encoding=encoding)
    assert load_prompts(tmp_path / "prompts.json", tmp_path).keys() == {"café.png"}


def test_names_with_backslashes_are_those_of_subfolders(segment, photos):
    prompts = {"a.png": BOXES, "sub\\c.png": BOXES}
    out = segment(prompts=prompts)
    assert json.loads((out / "sub" / "c_masks.json").read_text())[0]["file_name"] == "sub/c.png"
    (photos / "sub" / "c.png").rename(photos / "sub\\c.png")  # as files may be called where / alone separates
    assert (segment(prompts=prompts, out="other") / "sub\\c_masks.json").is_file()


def test_names_of_any_bytes(segment, photos, capsys):
    """Names that are not UTF-8 are photographs like others; those that no file can have are named and nothing else."""
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "a.png").rename(photos / name)
    impossible = ["\ud800.png", "nul\0.png", "x" * 300 + ".png"]
    with pytest.raises(SystemExit) as end:
        segment("--pictures", prompts={name: BOXES, **dict.fromkeys(impossible, BOXES)})
    captured = capsys.readouterr()
    assert end.value.code == 1 and "1 of 4 photographs segmented" in captured.out
    assert len(captured.err.splitlines()) == 4
    out = photos.parent / "out"
    records = json.loads((out / os.fsdecode(b"caf\xe9_masks.json")).read_text())
    assert records[0]["file_name"] == name and (out / os.fsdecode(b"caf\xe9_mask_2.png")).is_file()


BAD = {
    "no JSON": "{",
    "a list": [],
    "empty": {},
    "no prompts": {"a.png": []},
    "no list": {"a.png": {"box": [0, 0, 9, 9]}},
    "unknown key": {"a.png": [{"bbox": [0, 0, 9, 9]}]},
    "empty prompt": {"a.png": [{}]},
    "three numbers": {"a.png": [{"box": [0, 0, 9]}]},
    "text": {"a.png": [{"box": ["a", 0, 9, 9]}]},
    "no area": {"a.png": [{"box": [9, 9, 9, 9]}]},
    "no labels": {"a.png": [{"point_coords": [[1, 2]]}]},
    "no points": {"a.png": [{"point_labels": [1]}]},
    "label 2": {"a.png": [{"point_coords": [[1, 2]], "point_labels": [2]}]},
    "outside the folder": {"../a.png": BOXES},
    "absolute": {"/a.png": BOXES},
    "one name": {"a.png": BOXES, "a.jpg": BOXES},
    "a folder": {".": BOXES},
    "outside with backslashes": {"sub\\..\\..\\a.png": BOXES},
    "absolute with backslashes": {"\\a.png": BOXES},
    "twice": {"sub/a.png": BOXES, "sub\\a.png": BOXES},
    "one form is no prompt": {"a.png": [*BOXES, {"bbox": [0, 0, 9, 9]}]},
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_prompts_are_one_line(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        load_prompts(path, tmp_path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("options,text", [
    (["--workers", 0], "--workers"), (["--box", "1,1,9,9"], "one photograph"), (["--out", __file__], "cannot write"),
])  # fmt: skip
def test_bad_options_are_one_line(segment, capsys, options, text):
    with pytest.raises(SystemExit) as end:
        segment(*options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and text in error


def test_a_folder_needs_prompts_and_prompts_a_folder(photos, capsys):
    for arguments in ([photos], [photos / "a.png", "--prompts", "prompts.json"]):
        with pytest.raises(SystemExit) as end:
            main(["segment", *map(str, arguments)])
        assert end.value.code == 2 and "--prompts" in capsys.readouterr().err


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_run_leaves_whole_files_and_goes_on(segment, photos, checkpoint, tmp_path, number, code, capsys):
    prompts = {f"{index}.jpg": BOXES for index in range(80)}
    for name in prompts:
        Image.fromarray(picture(240, 320)).save(photos / name)
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    out = tmp_path / "out"
    command = ["segment", photos, "--prompts", tmp_path / "prompts.json", "--checkpoint", checkpoint, "--device", "cpu"]
    root = str(Path(__file__).resolve().parents[1])
    run = subprocess.Popen(
        [sys.executable, "-m", "sam_bigltl.cli", *map(str, command), "--out", str(out), "--pictures"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while run.poll() is None and not list(out.glob("*_masks.json")):
        time.sleep(0.01)
    run.send_signal(number)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == code and "Traceback" not in error
    first = {path: path.stat().st_mtime_ns for path in out.glob("*_masks.json")}
    assert 0 < len(first) < 80 and all(len(json.loads(path.read_text())) == 2 for path in first)
    segment("--pictures", prompts=prompts)
    assert f"{len(first)} were there already" in capsys.readouterr().out
    assert len(list(out.glob("*_masks.json"))) == 80 and len(list(out.glob("*_mask_2.png"))) == 80
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
