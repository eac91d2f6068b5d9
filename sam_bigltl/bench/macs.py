"""Multiply-accumulates of a forward pass, counted on the real model with `torch.utils.flop_counter`.

Published figures of SAM come in two conventions, with and without the products of attention (486 and 372 G for ViT-B at
1024 px), so both are given. Elementwise work, softmax and norms are not counted in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

# Products of two activations; relative positions are among them here and in timm's count.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "efficient_attention")


def _baddbmm(_: Any, a: Sequence[int], b: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(a) * b[-1]


# What torch's counter leaves out: the product in place.
_MORE = {torch.ops.aten.baddbmm_: _baddbmm}


def flop_counter() -> FlopCounterMode:
    """torch's counter, which then sees every product of this project's encoders in float32 and bfloat16."""
    return FlopCounterMode(display=False, custom_mapping=_MORE)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: all of them, and those of layers with weights alone."""

    total: int
    without_attention: int


@torch.inference_mode()
def count_macs(function: Callable[..., object], *inputs: object) -> Macs:
    """Count one call. int8 layers are not seen by the counter: count in float32 or bfloat16."""
    counter = flop_counter()
    with counter:
        function(*inputs)
    counts = counter.get_flop_counts()["Global"]
    total = sum(counts.values())
    attention = sum(value for operator, value in counts.items() if any(name in str(operator) for name in _ATTENTION))
    return Macs(total // 2, (total - attention) // 2)
