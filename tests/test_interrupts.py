"""Signals and bad input in a run: one is enough, also while it waits for photographs, and nothing done is lost."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import make_folder
from tiny_cli import TINY

from sam_bigltl.data.interrupts import interrupt_flag, waiting
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.training.loop import TrainConfig, Trainer, make_batches

ROOT, TESTS = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
CONFIG = TrainConfig(
    steps=8, batch_size=2, prompts=2, crop=64, lr=2e-3, warmup=3, workers=0, log_every=4, save_every=100, ema=0.9
)
# A batch that never comes, as where processes cannot hand over what they have read.
STUCK = """
import time
import tiny_cli
from sam_bigltl.cli import main
from sam_bigltl.training.data import MaskBatches

make = MaskBatches.__getitem__
MaskBatches.__getitem__ = lambda self, step: time.sleep(1000) if step >= 3 else make(self, step)
tiny_cli.register()
main()
"""

STUCK_TOP1 = """
import sys, time
from sam_bigltl.evaluation.imagenet import main
from sam_bigltl.training.labelled import LabelledImages

read = LabelledImages.__getitem__
LabelledImages.__getitem__ = lambda self, index: time.sleep(1000) if index >= 4 else read(self, index)
main()
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(shapes: Path, output: Path, config: TrainConfig = CONFIG, **more: Any) -> Trainer:
    torch.manual_seed(0)
    sam = build_sam(TINY["vit_tiny"])
    return Trainer(sam, make_batches([shapes], shapes.parent / "images", sam, config), config, output, **more)


def signal_at(run: Trainer, step: int, error: Exception | None = None) -> None:
    """While the batch of `step` (from 0) is made, SIGTERM comes, or `error` is raised."""
    make = type(run.batches).__getitem__

    class Signalling(type(run.batches)):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index == step and error is not None:
                raise error
            if index == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return make(self, index)

    run.batches.__class__ = Signalling


# ---------------------------------------------------------------- the flag
@pytest.mark.parametrize(("alone", "inside", "ends"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_signal_ends_what_waits_and_alone(alone: bool, inside: bool, ends: bool):
    before = signal.getsignal(signal.SIGINT)
    with interrupt_flag(alone) as interrupted:
        ended = False
        try:
            if not inside:
                os.kill(os.getpid(), signal.SIGINT)
            with waiting() if inside else nullcontext():
                if inside:
                    os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            ended = True
        assert interrupted() and ended == ends
        with pytest.raises(KeyboardInterrupt):  # the second one
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_came_in_a_step_ends_the_wait_after_it():
    with interrupt_flag():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), waiting():
            raise AssertionError("it waits")


def test_waits_in_waits():
    with interrupt_flag(), pytest.raises(KeyboardInterrupt), waiting():
        with waiting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the inner one ended the outer one")


# ---------------------------------------------------------------- runs
def weights(run: Trainer) -> list[torch.Tensor]:
    return list(run.sam.state_dict().values())


@pytest.mark.parametrize(
    ("error", "raised"),
    [(None, KeyboardInterrupt), (InputError("5.png is empty"), InputError)],
    ids=["signal", "bad input"],
)
def test_between_two_steps_the_run_ends_at_once_and_goes_on_as_if_it_had_not(error, raised, shapes, tmp_path):
    whole = trainer(shapes, tmp_path / "whole")
    whole.run()
    first = trainer(shapes, tmp_path / "parts")
    signal_at(first, 5, error)
    with pytest.raises(raised):
        first.run()
    assert first.step == 5
    second = trainer(shapes, tmp_path / "parts")
    second.resume()
    assert second.step == 5
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))


def test_a_run_that_had_no_step_leaves_no_state(shapes, tmp_path):
    run = trainer(shapes, tmp_path / "run")
    signal_at(run, 0, InputError("0.png is empty"))
    with pytest.raises(InputError):
        run.run()
    assert not list((tmp_path / "run").iterdir())


def validating(seen: list[int], stop: Callable[[], None]) -> Callable[[Any], list[dict]]:
    def validate(_: Any) -> list[dict]:
        seen.append(len(seen))
        if len(seen) == 2:
            stop()
        return [{"figure": len(seen)}]

    return validate


def test_a_signal_ends_a_validation(shapes, tmp_path):
    config, seen = replace(CONFIG, val_every=2), []
    run = trainer(
        shapes, tmp_path / "run", config, validate=validating(seen, lambda: os.kill(os.getpid(), signal.SIGINT))
    )
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == 4 and len(seen) == 2
    again = trainer(shapes, tmp_path / "run", config, validate=validating([0, 0, 0], lambda: None))
    again.resume()
    assert again.step == 4
    again.run()
    with open(tmp_path / "run" / "val.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6", "8"]


def ended(script: Path, given: list[object], file: Path, number: int, group: bool) -> tuple[int, str]:
    """Exit code and stderr of a script that gets one signal when `file` is there, it alone or with its processes."""
    run = subprocess.Popen(
        [sys.executable, script, *map(str, given)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 150
        while not (file.exists() and file.read_text().count("\n") > 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(run.pid, number) if group else run.send_signal(number)
        return run.wait(timeout=150), run.communicate()[1]
    finally:
        run.kill()


@pytest.mark.parametrize(("count", "group"), [(0, False), (1, False), (4, True)])
def test_one_sigterm_ends_a_run_whose_photographs_never_come(count: int, group: bool, shapes, tmp_path):
    script, folder = tmp_path / "stuck.py", tmp_path / "run"
    script.write_text(STUCK)
    given = [
        "train", "--model", "vit_tiny", "--data", shapes, "--images", shapes.parent / "images", "--output", folder,
        "--steps", 40, "--batch-size", 2, "--prompts", 2, "--crop", 64, "--workers", count, "--device", "cpu",
        "--log-every", 3,
    ]  # fmt: skip
    code, errors = ended(script, given, folder / "log.csv", signal.SIGTERM, group)
    assert code == 130 and errors == "sam-bigltl train: interrupted\n", errors
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 3


def test_one_interrupt_ends_an_evaluation_whose_photographs_never_come(tmp_path):
    script, folder = tmp_path / "stuck.py", tmp_path / "run"
    script.write_text(STUCK_TOP1)
    given = [
        "--data-dir", make_folder(tmp_path / "photos", each=3), "--model", "bigltl_tiny_patch16_224", "--model-kwargs",
        "img_size=32", "patch_size=8", "depth=2", "embed_dim=32", "num_heads=2", "--batch-size", 2, "--workers", 1,
        "--device", "cpu", "--output", folder,
    ]  # fmt: skip
    code, errors = ended(script, given, folder / "journal.jsonl", signal.SIGINT, group=True)
    assert code == 130 and errors.splitlines()[-1] == "imagenet_top1.py: interrupted", errors
