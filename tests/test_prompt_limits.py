"""A prompt of very many points is refused before memory is taken for it; many prompts are decoded in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, tiny_sam

from sam_bigltl import InputError, SamPredictor
from sam_bigltl.evaluation.decoding import BatchDecoder, Prompt, PromptLoop
from sam_bigltl.predict.prompt_checks import MOST_POINTS, at_once
from sam_bigltl.predict.segment_folder import load_prompts


@pytest.fixture
def predictor() -> SamPredictor:
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(picture())
    return predictor


def points(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 40, (count, 2))


def test_the_limit_is_in_every_way_in(predictor: SamPredictor, tmp_path: Path) -> None:
    most, more = points(MOST_POINTS), points(MOST_POINTS + 1)
    assert predictor.predict(most, np.ones(MOST_POINTS))[0].shape == (3, *picture().shape[:2])
    with pytest.raises(InputError, match="a prompt of 1025 points is too large: give 1024 at most"):
        predictor.predict(more, np.ones(len(more)))
    with pytest.raises(InputError, match="1025 points"):
        predictor.predict_torch(torch.from_numpy(more)[None], torch.ones(1, len(more)))
    record = {"point_coords": more.tolist(), "point_labels": [1] * len(more)}
    (tmp_path / "prompts.json").write_text(json.dumps({"a.jpg": [record]}))
    with pytest.raises(InputError, match="a.jpg, prompt 1: a prompt of 1025 points"):
        load_prompts(tmp_path / "prompts.json")


def test_the_peak_of_a_prompt_of_20000_points(tmp_path: Path) -> None:
    """It took 14 GB; in a process of its own, whose peak is not that of other tests."""
    script = """
import resource
import numpy as np
from helpers import picture, tiny_sam
from sam_bigltl import InputError, SamPredictor
predictor = SamPredictor(tiny_sam())
predictor.set_image(picture())
predictor.predict(np.ones((1, 2)), np.ones(1))
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # a test that fails shall not take all memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    predictor.predict(np.ones((20000, 2)), np.ones(20000))
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=300
    )
    assert done.returncode == 0, done.stderr[-300:]
    said, peak = done.stdout.splitlines()
    assert said.startswith("a prompt of 20000 points") and int(peak) < 50


def test_points_of_all_prompts_together_count(predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [at_once(8, count) for count in (0, 1, 128, 300, 1024)] == [8, 8, 8, 3, 1]
    coords, labels = torch.rand(7, 300, 2) * 60, torch.ones(7, 300)
    expected = [predictor.predict_torch(coords[i : i + 1], labels[i : i + 1])[0] for i in range(7)]
    sizes, decode = [], predictor._decode
    monkeypatch.setattr(predictor, "_decode", lambda *args: sizes.append(len(args[0])) or decode(*args))
    assert torch.equal(predictor.predict_torch(coords, labels)[0], torch.cat(expected))
    assert sizes == [3, 3, 1]


def test_so_do_those_of_the_evaluation(predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(coords=points(300) + i / 7, labels=np.ones(300)) for i in range(4)]
    decoder = BatchDecoder(predictor, 8)
    sizes, batch = [], decoder._batch
    monkeypatch.setattr(decoder, "_batch", lambda some, select: sizes.append(len(some)) or batch(some, select))
    found, expected = decoder.run(prompts, "argmax"), PromptLoop(predictor).run(prompts, "argmax")
    assert sizes == [2, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.mask != theirs.mask).mean() < 1e-3
