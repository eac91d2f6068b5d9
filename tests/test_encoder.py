"""DESIGN's invariants of the encoder, and routing against a slow reference."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from segment_anything import build_sam_vit_b
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.image_encoder import ImageEncoderViT

from sam_bigltl.bench.exactness import conversion_difference, randomise_positions
from sam_bigltl.convert import convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.attention import attend, attend_folded
from sam_bigltl.modeling.encoder import BigLittleEncoder, EncoderConfig, init_weights
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.routing import Geometry, Selection, straight_through_gate, top_tokens

# (image side, width, depth, heads, global layers, window): padded windows, exact windows, window larger than the grid.
SHAPES = [
    (160, 32, 4, 2, (1, 3), 4),  # grid 10, windows of 4: padded
    (128, 32, 3, 4, (2,), 4),  # grid 8: exact windows, one stage
    (96, 48, 4, 3, (0, 3), 14),  # grid 6 inside one padded window, as a stage of a single layer
    (112, 32, 5, 2, (1,), 3),  # the last stage ends without a global layer
]


def reference_encoder(side: int, dim: int, depth: int, heads: int, attends_all: tuple, window: int) -> ImageEncoderViT:
    torch.manual_seed(1)
    encoder = ImageEncoderViT(
        img_size=side, embed_dim=dim, depth=depth, num_heads=heads, out_chans=32, use_rel_pos=True,
        global_attn_indexes=attends_all, window_size=window, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    randomise_positions(encoder)
    return encoder.eval()


def our_config(shape: tuple, **changes) -> EncoderConfig:
    side, dim, depth, heads, attends_all, window = shape
    fields = dict(
        img_size=side, dim=dim, depth=depth, num_heads=heads, global_layers=attends_all, window=window,
        out_chans=32, little_dim=16,
    )  # fmt: skip
    return EncoderConfig(**(fields | changes))


def our_encoder(shape: tuple = SHAPES[0], seed: int = 0, **changes) -> BigLittleEncoder:
    torch.manual_seed(seed)
    encoder = BigLittleEncoder(our_config(shape, **changes))
    init_weights(encoder)
    for name, parameter in encoder.named_parameters():  # every term alive, so that a missing one shows
        torch.nn.init.normal_(parameter, std=0.2 if "rel_pos" in name or "gamma" in name else 0.15)
    return encoder.eval()


def images(encoder: BigLittleEncoder, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, encoder.img_size, encoder.img_size, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_exact_at_full_keep_ratio(shape):
    reference = reference_encoder(*shape)
    ours = BigLittleEncoder(our_config(shape))
    result = ours.load_state_dict(reference.state_dict(), strict=False)
    assert not result.unexpected_keys
    x = images(ours, 2)
    assert (ours(x) - reference(x)).abs().max() < 1e-4


def test_exact_on_the_real_vit_b():
    """Its first stage, at 1024 px: two layers with padded windows and a global one."""
    torch.manual_seed(0)
    sam = build_sam_vit_b()
    sam.image_encoder.blocks = sam.image_encoder.blocks[:3]
    randomise_positions(sam.image_encoder)
    assert conversion_difference(sam) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_everything_selected_by_routing_equals_dense_up_to_gamma(shape):
    """The routed path with all tokens selected, in blocks of queries, is the dense path without the fusion term."""
    encoder = our_encoder(shape)
    for block in encoder.blocks:
        block.gamma.zero_()
    x = images(encoder, 2)
    tokens = (encoder.patch_embed(x) + encoder.pos_embed).flatten(1, 2)
    grid = (encoder.config.side,) * 2
    big = encoder._geometry(grid, encoder.config.window, x.device)
    small = encoder._geometry(grid, encoder.config.little_window, x.device)
    for index, (_, layers) in enumerate(encoder.config.groups):
        routed, _, group = encoder._run_group(tokens, None, index, 1.0, big, small)
        assert group.indices.shape[1] == grid[0] * grid[1]
        for layer in layers:
            tokens = encoder.blocks[layer](tokens, big)
        torch.testing.assert_close(routed, tokens, atol=1e-4, rtol=1e-4)


def slow_attention(block, x_all, little, selected: list[int], query: int, grid: int) -> torch.Tensor:
    """Semi-cross attention of one selected token, by the definition: a loop over heads and over keys with a mask."""
    attn, dim = block.attn, x_all.shape[-1]
    heads, depth = attn.num_heads, dim // attn.num_heads
    w = attn.window or grid
    size = (attn.rel_pos_h.shape[0] + 1) // 2
    qkv = block.norm1(x_all) @ attn.qkv.weight.T + attn.qkv.bias  # (N, 3C)
    kv_little = attn.kv_little(block.norm_little(little))  # (N, 2C)
    row, column = divmod(query, grid)
    keys = []  # (row, column, key and value), the whole padded window
    for i in range(row // w * w, row // w * w + w):
        for j in range(column // w * w, column // w * w + w):
            if i >= grid or j >= grid:
                keys.append((i, j, attn.qkv.bias[dim:]))
            elif i * grid + j in selected:
                keys.append((i, j, qkv[i * grid + j, dim:]))
            else:
                keys.append((i, j, kv_little[i * grid + j]))
    out = []
    for head in range(heads):
        part = slice(head * depth, (head + 1) * depth)
        q = qkv[query, :dim][part]
        logits = torch.stack([
            q @ kv[:dim][part] / math.sqrt(depth)
            + q @ attn.rel_pos_h[row - i + size - 1] + q @ attn.rel_pos_w[column - j + size - 1]
            for i, j, kv in keys
        ])  # fmt: skip
        out.append(logits.softmax(0) @ torch.stack([kv[dim:][part] for _, _, kv in keys]))
    return attn.proj(torch.cat(out))


@pytest.mark.parametrize("layer", [0, 1])  # windowed and padded; global
@torch.no_grad()
def test_semi_cross_attention_equals_a_masked_loop(layer):
    encoder = our_encoder(SHAPES[0])
    side, block = encoder.config.side, encoder.blocks[layer]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, side * side, 32, generator=generator)
    little = torch.randn(2, side * side, 16, generator=generator)
    # A hand-made choice: a full window, a ragged one, padded corners; another one for the second image.
    chosen = [sorted({0, 1, 2, 3, 10, 11, 12, 13, 20, 23, 30, 33, 45, 88, 89, 98, 99}), list(range(7, 92, 5))]
    selection = Selection(torch.tensor(chosen), Geometry((side, side), encoder.config.window, "cpu"))
    geometry = selection.geometry
    ours = block.attn.routed(block.norm1(selection.gather(x)), block.norm_little(little), selection, geometry)
    for image, tokens in enumerate(chosen):
        for position, token in enumerate(tokens):
            slow = slow_attention(block, x[image], little[image], tokens, token, side)
            torch.testing.assert_close(ours[image, position], slow, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_router_decides():
    """A router made by hand to score the first little channel sends exactly the highest tokens to the big path."""
    encoder = our_encoder()
    encoder.keep_ratio = 0.23
    first = encoder.transitions[0]
    first.router.score.weight.zero_()
    first.router.score.weight[0, 0] = 3.0
    x = images(encoder)
    tokens = (encoder.patch_embed(x) + encoder.pos_embed).flatten(1, 2)
    wanted = first.down(tokens)[0, :, 0].topk(23).indices.sort().values
    encoder(x)
    group = encoder.last_route.groups[0]
    assert torch.equal(group.indices[0], wanted)
    assert group.layers == (0, 1)
    assert group.scores.shape == (1, 100) and abs(group.scores.sum().item() - 1) < 1e-5
    assert encoder.last_route.counts().sum().item() == 23 * 2


@torch.no_grad()
def test_unselected_tokens_change_by_the_little_stream_only():
    encoder = our_encoder()
    geometry = encoder._geometry((10, 10), 4, torch.device("cpu"))
    small = encoder._geometry((10, 10), 5, torch.device("cpu"))
    x = torch.randn(1, 100, 32, generator=torch.Generator().manual_seed(0))
    transition = encoder.transitions[0]
    after, _, group = encoder._run_group(x, None, 0, 0.3, geometry, small)
    little = transition.down(x)
    for layer in range(2):
        little = encoder.little_blocks[layer](little, small)
    rest = torch.ones(100, dtype=torch.bool)
    rest[group.indices[0]] = False
    torch.testing.assert_close(after[0, rest], (x + transition.up(little))[0, rest])
    assert not torch.allclose(after[0, ~rest], (x + transition.up(little))[0, ~rest], atol=1e-2)


@torch.no_grad()
def test_gathering_order_does_not_matter_and_ties_break_by_index():
    encoder = our_encoder()
    geometry = Geometry((10, 10), 4, "cpu")
    generator = torch.Generator().manual_seed(2)
    x, little = torch.randn(1, 100, 32, generator=generator), torch.randn(1, 100, 16, generator=generator)
    tokens = torch.randperm(100, generator=generator)[:40]
    shuffled = tokens[torch.randperm(40, generator=generator)]
    for block in encoder.blocks[:2]:
        results = []
        for order in (tokens, shuffled):
            selection = Selection(order[None], geometry)
            out = block.routed(selection.gather(x), little, selection, geometry, None)
            results.append(selection.scatter(torch.zeros_like(x), out))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert top_tokens(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, (1.0, 0.25), (0.1, 1.0), "auto"])
@pytest.mark.parametrize("route_every", [None, 1])
@torch.no_grad()
def test_batch_equals_singles_and_runs_repeat(keep_ratio, route_every):
    encoder = our_encoder(route_every=route_every)
    encoder.keep_ratio = keep_ratio
    encoder.auto_mass = 0.5
    x = images(encoder, 3)
    together = encoder(x)
    route = encoder.last_route
    assert torch.equal(together, encoder(x))
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], encoder(x[i : i + 1]), atol=1e-4, rtol=1e-4)
        for whole, single in zip(route.groups, encoder.last_route.groups):
            kept = whole.indices[i][whole.indices[i] >= 0]
            assert torch.equal(kept, single.indices[0])
    assert len(route.groups) == (4 if route_every else 2)


@torch.no_grad()
def test_auto_takes_the_fewest_tokens_that_hold_the_mass():
    encoder = our_encoder()
    encoder.keep_ratio, encoder.auto_mass = "auto", 0.6
    encoder(images(encoder))
    for group in encoder.last_route.groups:
        mass = group.scores[0].sort(descending=True).values.cumsum(0)
        count = group.indices.shape[1]
        assert mass[count - 1] >= 0.6 and (count == 1 or mass[count - 2] < 0.6)
        assert group.scores[0, group.indices[0]].sum() >= 0.6


@pytest.mark.parametrize("keep_ratio", [1.0, 0.4])
@torch.no_grad()
def test_bfloat16_stays_close(keep_ratio):
    torch.manual_seed(0)
    encoder = BigLittleEncoder(our_config(SHAPES[0]))
    init_weights(encoder)
    encoder.eval().keep_ratio = keep_ratio
    x = images(encoder)
    for transition in encoder.transitions:  # tokens of nearly equal scores may swap, which is no error of arithmetic
        scores = torch.rand(len(x), encoder.config.side**2).softmax(dim=1)
        transition.router.forward = lambda little, scores=scores: scores
    full = encoder(x)
    half = encoder.to(torch.bfloat16)(x)
    assert half.dtype == torch.float32  # the dtype of the images
    assert encoder(x.bfloat16()).dtype == torch.bfloat16
    assert ((half - full).norm() / full.norm()) < 2e-2


@torch.no_grad()
def test_no_little_block_runs_at_full_keep_ratio(monkeypatch):
    encoder = our_encoder()

    def fail(*args):
        raise AssertionError("an E-block ran")

    for block in encoder.little_blocks:
        monkeypatch.setattr(block, "forward", fail)
    encoder(images(encoder))
    assert all(group.scores is None for group in encoder.last_route.groups)
    encoder.keep_ratio = 0.5
    with pytest.raises(AssertionError, match="E-block"):
        encoder(images(encoder))


def test_gradients_reach_every_parameter_and_the_router():
    encoder = our_encoder().train()
    encoder.keep_ratio = 0.5
    encoder(images(encoder, 2)).square().mean().backward()
    # The last E-block of a group feeds only `up`; nothing is left out.
    missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_the_gate_leaves_the_value_untouched():
    encoder = our_encoder()
    encoder.keep_ratio = 0.3
    x = images(encoder)
    with torch.no_grad():
        plain = encoder(x)
    torch.testing.assert_close(encoder(x), plain, atol=1e-5, rtol=1e-5)


def test_the_gate_is_as_steep_for_every_token():
    logits = torch.tensor([[6.0, 0.0, -1.0, -60.0, 1.0]], requires_grad=True)
    indices = torch.tensor([[0, 2, 3]])
    pull = torch.tensor([0.5, -2.0, 3.0])
    scores = logits.softmax(dim=1)
    (straight_through_gate(scores, indices)[0, :, 0] * pull).sum().backward()
    expected = -scores[0].detach() * pull.sum()  # of log softmax, by hand
    expected[[0, 2, 3]] += pull
    assert torch.allclose(logits.grad[0], expected, atol=1e-5)


def test_folding_the_bias_into_the_product_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 7, 16), (2, 3, 20, 16), (2, 3, 20, 16), (2, 3, 7, 4), (2, 3, 7, 5)  # q, k, v, 4 rows, 5 columns
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    logits = torch.einsum("bhqd,bhkd->bhqk", *inputs[:2]).unflatten(-1, (4, 5)) * 0.25
    logits = logits + inputs[3][..., :, None] + inputs[4][..., None, :]
    expected = logits.flatten(3).softmax(dim=-1) @ inputs[2]
    pull = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((expected * pull).sum(), inputs)
    for function in (attend, attend_folded):
        found = function(*inputs, scale=0.25)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(torch.autograd.grad((found * pull).sum(), inputs), wanted):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_smaller_inputs_are_the_top_left_of_the_frame():
    encoder = our_encoder()
    for keep_ratio in (1.0, 0.5):
        encoder.keep_ratio = keep_ratio
        assert encoder(images(encoder)[..., :96, :144]).shape == (1, 32, 6, 9)
    with pytest.raises(InputError, match="multiple of 16"):
        encoder(images(encoder)[..., :100, :])


@pytest.mark.parametrize("value", [0, 1.5, -0.5, float("nan"), "much", [0.5], [0.5, 2.0]])
def test_bad_keep_ratio_is_one_line(value):
    with pytest.raises(InputError) as error:
        our_encoder().keep_ratio = value
    assert "\n" not in str(error.value)


def test_prompt_encoder_and_decoder_are_segment_anythings_untouched():
    source = build_sam(our_config(SHAPES[0], out_chans=256, little_dim=0))
    converted = convert_sam(source)
    assert type(converted.prompt_encoder) is PromptEncoder and type(converted.mask_decoder) is MaskDecoder
    for part in ("prompt_encoder", "mask_decoder"):
        before, after = getattr(source, part).state_dict(), getattr(converted, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
