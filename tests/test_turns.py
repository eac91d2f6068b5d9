"""Tokens in turn: every token is big before any is again, and what hardly matters waits."""

from __future__ import annotations

import pytest
import torch
from little_models import dense_sam, encoder_images, enliven
from torch import nn

from sam_bigltl.cli import main
from sam_bigltl.convert import convert_sam, load_sam, save_sam
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.routing import dither_order, tokens_in_turn


def student():
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=1)
    sam.image_encoder.routing = "turns"
    return sam


class Scores(nn.Module):
    """The last row of a 4 x 4 grid hardly matters, as padding does."""

    def forward(self, little):
        scores = torch.ones(len(little), 16)
        scores[:, 12:] = 1e-6
        return scores / scores.sum(dim=1, keepdim=True)


def test_the_order_spreads_any_run_of_tokens():
    order = dither_order((8, 8), "cpu").view(8, 8)
    assert sorted(order.flatten().tolist()) == list(range(64))
    for first in range(0, 64, 16):  # a quarter is every second token of every second row
        rows, columns = ((order >= first) & (order < first + 16)).nonzero(as_tuple=True)
        assert len({(r % 2, c % 2) for r, c in zip(rows.tolist(), columns.tolist())}) == 1
    rows, columns = (order < 32).nonzero(as_tuple=True)
    assert len(set(((rows + columns) % 2).tolist())) == 1  # a half is one colour of a chessboard
    assert sorted(dither_order((5, 3), "cpu").tolist()) == list(range(15))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11, 12, 14, 16])
def test_turns_against_a_queue_in_python(count: int):
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(3, 16, generator=generator)
    scores[0, 3] = scores[1, [1, 9]] = 1e-5
    scores = scores / scores.sum(dim=1, keepdim=True)
    order = dither_order((4, 4), "cpu")
    for turn in range(4):
        found = tokens_in_turn(scores, count, turn, order)
        for row, own in zip(scores.tolist(), found.tolist()):
            queue = sorted((i for i in range(16) if row[i] * 16 >= 0.1), key=lambda i: int(order[i]))
            waiting = sorted((i for i in range(16) if row[i] * 16 < 0.1), key=lambda i: int(order[i]))
            if count <= len(queue):
                wanted = [queue[(turn * count + i) % len(queue)] for i in range(count)]
            else:
                wanted = queue + waiting[: count - len(queue)]
            assert own == sorted(wanted)


@torch.no_grad()
def test_the_encoder_gives_every_token_its_turn_and_the_unimportant_none():
    sam = student()
    for transition in sam.image_encoder.transitions:
        transition.router = Scores()
    for ratio, count in ((0.375, 6), (0.25, 4)):
        sam.image_encoder.keep_ratio = ratio
        sam.image_encoder(encoder_images(sam))
        first, second = (set(group.indices[0].tolist()) for group in sam.image_encoder.last_route.groups)
        assert len(first) == len(second) == count and not first & second and max(first | second) < 12


@torch.no_grad()
def test_importance_decides_with_a_focus_and_for_auto():
    sam = student()
    encoder, images = sam.image_encoder, encoder_images(sam, 1)
    encoder.keep_ratio = 0.5
    encoder(images)
    turns = encoder.last_route.groups[0].indices
    scores = encoder.last_route.groups[0].scores
    assert not torch.equal(turns, scores.topk(8).indices.sort().values)
    encoder.focus = torch.linspace(1, 9, 16)[None]
    encoder(images)
    group = encoder.last_route.groups[0]
    assert torch.equal(group.indices, group.scores.topk(8).indices.sort().values)
    encoder.focus, encoder.keep_ratio = None, "auto"
    encoder(images)
    group = encoder.last_route.groups[0]
    assert torch.equal(group.indices, group.scores.topk(group.indices.shape[1]).indices.sort().values)


@torch.no_grad()
def test_batches_kernels_and_exactness_are_as_with_importance():
    sam = student()
    encoder, images = sam.image_encoder, encoder_images(sam)
    exact = convert_sam(dense_sam())
    exact.image_encoder.routing = "turns"
    assert torch.equal(exact.image_encoder(images), dense_sam().image_encoder(images))
    encoder.keep_ratio = 0.25
    both = encoder(images)
    assert torch.allclose(both, torch.cat([encoder(image[None]) for image in images]), atol=1e-5)


def test_training_reaches_every_parameter_but_the_routers():
    sam = student()
    sam.image_encoder.keep_ratio = 0.5
    sam.image_encoder(encoder_images(sam)).square().mean().backward()
    missing = [name for name, p in sam.image_encoder.named_parameters() if p.grad is None]
    assert missing == ["transitions.0.router.score.weight", "transitions.1.router.score.weight"]


def test_files_and_conversions_keep_it(tmp_path):
    sam = student()
    save_sam(sam, tmp_path / "model.safetensors")
    assert load_sam(tmp_path / "model.safetensors").image_encoder.routing == "turns"
    sam.image_encoder.routing = "importance"
    save_sam(sam, tmp_path / "model.safetensors")
    assert load_sam(tmp_path / "model.safetensors").image_encoder.routing == "importance"
    teacher = build_sam(dense_sam().image_encoder.config)
    assert convert_sam(teacher).image_encoder.routing == "importance"
    assert convert_sam(teacher, routing="turns").image_encoder.routing == "turns"


def test_another_way_is_refused():
    with pytest.raises(InputError, match="routing is 'importance' or 'turns', not 'random'"):
        student().image_encoder.routing = "random"


@pytest.mark.parametrize(("flags", "wanted"), [([], "importance"), (["--routing", "turns"], "turns")])
def test_the_command_line_says_which(tmp_path, flags: list[str], wanted: str):
    save_sam(dense_sam(), tmp_path / "dense.safetensors")
    main(["convert", str(tmp_path / "dense.safetensors"), str(tmp_path / "big.safetensors"), *flags])
    assert load_sam(tmp_path / "big.safetensors").image_encoder.routing == wanted
