"""The changes of the model that the study measures are what it says they are."""

from __future__ import annotations

import pytest
import torch
from little_models import little_student
from research import ablations

from sam_bigltl.modeling.routing import Geometry, Selection

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize("layer", [0, 1])  # in windows, and of the whole image
def test_attention_among_the_selected_against_a_loop(layer: int):
    sam = little_student()
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


def test_global_mixing_against_a_loop():
    mixer, geometry = ablations.GlobalMixer(8, 2), Geometry((4, 4), 2, "cpu")
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = mixer(x, geometry)[0]
        windows = [[r * 4 + c for r in (i, i + 1) for c in (j, j + 1)] for i in (0, 2) for j in (0, 2)]
        means = torch.stack([x[0, window].mean(dim=0) for window in windows])
        q, keys = mixer.qkv(x[0])[:, :8], mixer.qkv(means)[:, 8:]
        out = torch.zeros(16, 8)
        for token in range(16):
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                weights = (keys[:, :8][:, part] @ q[token, part] / 2).softmax(dim=0)
                out[token, part] = weights @ keys[:, 8:][:, part]
        assert torch.allclose(found, mixer.proj(out), atol=1e-5)


def test_other_e_blocks_start_as_nothing_and_learn():
    plain, convolved, without = little_student(), little_student(), little_student()
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
