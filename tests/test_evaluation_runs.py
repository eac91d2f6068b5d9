"""Long evaluations: killed and continued, shared by two processes, in batches, with a stranger's model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import segment_anything
import torch
from evaluation_toy import IMAGES, ROOT, arguments, main, results
from helpers import picture, tiny_sam

from sam_bigltl import InputError, SamPredictor
from sam_bigltl.evaluation.decoding import BatchDecoder, Prompt, PromptLoop, decoder_for
from sam_bigltl.evaluation.journal import ImageRecord, Journal
from sam_bigltl.evaluation.results import InstanceResult


def settings(many: SimpleNamespace, out: str) -> list[str]:
    given = ["--annotations", many.json, "--images", many.images, "--model", "slow_model.py:make", "--output", out]
    return list(map(str, given))


def command(many: SimpleNamespace, out: str, *launcher: str, slow: float = 0.0) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLOW": str(slow)}
    start = [sys.executable, *launcher, str(ROOT / "eval" / "coco_miou.py")]
    return subprocess.Popen(
        [*start, *settings(many, out)], cwd=many.out.parent, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def test_killed_continued_and_shared_runs_give_the_same(
    many: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.chdir(many.out.parent)
    main(settings(many, "whole"))
    log = many.out.parent / "images.log"
    assert log.read_text().split() == [str(i) for i in range(IMAGES)]
    log.unlink()

    killed = command(many, "cut", slow=1.0)
    journal = many.out.parent / "cut" / "journal-0.jsonl"
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.read_text().count("\n") >= 3):  # the settings and two images
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    recorded = journal.read_text().count("\n") - 1
    assert 2 <= recorded < IMAGES
    with open(journal, "a") as file:
        file.write('{"image_id": 5, "enco')  # as if killed in the middle of a line
    finished(command(many, "cut"))
    seen = [int(line) for line in log.read_text().split()]
    assert set(seen) == set(range(IMAGES))
    assert all(seen.count(i) == 1 for i in range(recorded)), "a finished image was repeated"
    assert len(seen) <= IMAGES + 1  # only the image under way may come twice

    main(settings(many, "cut"))  # everything is on record
    assert len(log.read_text().split()) == len(seen)

    finished(command(many, "shared", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    files = sorted(path.name for path in (many.out.parent / "shared").glob("journal-*.jsonl"))
    assert files == ["journal-0.jsonl", "journal-1.jsonl"]
    assert results(many, "whole") == results(many, "cut") == results(many, "shared")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "slow_model"], "is not module:callable"),
        (["--model", "no_such_module:make"], "cannot import no_such_module"),
        (["--model", "no_such_file.py:make"], "cannot import no_such_file.py"),
        (["--model", "slow_model.py:absent"], "slow_model.py has no absent"),
        (["--model", "slow_model.py:broken"], "failed: RuntimeError: no weights"),
        (["--model", "slow_model.py:nothing"], "without set_image, predict"),
        (["--model", "slow_model.py:make", "--keep-ratio", "0.5"], "encoder is dense"),
        (["--model", "slow_model.py:make", "--dtype", "bfloat16"], "--dtype and --native are for --checkpoint only"),
        (["--prompts", "detector"], "belong together"),
        (["--refine", "-1"], "--refine -1 is not a whole number"),
        (["--min-area", "x"], "--min-area x is not a number"),
        (["--compare", "a.json", "b.json"], "a.json"),
    ],
)
def test_bad_flags_are_one_line(
    many: SimpleNamespace,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(many.out.parent)
    start = ["--annotations", str(many.json), "--images", str(many.images), "--output", str(many.out)]
    needs_model = [] if "--model" in flags else ["--checkpoint", "none.safetensors"]
    with pytest.raises(SystemExit) as stop:
        main([*start, *needs_model, *flags])
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.err.count("\n") == 1 and message in output.err, output.err


def test_other_settings_need_another_folder(
    data: SimpleNamespace,
    stub_model: SimpleNamespace,
    capsys: pytest.CaptureFixture,
) -> None:
    main(arguments(data))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, "--keep-ratio", "0.5"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "other settings (keep_ratio)" in error and "--restart" in error
    main(arguments(data, "--keep-ratio", "0.5", "--restart"))
    assert json.loads((data.out / "results.json").read_text())["summary"][0]["keep_ratio"] == 0.5


def record(image: int) -> ImageRecord:
    result = InstanceResult(image, 3, 10.5, "auto", "point", 2, 1 / 3, 0.25, "abc")
    return ImageRecord(image, [0.5], {"auto/point/2": 0.125}, [result], [(0.5, 0, 0.75, "xyz")])


def test_journal_returns_what_was_written(tmp_path: Path) -> None:
    settings = {"keep_ratio": (1.0, "auto")}
    Journal(tmp_path, settings, 0).append(record(1))
    Journal(tmp_path, settings, 1).append(record(2))
    assert Journal(tmp_path, settings, 0).records() == {1: record(1), 2: record(2)}
    with pytest.raises(InputError, match=r"other settings \(keep_ratio, seed\)"):
        Journal(tmp_path, {"keep_ratio": [1.0], "seed": 3})
    (tmp_path / "journal-1.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="journal-1.jsonl is damaged in line 1"):
        Journal(tmp_path, settings).records()


@pytest.mark.parametrize("mask_select", ["argmax", "first", "oracle"])
def test_batches_give_the_masks_of_single_calls(mask_select: str) -> None:
    sam = tiny_sam()
    rng = np.random.default_rng(0)
    for predictor in (SamPredictor(sam), segment_anything.SamPredictor(sam)):
        predictor.set_image(picture())
        height, width = picture().shape[:2]
        prompts = []
        for index in range(7):
            x0, y0 = rng.uniform(0, width / 2), rng.uniform(0, height / 2)
            box = np.array([x0, y0, x0 + rng.uniform(5, width / 2), y0 + rng.uniform(5, height / 2)])
            points = rng.uniform(0, 30, (1 + index % 3, 2)).astype(np.float32)
            labels = np.arange(len(points)) % 2
            target = rng.random((height, width)) < 0.5
            kinds = [(box, None, None), (None, points, labels), (box, points, labels)]
            prompts.append(Prompt(*kinds[index % 3], target=target))
        for number in range(3):  # one batch of two and one of one
            logits = rng.normal(size=sam.prompt_encoder.mask_input_size).astype(np.float32)
            prompts.insert(2 * number, Prompt(box + number, logits=logits, target=target))
        decoder = decoder_for(predictor, 2)
        assert isinstance(decoder, BatchDecoder)
        pairs = zip(decoder.run(prompts, mask_select), PromptLoop(predictor).run(prompts, mask_select), strict=True)
        for found, expected in pairs:
            assert found.mask.shape == (height, width) and found.mask.dtype == bool
            assert found.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-4)
            np.testing.assert_allclose(found.logits, expected.logits, atol=2e-3)
            assert (found.mask != expected.mask).mean() < 1e-3
    assert isinstance(decoder_for(SimpleNamespace(model=torch.nn.Identity()), 4), PromptLoop)
