"""The ways to choose tokens that the study measures are what it says they are."""

from __future__ import annotations

import pytest
import torch
from little_models import dense_sam, enliven, little_student
from research import routers
from torch import nn

from sam_bigltl.convert import convert_sam

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_scores_sum_to_one_and_select():
    sam = little_student()
    routers.set_router(sam, routers.RandomRouter())
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    for group in sam.image_encoder.last_route.groups:
        assert torch.allclose(group.scores.sum(dim=1), torch.ones(2)) and group.indices.shape == (2, 8)


def test_one_selection_for_the_whole_encoder():
    sam = little_student()
    with torch.no_grad():
        sam.image_encoder(IMAGE)
        first, *others = [group.indices for group in sam.image_encoder.last_route.groups]
        assert not all(torch.equal(first, other) for other in others)
        routers.route_once(sam)
        sam.image_encoder(IMAGE)
    assert all(torch.equal(first, group.indices) for group in sam.image_encoder.last_route.groups)


def test_the_order_of_dithering_spreads_any_run_of_tokens():
    order = routers.dither_order(8, "cpu").view(8, 8)
    assert sorted(order.flatten().tolist()) == list(range(64))
    for first in range(0, 64, 16):  # a quarter is every second token of every second row
        rows, columns = ((order >= first) & (order < first + 16)).nonzero(as_tuple=True)
        assert len({(r % 2, c % 2) for r, c in zip(rows.tolist(), columns.tolist())}) == 1
    rows, columns = (order < 32).nonzero(as_tuple=True)
    assert len(set(((rows + columns) % 2).tolist())) == 1  # a half is a chessboard's one colour
    assert sorted(routers.dither_order(5, "cpu").tolist()) == list(range(25))


def test_the_grid_gives_every_token_its_turn_and_the_unimportant_none():
    class Scores(nn.Module):
        def forward(self, little):
            scores = torch.ones(len(little), 16)
            scores[:, 12:] = 1e-6  # the last row, as padding
            return scores / scores.sum(dim=1, keepdim=True)

    sam = little_student()
    transitions = sam.image_encoder.transitions
    routers.set_router(sam, Scores())
    routers.covered(sam, lambda router, group, _: routers.TurnRouter(router, group))
    for ratio, per_group in ((0.375, 6), (0.25, 4)):
        sam.image_encoder.keep_ratio = ratio
        with torch.no_grad():
            sam.image_encoder(IMAGE)
        groups = [set(group.indices[0].tolist()) for group in sam.image_encoder.last_route.groups]
        assert [len(group) for group in groups] == [per_group] * len(transitions)
        assert not groups[0] & groups[1] and all(token < 12 for group in groups for token in group)


def test_the_covering_router_prefers_tokens_that_were_not_big():
    sam = little_student()
    sam.image_encoder.keep_ratio = 0.5

    def repeated() -> int:
        with torch.no_grad():
            sam.image_encoder(IMAGE)
        first, second = (group.indices for group in sam.image_encoder.last_route.groups)
        return sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(first, second))

    class Fixed(nn.Module):
        def forward(self, little):
            return torch.linspace(1, 1.2, 16).softmax(dim=0).expand(len(little), -1)

    routers.set_router(sam, Fixed())
    assert repeated() == 16
    routers.covered(sam, lambda router, _, before: routers.CoveringRouter(router, before))
    assert repeated() == 0


def test_routers_are_fitted_to_the_masks():
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=1)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 255, (2, 3, 32, 32), generator=generator), "offset": torch.tensor([[0, 0], [2, 1]]),
        "valid": torch.ones(2, 2, 2, dtype=torch.bool), "coords": torch.full((2, 1, 2, 2), 20.0),
        "labels": torch.tensor([[[1, -1]], [[1, -1]]]), "boxes": torch.tensor([[[4.0, 4, 20, 20]]] * 2),
        "target": torch.full((2, 1, 8, 8), 255, dtype=torch.uint8),
    }  # fmt: skip
    encoder, weight = sam.image_encoder, sam.image_encoder.transitions[0].router.score.weight
    stream, effect, valid = routers._mask_effects(sam, batch)[0]
    assert stream.shape == (8, encoder.config.little_dim) and effect.shape == valid.shape == (8,)

    # What the loss changes by where one token gets a little of what it lacks.
    with torch.no_grad():
        before, after = (state.flatten(1, 2) for state in routers._dense_loss(sam, batch)[1][:2])
        little = encoder.transitions[0].enter(before)
        small = encoder._geometry((2, 2), encoder.config.little_window, "cpu")
        for block in encoder.little_blocks[:2]:
            little = block(little, small)
        lack = (after - encoder.transitions[0].estimate(before, little)).view(2, 2, 2, -1)
        token = int(effect.argmax())
        only = torch.zeros(8).index_fill(0, torch.tensor(token), 1.0).view(2, 2, 2, 1)
        losses = []
        for step in (0.01, -0.01):
            handle = encoder.blocks[1].register_forward_hook(lambda *given, step=step: given[2] + step * only * lack)
            losses.append(float(routers._dense_loss(sam, batch)[0]))
            handle.remove()
    assert abs(losses[0] - losses[1]) / 0.02 == pytest.approx(float(effect[token]), rel=0.05)

    before = weight.clone()
    routers.fit_routers_to_masks(sam, [batch] * 2)
    assert not torch.equal(before, weight)


def test_a_number_becomes_the_ratios_by_stage():
    sam = little_student()
    batches = [{"image": torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))}]
    routers.ratios_by_stage(sam, batches, (0.25,))
    sam.image_encoder.keep_ratio = 0.25
    assert sam.image_encoder.keep_ratio == sam.image_encoder.by_stage[0.25]
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    counts = [group.indices.shape[1] for group in sam.image_encoder.last_route.groups]
    assert counts == [max(1, round(16 * ratio)) for ratio in sam.image_encoder.by_stage[0.25]]
    sam.image_encoder.keep_ratio = 0.5
    assert sam.image_encoder.keep_ratio == 0.5
