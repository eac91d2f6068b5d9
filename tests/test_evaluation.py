"""The evaluation against slow, independent computations, and what it writes."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import segment_anything
import torch
from evaluation_toy import (
    AREAS,
    HEIGHT,
    ROOT,
    TARGETS,
    WIDTH,
    FakePredictor,
    arguments,
    compressed,
    expected_rows,
    main,
    rectangle,
    script,
    slow_click,
    slow_iou,
    toy,
)

from sam_bigltl import InputError, sam_model_registry, save_sam
from sam_bigltl.evaluation import Clicker, Plan, box_xyxy, evaluate, load_coco, mask_iou, summarize, summary_rows
from sam_bigltl.fast.precision import set_precision


# ---------------------------------------------------------------- metrics
def test_iou_is_that_of_sets() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.5, 1.0):
        a, b = rng.random((2, 9, 11)) < density
        assert mask_iou(a, b) == pytest.approx(slow_iou(a, b), abs=1e-12)
    with pytest.raises(ValueError, match="boolean"):
        mask_iou(a.astype(np.uint8), b)


def test_sizes_are_inclusive_at_both_ends() -> None:
    areas = [1, 1023.9, 1024, 1024.1, 9215, 9216, 9217]
    ious = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    summary = summarize(ious, areas)
    assert summary == pytest.approx({"all": 40, "small": 20, "medium": 45, "large": 65})
    assert summarize([0.5], [10]) == {"all": 50.0, "small": 50.0, "medium": None, "large": None}


# ---------------------------------------------------------------- prompts
def test_box_is_float_and_not_rounded() -> None:
    box = box_xyxy([1.5, 2.25, 10, 4.5])
    assert box.tolist() == [1.5, 2.25, 11.5, 6.75] and box.dtype.kind == "f"


def test_clicker_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    labels_seen = set()
    for trial in range(12):
        target = np.zeros((11, 13), dtype=bool)
        y, x = rng.integers(0, 5, 2)
        target[y : y + rng.integers(3, 7), x : x + rng.integers(3, 9)] = True
        target &= rng.random(target.shape) < 0.95
        clicker, clicked, labels, prediction = Clicker(target), [], [], np.zeros_like(target)
        for _ in range(4):
            x, y, label = slow_click(target, prediction, clicked)
            clicked.append((x, y))
            labels.append(label)
            coords, given = clicker.click(prediction)
            assert coords.tolist() == [list(map(float, point)) for point in clicked], trial
            assert given.tolist() == labels and coords.dtype == np.float32
            labels_seen.add(label)
            noise, shifted = rng.random(target.shape) < 0.5, np.roll(target, rng.integers(1, 4), 1)
            prediction = noise if rng.random() < 0.3 else shifted
    assert labels_seen == {0, 1}


def test_clicker_distances_are_exact() -> None:
    """On regions this large, OpenCV's 3 x 3 and 5 x 5 approximations choose other pixels."""
    rng = np.random.default_rng(3)
    differs = {3: 0, 5: 0}
    for _ in range(8):
        target = rng.random((60, 80)) < 0.999
        padded = np.pad(target, 1)
        grid = np.argwhere(np.ones_like(padded))
        outside = np.argwhere(~padded)
        squared = ((grid[:, None] - outside) ** 2).sum(-1).min(1)
        y, x = grid[squared.argmax()] - 1
        assert Clicker(target).click(np.zeros_like(target))[0].tolist() == [[x, y]]
        for size in differs:
            approximation = cv2.distanceTransform(padded.astype(np.uint8), cv2.DIST_L2, size)
            differs[size] += int(approximation.argmax() != squared.argmax())
    assert all(differs.values())  # else this test shows nothing


def test_clicker_borders_ties_and_repeats() -> None:
    full = np.ones((5, 7), dtype=bool)
    clicker = Clicker(full)
    assert clicker.click(~full)[0].tolist() == [[2, 2]]  # the image's border counts as a border; first of the equals
    coords, labels = clicker.click(~full)  # the same error again: the clicked pixel is out
    assert coords.tolist() == [[2, 2], [3, 2]] and labels.tolist() == [1, 1]

    target, prediction = np.zeros((2, 5, 9), dtype=bool)
    target[1:4, 0:3], prediction[1:4, 5:8] = True, True
    assert Clicker(target).click(prediction)[1].tolist() == [0]  # equally large errors: the false positive
    assert [part.tolist() for part in Clicker(target).click(target)] == [[[0.0, 0.0]], [0]]  # no error left


# ---------------------------------------------------------------- data
def test_loader_decodes_groups_and_orders(data: SimpleNamespace) -> None:
    images = load_coco(data.json)
    assert [(image.id, [a.id for a in image.annotations]) for image in images] == [(4, [2, 4]), (30, [1, 3, 7])]
    for image in images:
        for annotation in image.annotations:
            mask = annotation.mask()
            assert mask.dtype == bool and np.array_equal(mask, TARGETS[annotation.id]), annotation.id
            assert annotation.area == AREAS[annotation.id]


def test_compressed_counts_are_checked_and_read_right(data: SimpleNamespace) -> None:
    rng = np.random.default_rng(2)
    content = toy()
    masks = [rng.random((HEIGHT, WIDTH)) < density for density in (0.01, 0.2, 0.9)] + [rectangle(0, 0, WIDTH, HEIGHT)]
    template = content["annotations"][0]
    content["annotations"] = [
        {**template, "id": i, "image_id": 4, "segmentation": compressed(mask)} for i, mask in enumerate(masks)
    ]
    loaded = load_coco(data.write(content))[0].annotations
    assert all(np.array_equal(annotation.mask(), mask) for annotation, mask in zip(loaded, masks, strict=True))


# ---------------------------------------------------------------- the loop
def test_protocol_a_against_slow_computation(data: SimpleNamespace) -> None:
    ratios, clicks = (1.0, "auto"), (1, 3)
    expected = expected_rows(ratios, clicks)
    predictor, plan = FakePredictor(), Plan(keep_ratios=ratios, prompts=("box", "point"), clicks=clicks)
    records = evaluate(predictor, load_coco(data.json), data.images, plan)
    results = [result for record in records for result in record.results]
    summary = summary_rows(records, plan)

    assert len(results) == len(expected) == 2 * 5 * 3
    for row in results:
        iou, score = expected[row.keep_ratio, row.prompt, row.clicks, row.annotation_id]
        assert (row.iou, row.predicted_iou) == pytest.approx((iou, score), abs=1e-9), row
        assert row.area == AREAS[row.annotation_id]
    encodings = [call[1:] for call in predictor.calls if call[0] == "set_image"]
    assert encodings == [(4, 1.0), (4, "auto"), (30, 1.0), (30, "auto")]
    assert len(predictor.calls) - len(encodings) == 2 * 5 * (1 + 3)

    assert [(row["keep_ratio"], row["prompt"], row["clicks"]) for row in summary] == [
        (ratio, *setting) for ratio in ratios for setting in (("box", 0), ("point", 1), ("point", 3))
    ]
    splits = {"all": [1, 2, 3, 4, 7], "small": [1, 3], "medium": [1, 2, 7], "large": [2, 4]}
    for row in summary:
        for name, numbers in splits.items():
            values = [expected[row["keep_ratio"], row["prompt"], row["clicks"], number][0] for number in numbers]
            assert row[name] == pytest.approx(100 * math.fsum(values) / len(values), abs=1e-9)
        assert (row["instances"], row["images"]) == (5, 2) and row["seconds"] >= 0


def test_dense_encoder_takes_only_ratio_one(data: SimpleNamespace) -> None:
    predictor = FakePredictor()
    predictor.model.image_encoder = SimpleNamespace()  # like segment_anything's: neither is_dense nor keep_ratio
    predictor.encoder.keep_ratio = 1.0
    records = evaluate(predictor, load_coco(data.json), data.images, Plan())
    assert summary_rows(records, Plan())[0]["instances"] == 5
    with pytest.raises(InputError, match="dense"):
        evaluate(predictor, load_coco(data.json), data.images, Plan(keep_ratios=(1.0, 0.5)))


# ---------------------------------------------------------------- the command line
def test_sources_have_a_table_of_their_own(
    data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    content = toy()
    for image in content["images"]:
        image["source"] = "street" if image["id"] == 30 else "forest"
    data.write(content)
    main(arguments(data, "--sources", "street"))
    report = json.loads((data.out / "results.json").read_text())
    (row,), (whole,) = report["sources"]["summary"], report["summary"]
    mine = [each for each in results_of(data) if each["image_id"] == "30"]
    assert (row["instances"], row["images"], whole["instances"]) == (3, 1, 5) and len(mine) == 3
    assert row["all"] == pytest.approx(100 * sum(float(each["iou"]) for each in mine) / 3)
    assert "of these, from street:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(arguments(data, "--sources", "sea", "--restart"))
    assert "--sources sea: no image" in capsys.readouterr().err


def results_of(data: SimpleNamespace) -> list[dict[str, str]]:
    with open(data.out / "instances.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_written_files(data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    main(arguments(data, "--keep-ratio", "1", "auto", "--prompts", "point", "box", "--clicks", "3", "1"))
    report = json.loads((data.out / "results.json").read_text())
    keys = "keep_ratio prompt clicks all small medium large instances images seconds encoder_ms"
    assert [list(row) for row in report["summary"]] == [keys.split()] * 6
    settings = report["settings"]
    assert settings["model"] == "none.safetensors" and settings["torch"] == torch.__version__
    assert (settings["keep_ratio"], settings["clicks"], settings["protocol"]) == ([1.0, "auto"], [1, 3], "A")
    assert {"device", "device_name", "dtype", "threads", "annotations", "limit", "seed", "processes"} <= set(settings)
    assert settings["ingredients"] == {
        "mask_select": "argmax", "box": "json", "click_policy": "ritm", "crowds": True, "min_area": 1.0, "refine": [0],
        "mask_feedback": False, "resampled_target": False, "skip_empty": False,
    }  # fmt: skip

    with (data.out / "instances.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == "image_id annotation_id area keep_ratio prompt clicks iou predicted_iou".split()
    expected = expected_rows([1.0, "auto"], [1, 3])
    assert len(rows) == len(expected) == 30
    for row in rows:
        ratio = row["keep_ratio"] if row["keep_ratio"] == "auto" else float(row["keep_ratio"])
        iou, _ = expected[ratio, row["prompt"], int(row["clicks"]), int(row["annotation_id"])]
        assert float(row["iou"]) == pytest.approx(iou, abs=1e-9)
    *table, pace, skipped = capsys.readouterr().out.splitlines()
    assert skipped == "annotations: 5 used, 1 left out (1 with area < 1)"
    assert pace.startswith("30 masks of 2 images in ") and pace.endswith(" a second")
    assert (report["this_run"]["masks"], report["this_run"]["images"]) == (30, 2)
    assert table[0].split() == keys.split() and len(table) == 7 and len(set(map(len, table))) == 1


def test_script_on_an_untrained_model(data: SimpleNamespace) -> None:
    torch.manual_seed(0)
    checkpoint = data.out.parent / "bigltl_mini.safetensors"
    save_sam(sam_model_registry["bigltl_mini"](), checkpoint)
    flags = arguments(data, "--checkpoint", str(checkpoint), "--device", "cpu")
    done = script(*flags, "--keep-ratio", "1", "auto", "--prompts", "box", "point", "--clicks", "1", "2")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    summary = json.loads((data.out / "results.json").read_text())["summary"]
    assert len(summary) == 6 and all(row["instances"] == 5 and 0 <= row["all"] <= 100 for row in summary)
    throughput = [str(ROOT / "eval/throughput.py"), "--annotations", str(data.json), "--images", str(data.images)]
    throughput += ["--checkpoint", str(checkpoint), "--clicks", "1", "--keep-ratio", "0.5"]
    done = subprocess.run([sys.executable, *throughput], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images, 10 prompts; identical masks: 10\n") and "ratio: " in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_model_against_segment_anything(data: SimpleNamespace, dtype: str) -> None:
    """The rows of a real model are what `segment_anything`'s own predictor gives, call by call."""
    torch.manual_seed(0)
    sam, checkpoint = sam_model_registry["vit_mini"](), data.out.parent / "vit_mini.safetensors"
    save_sam(sam, checkpoint)
    main(arguments(data, "--checkpoint", str(checkpoint), "--device", "cpu", "--dtype", dtype))
    with (data.out / "instances.csv").open(newline="") as stream:
        rows = {int(row["annotation_id"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 5

    set_precision(sam.image_encoder, dtype)
    predictor = segment_anything.SamPredictor(sam)
    for annotation in toy()["annotations"]:
        if annotation["id"] not in TARGETS:
            continue
        predictor.set_image(np.full((HEIGHT, WIDTH, 3), annotation["image_id"], dtype=np.uint8))
        x, y, width, height = annotation["bbox"]
        masks, scores, _ = predictor.predict(box=np.array([x, y, x + width, y + height]), multimask_output=True)
        expected = slow_iou(masks[scores.argmax()], TARGETS[annotation["id"]])
        row = rows[annotation["id"]]
        assert float(row["predicted_iou"]) == pytest.approx(float(scores.max()), abs=1e-5)
        assert float(row["iou"]) == pytest.approx(expected, abs=5e-3)


def test_dense_checkpoint_refuses_other_ratios(data: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    checkpoint = data.out.parent / "vit_mini.safetensors"
    save_sam(sam_model_registry["vit_mini"](), checkpoint)
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, "--checkpoint", str(checkpoint), "--keep-ratio", "0.5"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "encoder is dense" in error
