"""The changes of the model that the study measures are what it says they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from little_models import dense_sam, enliven
from research import ablations
from torch import nn

from sam_bigltl.convert import convert_sam
from sam_bigltl.modeling.routing import Geometry, Selection

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def student():
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=1)
    sam.image_encoder.keep_ratio = 0.5
    return sam


# ---------------------------------------------------------------- routers
@pytest.mark.parametrize("router", [ablations.RandomRouter(), ablations.CentreRouter()])
def test_scores_sum_to_one_and_select(router):
    sam = student()
    ablations.set_router(sam, router)
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    for group in sam.image_encoder.last_route.groups:
        assert torch.allclose(group.scores.sum(dim=1), torch.ones(2)) and group.indices.shape == (2, 8)


def test_the_centre_comes_first_and_the_corners_last():
    scores = ablations.CentreRouter()(torch.zeros(1, 25, 3))[0].view(5, 5)
    assert scores.argmax() == 12 and scores.min() == scores[0, 0] == scores[4, 4]


def test_outlines_are_where_the_mask_changes():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 5:7, 5:7] = True  # all of it in token (1, 1)
    masks[1, 2:14, 9:13] = True
    scores = ablations.boundary_scores(masks, 4)[0].view(4, 4)
    expected = np.zeros((4, 4))
    for mask in masks.numpy():
        share = np.zeros((4, 4))
        for y, x in np.ndindex(16, 16):
            around = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            share[y // 4, x // 4] += around.any() and not around.all()
        expected += share / share.sum()
    assert np.allclose(scores.numpy(), expected / 2, atol=1e-5)


def test_the_oracle_selects_what_it_is_given():
    sam = student()
    router = ablations.OracleRouter()
    ablations.set_router(sam, router)
    router.scores = torch.arange(16.0)[None].softmax(dim=1)
    with torch.no_grad():
        sam.image_encoder(IMAGE)
    assert all(group.indices[1].tolist() == list(range(8, 16)) for group in sam.image_encoder.last_route.groups)


def test_one_selection_for_the_whole_encoder():
    sam = student()
    with torch.no_grad():
        sam.image_encoder(IMAGE)
        first, *others = [group.indices for group in sam.image_encoder.last_route.groups]
        assert not all(torch.equal(first, other) for other in others)
        ablations.route_once(sam)
        sam.image_encoder(IMAGE)
    assert all(torch.equal(first, group.indices) for group in sam.image_encoder.last_route.groups)


def test_the_order_of_dithering_spreads_any_run_of_tokens():
    order = ablations.dither_order(8, "cpu").view(8, 8)
    assert sorted(order.flatten().tolist()) == list(range(64))
    for first in range(0, 64, 16):  # a quarter is every second token of every second row
        rows, columns = ((order >= first) & (order < first + 16)).nonzero(as_tuple=True)
        assert len({(r % 2, c % 2) for r, c in zip(rows.tolist(), columns.tolist())}) == 1
    rows, columns = (order < 32).nonzero(as_tuple=True)
    assert len(set(((rows + columns) % 2).tolist())) == 1  # a half is a chessboard's one colour
    assert sorted(ablations.dither_order(5, "cpu").tolist()) == list(range(25))


def test_the_grid_gives_every_token_its_turn_and_the_unimportant_none():
    class Scores(nn.Module):
        def forward(self, little):
            scores = torch.ones(len(little), 16)
            scores[:, 12:] = 1e-6  # the last row, as padding
            return scores / scores.sum(dim=1, keepdim=True)

    sam = student()
    transitions = sam.image_encoder.transitions
    ablations.set_router(sam, Scores())
    ablations.covered(sam, lambda router, group, _: ablations.GridRouter(router, group))
    for ratio, per_group in ((0.375, 6), (0.25, 4)):
        sam.image_encoder.keep_ratio = ratio
        with torch.no_grad():
            sam.image_encoder(IMAGE)
        groups = [set(group.indices[0].tolist()) for group in sam.image_encoder.last_route.groups]
        assert [len(group) for group in groups] == [per_group] * len(transitions)
        assert not groups[0] & groups[1] and all(token < 12 for group in groups for token in group)


def test_the_covering_router_prefers_tokens_that_were_not_big():
    sam = student()
    sam.image_encoder.keep_ratio = 0.5

    def repeated() -> int:
        with torch.no_grad():
            sam.image_encoder(IMAGE)
        first, second = (group.indices for group in sam.image_encoder.last_route.groups)
        return sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(first, second))

    shared = sam.image_encoder.transitions[0].router
    ablations.set_router(sam, ablations.OracleRouter())
    sam.image_encoder.transitions[0].router.scores = torch.linspace(1, 1.2, 16)[None].softmax(dim=1)
    assert repeated() == 16
    ablations.covered(sam, lambda router, _, before: ablations.CoveringRouter(router, before))
    assert repeated() == 0 and shared is not sam.image_encoder.transitions[0].router


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
    stream, effect, valid = ablations._mask_effects(sam, batch)[0]
    assert stream.shape == (8, encoder.config.little_dim) and effect.shape == valid.shape == (8,)

    # What the loss changes by where one token gets a little of what it lacks.
    with torch.no_grad():
        before, after = (state.flatten(1, 2) for state in ablations._dense_loss(sam, batch)[1][:2])
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
            losses.append(float(ablations._dense_loss(sam, batch)[0]))
            handle.remove()
    assert abs(losses[0] - losses[1]) / 0.02 == pytest.approx(float(effect[token]), rel=0.05)

    before = weight.clone()
    ablations.fit_routers_to_masks(sam, [batch] * 2)
    assert not torch.equal(before, weight)


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize("layer", [0, 1])  # in windows, and of the whole image
def test_attention_among_the_selected_against_a_loop(layer: int):
    sam = student()
    block, config = sam.image_encoder.blocks[layer], sam.image_encoder.config
    attention = block.attn
    geometry = Geometry((4, 4), config.window, "cpu")
    indices = torch.tensor([[0, 2, 5, 6, 9, 15]])
    x = torch.randn(1, 6, config.dim, generator=torch.Generator().manual_seed(1))
    found = ablations.SelectedOnlyAttention.routed(attention, x, None, Selection(indices, geometry), geometry)
    heads, width = config.num_heads, config.dim // config.num_heads
    q, k, v = attention.qkv(x)[0].detach().view(6, 3, heads, width).permute(1, 2, 0, 3).double()
    place = [divmod(int(i), 4) for i in indices[0]]
    side = config.window if attention.window else 4
    out = torch.zeros(6, heads, width, dtype=torch.double)
    for i, (r, c) in enumerate(place):
        same = [j for j, p in enumerate(place) if not attention.window or (p[0] // 3, p[1] // 3) == (r // 3, c // 3)]
        for h in range(heads):
            logits = [
                q[h, i] @ k[h, j] / width**0.5
                + q[h, i] @ attention.rel_pos_h[r % side - place[j][0] % side + side - 1].double()
                + q[h, i] @ attention.rel_pos_w[c % side - place[j][1] % side + side - 1].double()
                for j in same
            ]
            out[i, h] = torch.stack(logits).softmax(0) @ v[h, same]
    expected = attention.proj(out.reshape(1, 6, -1).float())
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():  # window by window
        found = ablations.SelectedOnlyAttention.routed(attention, x, None, Selection(indices, geometry), geometry)
    assert torch.allclose(found, expected, atol=1e-5)


# ---------------------------------------------------------------- E-blocks
def test_depthwise_mixing_against_a_loop():
    mixer = ablations.DepthwiseMixer(8, kernel=3)
    x = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    found = mixer(x, Geometry((3, 4), 2, "cpu"))
    mixed = torch.zeros(2, 12, 8)
    for row in range(3):
        for column in range(4):
            for i in range(max(0, row - 1), min(3, row + 2)):
                for j in range(max(0, column - 1), min(4, column + 2)):
                    weight = mixer.conv.weight[:, 0, i - row + 1, j - column + 1]
                    mixed[:, 4 * row + column] += weight * x[:, 4 * i + j]
    assert torch.allclose(found, mixer.proj(mixed + mixer.conv.bias), atol=1e-5)


def test_other_e_blocks_start_as_nothing_and_learn():
    plain, convolved, without = student(), student(), student()
    for block in plain.image_encoder.little_blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    ablations.convolve(convolved)
    for block in convolved.image_encoder.little_blocks:
        torch.nn.init.zeros_(block.mlp.lin2.weight)
        torch.nn.init.zeros_(block.mlp.lin2.bias)
    ablations.without_little_blocks(without)
    with torch.no_grad():
        wanted = plain.image_encoder(IMAGE)
    for sam in (convolved, without):
        assert torch.allclose(sam.image_encoder(IMAGE), wanted, atol=1e-5)
    convolved.image_encoder(IMAGE).square().mean().backward()
    assert all(block.attn.proj.weight.grad.any() for block in convolved.image_encoder.little_blocks)
