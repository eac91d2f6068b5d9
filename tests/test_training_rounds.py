"""Training in rounds, with pasted objects, several files, balanced sources; and runs that end before their schedule."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CONFIG, assert_same_run, interrupt_at, rows, trainer

from sam_bigltl.errors import InputError
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.training.data import MaskBatches, SampleConfig
from sam_bigltl.training.optimizers import learning_rate, make_optimizers

ROUNDS = replace(CONFIG, rounds=5, round_prompts=1, paste=0.5, degrade=0.5, precision="float32")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_in_rounds_continues_bit_for_bit(shapes, tmp_path):
    whole = trainer(shapes, tmp_path / "whole", ROUNDS)
    whole.run()
    first = trainer(shapes, tmp_path / "parts", ROUNDS)
    interrupt_at(first, 4, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(shapes, tmp_path / "parts", ROUNDS)
    second.resume()
    second.run()
    assert_same_run(whole, second)


def test_later_rounds_train_the_encoder_of_masks(shapes, tmp_path):
    def moved(config) -> float:
        run = trainer(shapes, tmp_path / str(config.rounds), config)
        before = run.sam.prompt_encoder.mask_downscaling[0].weight.detach().clone()
        run.run()
        return float((run.sam.prompt_encoder.mask_downscaling[0].weight.detach() - before).abs().max())

    plain = replace(CONFIG, weight_decay=0.0)
    assert moved(plain) == 0.0
    assert moved(replace(plain, rounds=5, steps=6)) > 0.0


def test_the_loss_is_the_mean_over_the_rounds(shapes, tmp_path):
    run = trainer(shapes, tmp_path, replace(ROUNDS, prompts=1))
    batch = next(b for b in (run.batches[step] for step in range(50)) if len(b["rounds"]) == 2)
    run._train_mode()
    with torch.no_grad():
        all_three = run.forward(batch)["loss"]
        one = run.forward({key: value for key, value in batch.items() if key not in ("rounds", "noise")})["loss"]
        two = run.forward(batch | {"rounds": batch["rounds"][:1], "noise": batch["noise"][:1]})["loss"]
    second = 2 * two - one
    assert second != pytest.approx(float(one), abs=1e-6)  # another prompt
    third = 3 * all_three - 2 * two
    assert 0 < float(third) < 10


def test_a_run_that_ends_early_has_the_rates_of_its_schedule(shapes, tmp_path):
    config = replace(CONFIG, until=5, log_every=1)
    run = trainer(shapes, tmp_path, config)
    run.run()
    assert run.step == 5
    rates = [float(row["lr"]) for row in rows(tmp_path / "log.csv")]
    assert rates == pytest.approx([learning_rate(CONFIG, step) for step in range(5)], abs=1e-6)
    goes_on = trainer(shapes, tmp_path, replace(CONFIG, log_every=1))
    goes_on.resume()
    goes_on.run()
    whole = trainer(shapes, tmp_path / "whole", replace(CONFIG, log_every=1))
    whole.run()
    assert_same_run(whole, goes_on)


def test_a_pretrained_stem_learns_at_its_share_of_the_rate():
    sam = build_sam(
        EncoderConfig(img_size=32, dim=16, depth=2, num_heads=2, global_layers=(1,), window=1, stem="mobile")
    )
    for kind in ("adamw", "muon"):
        shares = {}
        for optimizer in make_optimizers(sam, replace(CONFIG, optimizer=kind, stem_lr=0.25)):
            for group in optimizer.param_groups:
                shares |= {id(parameter): group.get("share", 1.0) for parameter in group["params"]}
        for name, parameter in sam.named_parameters():
            inside = name.startswith(("image_encoder.patch_embed.first", "image_encoder.patch_embed.stages"))
            assert shares[id(parameter)] == (0.25 if inside else 1.0), name


def _labelled(shapes: Path, folder: Path, sources: list[str]) -> Path:
    document = json.loads(shapes.read_text())
    for entry, source in zip(document["images"], sources, strict=True):
        entry["source"] = source
    path = folder / "labelled.json"
    path.write_text(json.dumps(document))
    return path


def test_sources_count_as_the_root_of_their_size(shapes, tmp_path):
    path = _labelled(shapes, tmp_path, ["a", "b", "b", "b", "b", "a"])
    made = MaskBatches([path], shapes.parent / "images", SampleConfig(128, 128, prompts=1, balance="source"), 1, 0, 10)
    share = sum(p for p, image in zip(made.probability, made.images) if image.id in (0, 5))
    weight = np.sqrt(np.minimum([len(image.annotations) for image in made.images], 1))
    assert weight.std() == 0  # one prompt: all photographs alike
    assert share == pytest.approx(2**0.5 / (2**0.5 + 4**0.5))


def test_balancing_needs_sources(shapes):
    with pytest.raises(InputError, match='needs a "source"'):
        MaskBatches([shapes], shapes.parent / "images", SampleConfig(128, 128, balance="source"), 1, 0, 10)


def test_files_add_up(shapes, tmp_path):
    more = tmp_path / "more.json"
    document = json.loads(shapes.read_text())
    for entry in document["images"]:  # the same numbers again: ids need only be unique within a file
        entry["file_name"] = f"./{entry['file_name']}"
    more.write_text(json.dumps(document))
    both = MaskBatches([shapes, more], shapes.parent / "images", SampleConfig(128, 128), 2, 0, 10)
    assert len(both.images) == 12
    assert both[0]["image"].shape == (2, 3, 128, 128)
