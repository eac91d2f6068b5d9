"""The parts of the closed-form start: sums, router, E-blocks, padding, and keep ratios by stage."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam

from sam_bigltl.bench.macs import count_macs
from sam_bigltl.convert import convert_sam
from sam_bigltl.convert.warm_start import Recipe, choose_ratios, stage_costs, warm_start
from sam_bigltl.convert.warm_start.moments import Moments
from sam_bigltl.convert.warm_start.photo import photo_tokens
from sam_bigltl.errors import InputError

LITTLE = 12


@pytest.fixture(scope="module")
def dense():
    sam = dense_sam(dense_config(img_size=96))
    with torch.no_grad():
        for block in sam.image_encoder.blocks:
            block.attn.proj.weight.mul_(0.4)
            block.mlp.lin2.weight.mul_(0.4)
    return sam


@pytest.fixture(scope="module")
def images(dense):
    pictures = [torch.from_numpy(picture(96, 64 if seed % 2 else 96, seed)).permute(2, 0, 1) for seed in range(32)]
    return [dense.preprocess(x)[None] for x in pictures]


def fitted(dense, images, recipe: Recipe):
    torch.manual_seed(1)
    sam = convert_sam(dense, LITTLE)
    warm_start(sam, images, progress=False, recipe=recipe)
    return sam


@torch.no_grad()
def error(sam, dense, images, ratio) -> float:
    """Relative squared error of the embedding inside the photographs."""
    sam.image_encoder.keep_ratio = ratio
    off = total = 0.0
    for image in images:
        inside = photo_tokens(image, 16)
        wanted = dense.image_encoder(image)[..., inside]
        off += float((sam.image_encoder(image)[..., inside] - wanted).square().sum())
        total += float(wanted.square().sum())
    return off / total


# ---------------------------------------------------------------- sums
def test_weighted_sums_give_numpys_weighted_least_squares():
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(3, 1, (200, 5)), rng.normal(size=(200, 2)), rng.uniform(0.1, 2, 200)
    moments = Moments(ridge=0)
    for rows in np.split(np.arange(200), 4):
        moments.add(*(torch.from_numpy(part[rows]) for part in (x, y, weight)))
    coefficients, intercept = moments.solution()
    root = np.sqrt(weight)[:, None]
    wanted = np.linalg.lstsq(np.column_stack([x, np.ones(200)]) * root, y * root, rcond=None)[0]
    assert np.abs(coefficients.numpy() - wanted[:-1]).max() < 1e-9
    assert np.abs(intercept.numpy() - wanted[-1]).max() < 1e-9


def test_the_ridge_does_not_see_how_large_a_channel_is():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 6, generator=generator), torch.randn(300, 3, generator=generator)
    scale = torch.tensor([1.0, 500.0, 1.0, 0.01, 1.0, 1.0])
    plain, scaled = Moments(0.1), Moments(0.1)
    plain.add(x, y)
    scaled.add(x * scale + 1000 * scale, y)
    wanted, found = plain.solution()[0], scaled.solution()[0] * scale[:, None]
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_channel_that_never_changes_gets_no_weight():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7.0
    moments = Moments()
    moments.add(x, x[:, :1] * 2)
    coefficients, intercept = moments.solution()
    assert torch.allclose(coefficients[:, 0], torch.tensor([2.0, 0, 0], dtype=torch.float64), atol=1e-3)
    assert intercept.abs() < 1e-3


# ---------------------------------------------------------------- the whole
def test_each_part_lowers_the_error_on_other_pictures(dense, images):
    full = fitted(dense, images[:24], Recipe())
    for without in (dict(units=False), dict(ratios=())):
        less = fitted(dense, images[:24], replace(Recipe(), **without))
        for ratio in (0.25, 0.125):
            ours, theirs = (error(sam, dense, images[24:], ratio) for sam in (full, less))
            assert ours < theirs, (without, ratio)


def test_e_blocks_change_the_stream_and_their_attention_does_not(dense, images):
    sam = fitted(dense, images[:24], Recipe())
    for block in sam.image_encoder.little_blocks:
        assert not block.attn.proj.weight.any() and not block.attn.proj.bias.any()
        assert block.mlp.lin2.weight.abs().max() > 0


def test_outliers_that_change_nothing_do_not_change_the_fit(dense, images):
    """Channels hundreds of times larger, of normed tokens, keys and values, and keys far from zero."""
    scaled = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in scaled.image_encoder.blocks:
            dim = block.norm1.weight.shape[0]
            qkv, proj = block.attn.qkv, block.attn.proj
            for factor, channels in ((300.0, [3, 17]), (0.01, [5])):
                block.norm1.weight[channels] *= factor
                block.norm1.bias[channels] *= factor
                qkv.weight[:, channels] /= factor
                rows = torch.tensor(channels) + 2 * dim
                qkv.weight[rows] *= factor
                qkv.bias[rows] *= factor
                proj.weight[:, channels] /= factor
            qkv.bias[dim : 2 * dim] += 20 * torch.randn(dim, generator=generator)
    assert error(convert_sam(scaled, LITTLE), dense, images[24:], 1.0) < 1e-6
    plain, other = (error(fitted(sam, images[:24], Recipe()), dense, images[24:], 0.5) for sam in (dense, scaled))
    assert other == pytest.approx(plain, rel=0.05)


# ---------------------------------------------------------------- padding
@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(96, 96, 6, 6), (50, 96, 4, 6), (96, 16, 6, 1)])
def test_tokens_of_the_photograph(height, width, rows, columns):
    image = torch.zeros(1, 3, 96, 96)
    image[..., :height, :width] = torch.randn(3, height, width)
    wanted = torch.zeros(6, 6, dtype=torch.bool)
    wanted[:rows, :columns] = True
    assert torch.equal(photo_tokens(image, 16), wanted)


def test_an_empty_frame_is_a_photograph():
    assert photo_tokens(torch.zeros(1, 3, 96, 96), 16).all()


# ---------------------------------------------------------------- keep ratios by stage
@pytest.mark.parametrize("global_layers", [(1, 3), (0, 3)])
def test_stage_costs_are_those_of_the_counted_model(global_layers):
    config = dense_config(img_size=96, global_layers=global_layers)
    encoder = convert_sam(dense_sam(config), LITTLE).image_encoder
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))

    def macs(*ratios: float) -> int:
        encoder.keep_ratio = ratios
        return count_macs(encoder, image).without_attention

    base = macs(0.25, 0.25)
    more = np.array([macs(0.75, 0.25) - base, macs(0.25, 0.75) - base])
    assert stage_costs(encoder.config) == pytest.approx(more / more.sum(), abs=0.01)


def test_ratios_by_stage_cost_no_more_and_are_never_worse(dense, images):
    sam = fitted(dense, images[:24], Recipe())
    sam.image_encoder.keep_ratio = 0.3
    chosen = choose_ratios(sam, images[:4], 0.5, progress=False)
    assert sam.image_encoder.keep_ratio == 0.3
    assert sum(c * r for c, r in zip(stage_costs(sam.image_encoder.config), chosen)) <= 0.5 + 1e-6
    assert error(sam, dense, images[:4], chosen) <= error(sam, dense, images[:4], 0.5)
    assert len(chosen) == 2


def test_what_ratios_cannot_be_chosen_for(dense, images):
    with pytest.raises(InputError, match="dense"):
        choose_ratios(dense, images[:1], 0.5)
    sam = convert_sam(dense, LITTLE)
    with pytest.raises(InputError, match="there are none"):
        choose_ratios(sam, [], 0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        choose_ratios(sam, images[:1], 1.0)
    with pytest.raises(InputError, match="there are none"):
        warm_start(sam, [])
