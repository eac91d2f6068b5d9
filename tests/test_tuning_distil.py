"""Distillation for some minutes: what it wins, what it leaves alone, when it ends, and that it goes on exactly."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from segment_anything.modeling import Sam
from training_toy import encode, shape_mask

import sam_bigltl.tuning.distil as tuning
from sam_bigltl.convert import convert_sam
from sam_bigltl.convert.sam import LITTLE_PATH
from sam_bigltl.convert.warm_start import warm_start
from sam_bigltl.data.photos import preprocess
from sam_bigltl.errors import InputError
from sam_bigltl.training.timed import TimedDistiller
from sam_bigltl.tuning.distil import Distilled, distil

SIDE = 96
RATIOS = (1.0, 0.5, 0.25, "auto")


class Clock:
    """Seconds that go by with the work alone: `step` for a step, `check` for a check, whatever the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.step, self.check, self.steps = 0.0, 1.0, 0.5, 0
        self.interrupts: set[int] = set()  # steps at which a signal comes, counted over all runs
        train, check = TimedDistiller._train_step, TimedDistiller._figures

        def step(*given):
            self.now, self.steps = self.now + self.step, self.steps + 1
            if self.steps in self.interrupts:
                signal.raise_signal(signal.SIGTERM)
            return train(*given)

        def checked(*given):
            self.now += self.check
            return check(*given)

        monkeypatch.setattr(TimedDistiller, "_train_step", step)
        monkeypatch.setattr(TimedDistiller, "_figures", checked)

    def __call__(self) -> float:
        return self.now


def photograph(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    pixels = picture(72, 120, seed).copy()
    mask = shape_mask("disc", 72, 120, 40 + 4 * seed, 30, 14)
    pixels[mask] = (220, 30, 90)
    return pixels, [encode(mask)]


@pytest.fixture(scope="module")
def start() -> SimpleNamespace:
    """A tiny dense model, what it was converted to and fitted, and ten photographs."""
    teacher = dense_sam(dense_config(img_size=SIDE))
    with torch.no_grad():
        for block in teacher.image_encoder.blocks:  # a trained block changes its input, rather than replacing it
            block.attn.proj.weight.mul_(0.4)
            block.mlp.lin2.weight.mul_(0.4)
    torch.manual_seed(1)
    student = convert_sam(teacher, 12)
    photographs = [photograph(seed) for seed in range(10)]
    warm_start(student, [preprocess(student, pixels) for pixels, _ in photographs], progress=False)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    return SimpleNamespace(teacher=teacher, student=student, state=state, photographs=photographs)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(tuning, "_precision", lambda device: "float32")  # the same on every processor
    monkeypatch.setitem(tuning.RECIPE, "batch_size", 2)
    monkeypatch.setitem(tuning.RECIPE, "prompts", 2)
    monkeypatch.setitem(tuning.RECIPE, "lr", 1e-3)  # in few steps, of weights that are far from trained ones
    return Clock(monkeypatch)


@pytest.fixture
def run(start, clock, tmp_path) -> Callable[..., Distilled]:
    """`distil` from the fitted model, for so many seconds of `clock`."""

    def distilled(seconds: float = 6, **options) -> Distilled:
        start.student.load_state_dict(start.state)
        given = dict(photographs=start.photographs, keep_ratios=RATIOS, folder=tmp_path, progress=False, clock=clock)
        return distil(start.student, start.teacher, minutes=seconds / 60, **(given | options))

    return distilled


@torch.no_grad()
def embed(sam: Sam, pixels: np.ndarray, keep_ratio: float) -> torch.Tensor:
    sam.image_encoder.keep_ratio = keep_ratio
    embedding = sam.image_encoder(preprocess(sam, pixels))
    sam.image_encoder.keep_ratio = 1.0
    return embedding


def error(start, keep_ratio: float, seeds: range) -> float:
    """Relative squared error over the whole frame, mean over photographs."""
    errors = []
    for seed in seeds:
        pixels = photograph(seed)[0]
        wanted = embed(start.teacher, pixels, 1.0)
        ours, theirs = embed(start.student, pixels, keep_ratio), wanted
        errors.append(float((ours - theirs).square().sum() / theirs.square().sum()))
    return float(np.mean(errors))


def test_it_improves_photographs_that_it_never_saw(run, start):
    before = {ratio: error(start, ratio, range(20, 26)) for ratio in (0.5, 0.25)}
    done = run(40)
    after = {ratio: error(start, ratio, range(20, 26)) for ratio in (0.5, 0.25)}
    assert after[0.5] < before[0.5] and after[0.25] < 0.95 * before[0.25], (before, after)
    assert set(done.before) == {0.5, 0.25} and done.after[0.25] < done.before[0.25]
    assert (done.trained, done.held_out, len(done.steps)) == (8, 2, 2) and min(done.steps) > 3


def test_at_full_keep_ratio_nothing_changes_to_the_bit(run, start):
    run()
    for name, value in start.teacher.state_dict().items():
        assert torch.equal(start.student.state_dict()[name], value), name
    pixels = photograph(30)[0]
    assert torch.equal(embed(start.student, pixels, 1.0), embed(start.teacher, pixels, 1.0))
    changed = [name for name, value in start.student.state_dict().items() if not torch.equal(value, start.state[name])]
    assert any("transitions" in name for name in changed) and all(LITTLE_PATH.match(name[14:]) for name in changed)
    assert not start.student.training and start.student.image_encoder.keep_ratio == 1.0


def test_it_stops_early_where_nothing_can_improve(start, clock, tmp_path):
    """A model without any loss: a little path that adds nothing, and blocks that add nothing either."""
    teacher = dense_sam(dense_config(img_size=SIDE))
    with torch.no_grad():
        for block in teacher.image_encoder.blocks:
            for layer in (block.attn.proj, block.mlp.lin2):
                layer.weight.zero_()
                layer.bias.zero_()
    student = convert_sam(teacher, 12)
    with torch.no_grad():
        for name, value in student.image_encoder.named_parameters():
            if (name.startswith("transitions.") and ".up." in name) or ".gamma" in name:
                value.zero_()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    done = distil(student, teacher, start.photographs, 40 / 60, RATIOS, tmp_path, progress=False, clock=clock)
    assert done.stopped_early and done.seconds < 30
    assert all(
        torch.equal(value, before[name]) for name, value in student.state_dict().items()
    )  # the best was the start


@pytest.mark.parametrize(("seconds", "step", "check"), [(12, 1.0, 0.5), (10, 20.0, 3.0)])
def test_the_time_that_is_given_is_kept(run, clock, seconds, step, check):
    """Within a step of each stage; the rate ends low however fast the machine is."""
    clock.step, clock.check = step, check
    done = run(seconds)
    assert done.seconds == clock.now <= seconds + 2 * (step + check)
    assert done.stopped_early or done.seconds > seconds - 2 * (step + check)


def test_the_rate_falls_with_the_clock(run, start, clock, tmp_path):
    for step in (1.0, 3.0):
        clock.step = step
        run(12, folder=tmp_path / f"{step}", photographs=[(pixels, []) for pixels, _ in start.photographs])
        with open(tmp_path / f"{step}" / "stage1" / "log.csv") as file:
            rates = [float(row["lr"]) for row in csv.DictReader(file)]
        assert rates[-1] < 0.1 * max(rates)


def test_a_run_that_is_interrupted_goes_on_exactly(run, start, clock, tmp_path):
    done = run(10, folder=tmp_path / "whole")
    whole = {name: value.clone() for name, value in start.student.state_dict().items()}
    steps = sum(done.steps)
    clock.interrupts = {steps + at for at in (2, 5, steps - 1)}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(10, folder=tmp_path / "parts")
    again = run(10, folder=tmp_path / "parts")
    assert clock.steps == 2 * steps  # none was lost
    assert again == done
    assert all(torch.equal(value, whole[name]) for name, value in start.student.state_dict().items())
    assert run(10, folder=tmp_path / "parts") == done and clock.steps == 2 * steps  # nothing is left to do
    assert all(torch.equal(value, whole[name]) for name, value in start.student.state_dict().items())


def test_without_objects_only_embeddings_are_taught(run, start, tmp_path):
    done = run(6, photographs=[(pixels, []) for pixels, _ in start.photographs])
    assert len(done.steps) == 1 and not (tmp_path / "stage2").exists()
    masks = [(pixels, own if number < 4 else []) for number, (pixels, own) in enumerate(start.photographs)]
    assert len(run(6, photographs=masks, folder=tmp_path / "held out without").steps) == 1


def test_bad_input_is_one_line(run, start):
    for options, words in (
        (dict(keep_ratios=(1.0, "auto")), "no keep_ratio|there is none"),
        (dict(seconds=0), "0 minutes are no time"),
        (dict(seconds=float("nan")), "nan minutes"),
        (dict(photographs=start.photographs[:1]), "1 photographs are too few"),
        (dict(photographs=[]), "0 photographs are too few"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            run(**options)
        assert "\n" not in str(caught.value)


def test_a_folder_of_other_photographs_is_refused(run, start, tmp_path):
    run(6)
    with pytest.raises(InputError, match="another --output|start"):
        run(6, photographs=start.photographs[1:])
