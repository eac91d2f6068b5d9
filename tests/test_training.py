"""The training loop: it learns, and a run that was interrupted ends as one that was not."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cli import TINY

from sam_bigltl.convert import convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.training.denormals import denormals_are_zero
from sam_bigltl.training.loop import Forward, TrainConfig, Trainer, make_batches
from sam_bigltl.training.optimizers import learning_rate

CONFIG = TrainConfig(
    steps=9, batch_size=2, prompts=2, crop=64, lr=2e-3, warmup=3, workers=0, log_every=4, save_every=100, ema=0.9
)
TIMES = ("seconds", "images_per_s")  # columns that differ from run to run


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(shapes: Path, output: Path, config: TrainConfig = CONFIG, key: str = "vit_tiny", **more) -> Trainer:
    torch.manual_seed(0)
    sam = build_sam(TINY[key])
    return Trainer(sam, make_batches([shapes], shapes.parent / "images", sam, config), config, output, **more)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: Trainer, other: Trainer) -> None:
    assert one.step == other.step
    for name, value in one.sam.state_dict().items():
        assert torch.equal(value, other.sam.state_dict()[name]), name
        assert torch.equal(one.averaged()[name], other.averaged()[name]), name
    assert rows(one.output / "log.csv") == rows(other.output / "log.csv")


def interrupt_at(target: Trainer, step: int, number: int = signal.SIGINT) -> None:
    """Raise a signal while step `step` (from 1) is under way."""
    forward = target.forward.forward

    def signalling(batch):
        if target.step + 1 == step:
            os.kill(os.getpid(), number)
        return forward(batch)

    target.forward.forward = signalling


# ---------------------------------------------------------------- learning
@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_zero_during_the_run_alone(before: bool, shapes, tmp_path):
    seen = []
    run = trainer(shapes, tmp_path, replace(CONFIG, steps=3))
    forward = run.forward.forward
    run.forward.forward = lambda batch: seen.append(denormals_are_zero()) or forward(batch)
    interrupt_at(run, 2)
    torch.set_flush_denormal(before)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert seen == [True, True] and denormals_are_zero() == before
        assert (float(np.float32(1e-40) * np.float32(1)) == 0) == before  # an independent look
    finally:
        torch.set_flush_denormal(False)


def test_the_loss_falls(shapes, tmp_path):
    config = replace(CONFIG, steps=120, lr=4e-3, warmup=5, log_every=20)
    run = trainer(shapes, tmp_path, config)
    run.run()
    log = rows(tmp_path / "log.csv")
    losses = [float(row["loss"]) for row in log]
    assert [int(row["step"]) for row in log] == [20, 40, 60, 80, 100, 120]
    assert [int(row["images"]) for row in log] == [40, 80, 120, 160, 200, 240]
    assert losses[-1] < 0.87 * losses[0], losses  # measured 0.80; 0.99 at a learning rate of 1e-9
    assert not run.sam.training and (tmp_path / "state.pt").is_file()


def test_learning_rate():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert np.allclose(rates[:10], np.arange(1, 11) * 0.2)
    assert rates[10] == 2.0 and rates[55] == pytest.approx(2 * 0.55) and 0.2 < rates[99] < 0.203
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_average_follows_the_weights(shapes, tmp_path):
    run = trainer(shapes, tmp_path, replace(CONFIG, steps=3))
    wanted = {name: value.clone() for name, value in run.sam.state_dict().items()}
    update = run._update_average

    def spy():
        decay = min(0.9, (1 + run.step) / (10 + run.step))
        for name, value in run.sam.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
        update()

    run._update_average = spy
    run.run()
    for name, value in run.averaged().items():
        assert torch.allclose(value.float(), wanted[name].float(), atol=1e-6), name
    plain = trainer(shapes, tmp_path / "plain", replace(CONFIG, steps=1, ema=0.0))
    plain.run()
    assert all(torch.equal(value, plain.sam.state_dict()[name]) for name, value in plain.averaged().items())


def test_a_frozen_decoder_stays_as_it_was(shapes, tmp_path):
    for train_decoder in (False, True):
        run = trainer(shapes, tmp_path / str(train_decoder), replace(CONFIG, steps=3, train_decoder=train_decoder))
        before = {name: value.clone() for name, value in run.sam.state_dict().items()}
        run.run()
        for state in (run.sam.state_dict(), run.averaged()):
            changed = {name.split(".")[0] for name, value in state.items() if not torch.equal(value, before[name])}
            frozen = {"image_encoder"} if not train_decoder else {"image_encoder", "prompt_encoder", "mask_decoder"}
            assert changed == frozen


def distilling(shapes: Path, output: Path, config: TrainConfig) -> Trainer:
    torch.manual_seed(1)
    teacher = build_sam(TINY["vit_tiny"])
    torch.manual_seed(2)
    sam = convert_sam(teacher)
    return Trainer(sam, make_batches([shapes], shapes.parent / "images", sam, config), config, output, teacher)


def test_distillation_draws_keep_ratios_and_leaves_the_teacher(shapes, tmp_path):
    config = replace(CONFIG, steps=10, log_every=1, keep_ratios=(1.0, 0.5, 0.25), distill_weight=1.0)
    run = distilling(shapes, tmp_path, config)
    teacher = run.forward.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run.run()
    log = rows(tmp_path / "log.csv")
    assert {float(row["keep_ratio"]) for row in log} == {1.0, 0.5, 0.25}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(float(row["cosine"]) > 0 and float(row["mse"]) > 0 for row in log[1:])
    parameters, moments = dict(run.sam.named_parameters()), run.optimizers[0].state
    for name in ("router", "little_blocks", "kv_little", "gamma", "transitions"):  # gradient reaches every new part
        assert any(name in key and p in moments and moments[p]["exp_avg"].any() for key, p in parameters.items()), name


def test_the_loss_is_masks_and_weighted_distillation(shapes, tmp_path):
    run = distilling(shapes, tmp_path, replace(CONFIG, steps=1, distill_weight=2.5, precision="float32"))
    run._train_mode()
    values = Forward(run.sam, run.forward.teacher)(run.batches[0])
    torch.manual_seed(2)
    fresh = distilling(shapes, tmp_path / "b", replace(CONFIG, steps=1, distill_weight=2.5, precision="float32"))
    fresh.run()
    wanted = values["loss"] + 2.5 * (values["cosine"] + values["mse"])
    assert float(rows(tmp_path / "b" / "log.csv")[0]["loss"]) == pytest.approx(wanted.item(), rel=1e-4)


# ---------------------------------------------------------------- interruption
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues_bit_for_bit(number: int, shapes, tmp_path):
    whole = trainer(shapes, tmp_path / "whole")
    whole.run()
    parts, handler = tmp_path / "parts", signal.getsignal(number)
    first = trainer(shapes, parts)
    interrupt_at(first, 6, number)  # two steps into a row of the log
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert first.step == 6
    assert signal.getsignal(number) is handler
    torch.manual_seed(99)
    second = trainer(shapes, parts, replace(CONFIG, workers=1, save_every=3))
    second.resume()
    assert second.step == 6
    second.run()
    assert_same_run(whole, second)


def test_a_little_model_resumes_bit_for_bit_from_a_saved_state(shapes, tmp_path):
    config = replace(CONFIG, keep_ratios=(1.0, 0.5), distill_weight=1.0, save_every=5)
    whole = distilling(shapes, tmp_path / "whole", config)
    whole.run()
    killed = distilling(shapes, tmp_path / "parts", config)
    killed._update_average = lambda update=killed._update_average: update() if killed.step < 8 else 1 / 0
    with pytest.raises(ZeroDivisionError):  # dies in step 9, three after the last state, one row of the log later
        killed.run()
    assert len(rows(tmp_path / "parts" / "log.csv")) == 2
    second = distilling(shapes, tmp_path / "parts", config)
    second.resume()
    assert second.step == 5
    second.run()
    assert_same_run(whole, second)


def test_a_validation_that_was_cut_off_is_made_up_for(shapes, tmp_path):
    config = replace(CONFIG, steps=6, val_every=3, save_every=3)

    def figures(weights):
        return [{"keep_ratio": 1.0, "all": float(weights["image_encoder.pos_embed"].double().sum())}]

    whole = trainer(shapes, tmp_path / "whole", config, validate=figures)
    whole.run()
    assert [row["step"] for row in rows(tmp_path / "whole" / "val.csv")] == ["3", "6"]
    for step in (3, 6):  # the signal comes in a step that ends with a validation
        parts = tmp_path / f"parts{step}"
        first = trainer(shapes, parts, config, validate=figures)
        interrupt_at(first, step)
        with pytest.raises(KeyboardInterrupt):
            first.run()
        second = trainer(shapes, parts, config, validate=figures)
        second.resume()
        second.run()
        assert rows(parts / "val.csv") == rows(tmp_path / "whole" / "val.csv")
        again = trainer(shapes, parts, config, validate=figures)  # nothing left to do
        again.resume()
        again.run()
        assert rows(parts / "val.csv") == rows(tmp_path / "whole" / "val.csv")
        assert_same_run(whole, again)


def test_a_new_run_drops_the_log_of_one_that_never_saved(shapes, tmp_path):
    first = trainer(shapes, tmp_path, replace(CONFIG, log_every=1))
    first.save = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        first.run()
    second = trainer(shapes, tmp_path)
    second.run()
    assert [int(row["step"]) for row in rows(tmp_path / "log.csv")] == [4, 8, 9]


def test_resuming_refuses_what_would_not_continue_the_run(shapes, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        trainer(shapes, tmp_path / "none").resume()
    trainer(shapes, tmp_path, replace(CONFIG, steps=1)).run()
    for change in ({"lr": 1e-4}, {"seed": 1}, {"keep_ratios": (0.5,)}, {"steps": 2}, {"crop": 32}, {"ema": 0.0}):
        with pytest.raises(InputError, match=next(iter(change))):
            trainer(shapes, tmp_path, replace(CONFIG, **({"steps": 1} | change))).resume()
    with pytest.raises(InputError, match="another --model"):
        trainer(shapes, tmp_path, replace(CONFIG, steps=1), "bigltl_tiny").resume()
    content = (tmp_path / "state.pt").read_bytes()
    for damaged, named in ((content[: len(content) // 2], "cut short"), (b"", "empty"), (b"text", "damaged")):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(InputError, match=named):
            trainer(shapes, tmp_path, replace(CONFIG, steps=1)).resume()


def test_a_state_is_saved_beside_planted_links_and_leftovers(shapes, tmp_path):
    run, output = trainer(shapes, tmp_path / "run"), tmp_path / "run"
    (tmp_path / "victim").write_text("theirs")
    for name in ("state.partial", "state.pt.part", "state.pt.tmp", "state.pt"):
        (output / name).symlink_to(tmp_path / "victim")
    (output / "partial-state-1").mkdir()
    (output / "partial-state-1" / "part").write_bytes(b"of a killed process")
    run.save()
    assert (tmp_path / "victim").read_text() == "theirs" and not (output / "state.pt").is_symlink()
    assert torch.load(output / "state.pt", weights_only=True)["step"] == 0 and not list(output.glob("partial-*"))
    (output / "state.pt").unlink()
    (output / "state.pt").mkdir()
    with pytest.raises(InputError, match="cannot be written .*--resume"):
        run.save()


def test_a_loss_that_is_not_finite_ends_the_run(shapes, tmp_path):
    run = trainer(shapes, tmp_path)
    with torch.no_grad():
        run.sam.image_encoder.pos_embed.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite at step 0"):
        run.run()


def test_crops_must_be_whole_tokens(shapes):
    sam = build_sam(TINY["vit_tiny"])
    for crop in (0, 8, 72, 144, -16):
        with pytest.raises(InputError, match="crop is a multiple of 16"):
            make_batches([shapes], shapes.parent / "images", sam, replace(CONFIG, crop=crop))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_that_means_harm_is_not_executed(shapes, tmp_path, zipped):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)

    run = trainer(shapes, tmp_path, replace(CONFIG, steps=1))
    run.save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(state | {"extra": Malicious()}, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds more than tensors .it names posix.mkdir") as caught:
        run.resume()
    assert "\n" not in str(caught.value) and not (tmp_path / "proof").exists()


def test_a_state_with_something_else_inside_is_one_line(shapes, tmp_path):
    run = trainer(shapes, tmp_path, replace(CONFIG, steps=1))
    run.save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    name = next(iter(state["average"]))
    wrong = [{key: value for key, value in state.items() if key != absent} for absent in ("config", "rng", "average")]
    wrong += [state | {key: 3} for key in ("config", "model", "average", "optimizers", "rng")]
    wrong += [state | {"average": state["average"] | {name: torch.zeros(2)}}, [1, 2], torch.zeros(3)]
    for content in wrong:
        torch.save(content, tmp_path / "state.pt")
        with pytest.raises(InputError, match="damaged|another --model"):
            run.resume()
    torch.save(state, tmp_path / "state.pt")
    run.resume()
