"""Depthwise kernels in bfloat16 keep their sums."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sam_bigltl.fast.kernels import round_kernels, with_their_sum
from sam_bigltl.modeling.mobile_stem import MobileStem


def test_by_hand() -> None:
    # Between 1 and 2 the values of bfloat16 are 1/128 apart: three times a third of that rounds to nothing at all.
    weights = 1 + torch.full((1, 3), 1 / 3 / 128)
    assert weights.bfloat16().float().sum() == 3
    assert with_their_sum(weights).sort().values.tolist() == [[1, 1, 1 + 1 / 128]]


def test_sums_and_weights_stay() -> None:
    weights = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    rounded = with_their_sum(weights)
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert ((rounded - weights).abs() <= weights.abs() / 128).all()
    kept, nearest = (
        (values.sum(1) - weights.sum(1)).square().mean() for values in (rounded, weights.bfloat16().float())
    )
    assert kept < nearest / 20


@torch.no_grad()
def test_a_stem_loses_less_on_smooth_images() -> None:
    torch.manual_seed(0)
    stem = MobileStem(16).eval()
    image = nn.functional.interpolate(torch.randn(1, 3, 3, 3), 96, mode="bicubic")
    depthwise = [name for name, layer in stem.named_modules() if name.endswith("depthwise")]
    errors = []
    for change in (lambda stem: None, round_kernels):
        rounded = copy.deepcopy(stem)
        change(rounded)
        for name in depthwise:
            rounded.get_submodule(name).weight.copy_(rounded.get_submodule(name).weight.bfloat16())
        errors.append((rounded(image) - stem(image)).norm())
    assert len(depthwise) == 16 and errors[1] < 0.7 * errors[0]
    assert torch.equal(rounded.first.weight, stem.first.weight)
