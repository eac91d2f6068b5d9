"""Weights made ready for rounding by exact changes that leave the function as it is, computed from the weights alone.

Published transformers have a few channels hundreds of times larger than the rest and keys far from zero. Rounding has
one scale for all channels (int8) or a step that grows with the value (bfloat16), so both would cost the other channels
their digits. Nothing here adds work to inference:

* `centre_keys` takes out of keys and of relative positions what all keys of a query have alike; a softmax does not see
  it. A padded place of a window is a key, too: the bias, from which the same is taken.
* `smooth` divides channels of what a linear layer gets and multiplies the columns of its weights (SmoothQuant, arXiv
  2211.10438): after a norm by its gain and bias, before the output projection of an attention by the rows of values.
  Factors are powers of two, which cost no digit in any format.

Hidden channels of the MLPs are left alone, as GELU lets no factor through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Set by classes (not their subclasses) in which keys only meet queries in a softmax, values are only mixed over tokens,
# and nothing but the one layer after it reads a norm.
MARK = "rescalable"
_DEVIATIONS = 3.0  # of a normed channel: about its largest value
_SHARE = 0.5  # of the outliers that goes from the activations to the weights, in the exponent: SmoothQuant's alpha


@torch.no_grad()
def centre_keys(encoder: nn.Module) -> None:
    """Take from keys and relative positions what the softmax does not see, in place; for float32 and float64.

    Weights of other formats are rounded already: there would be nothing to save.
    """
    for block, attn in _attentions(encoder):
        dim = attn.proj.in_features
        qkv, little = attn.qkv, getattr(attn, "kv_little", None)
        if qkv.weight.dtype in (torch.float32, torch.float64) and qkv.bias is not None:
            own = slice(dim, 2 * dim)
            shift = qkv.bias[own].clone()
            if _is_plain(block.norm1, nn.LayerNorm) and block.norm1.bias is not None:
                shift += qkv.weight[own] @ block.norm1.bias
            if little is None or (_is_plain(little, nn.Linear) and little.bias is not None):
                qkv.bias[own] -= shift
                if little is not None:
                    little.bias[:dim] -= shift.to(little.bias)
        for name in ("rel_pos_h", "rel_pos_w"):
            table = getattr(attn, name, None)
            if table is not None and table.dtype in (torch.float32, torch.float64):
                table -= table.mean(dim=0)


@torch.no_grad()
def smooth(encoder: nn.Module) -> None:
    """Even out the channels of what the linear layers get, in place; the function stays, bit by bit."""
    for block, attn in _attentions(encoder):
        values = _normed_size(block.norm1, attn.qkv)
        if values is not None:
            _smooth_values(attn, values)
        _smooth_norm(block.norm1, attn.qkv)
        if hasattr(block, "norm_little"):
            _smooth_norm(block.norm_little, getattr(attn, "kv_little", None))
        _smooth_norm(block.norm2, block.mlp.lin1)


@torch.no_grad()
def even_channels(gain: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """By what to divide the channels after a norm of `gain` and `bias` (in,), so that they lose less in the rounding
    before `weight` (out, in): powers of two, (in,)."""
    return _factors(_DEVIATIONS * gain.abs() + bias.abs(), weight)


def _attentions(encoder: Any) -> list[tuple[Any, Any]]:
    """Blocks and their attentions, where both are this project's own and unchanged."""
    blocks = [*encoder.blocks, *getattr(encoder, "little_blocks", [])]
    pairs: list[tuple[Any, Any]] = [(block, getattr(block, "attn", None)) for block in blocks]
    return [
        (block, attn) for block, attn in pairs
        if _is_own(block) and _is_own(attn) and _is_plain(attn.qkv, nn.Linear) and _is_plain(attn.proj, nn.Linear)
    ]  # fmt: skip


def _is_own(module: Any) -> bool:
    return MARK in vars(type(module)) and not _is_watched(module)


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    return type(module) is kind and not _is_watched(module)


def _is_watched(module: nn.Module) -> bool:
    """Whether a client sees what goes in or out, or changes it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _smooth_norm(norm: Any, layer: Any) -> None:
    if not (_is_plain(norm, nn.LayerNorm) and _is_plain(layer, nn.Linear)) or norm.weight is None or norm.bias is None:
        return
    factors = _factors(_normed(norm), layer.weight)
    norm.weight /= factors
    norm.bias /= factors
    layer.weight *= factors


def _smooth_values(attn: Any, size: Tensor) -> None:
    """`size` (3C,) of the queries, keys and values."""
    dim = attn.proj.in_features
    factors = _factors(size[2 * dim :], attn.proj.weight)
    little = getattr(attn, "kv_little", None)
    if little is not None and not _is_plain(little, nn.Linear):
        return
    for layer, first in ((attn.qkv, 2 * dim), (little, dim)):
        if layer is not None:
            layer.weight[first:] /= factors[:, None]
            if layer.bias is not None:
                layer.bias[first:] /= factors
    attn.proj.weight *= factors


def _normed(norm: nn.LayerNorm) -> Tensor:
    """About the largest value of each channel after a norm, (C,)."""
    return _DEVIATIONS * norm.weight.abs() + norm.bias.abs()


def _normed_size(norm: Any, layer: nn.Linear) -> Tensor | None:
    """About the largest value of each channel of a layer after a norm, (out,); None where that is not known."""
    if not _is_plain(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return None
    centre = layer.weight @ norm.bias + (0.0 if layer.bias is None else layer.bias)
    return _DEVIATIONS * (layer.weight * norm.weight).norm(dim=1) + centre.abs()


def _factors(size: Tensor, weight: Tensor) -> Tensor:
    """By what to divide channels of about `size` (in,) that `weight` (out, in) takes: powers of two around 1."""
    size, weight = size.double(), weight.double()
    # Rows of the weights have a scale each: what counts is how much of its row a column is. Measured on the rows as
    # they are applied, so that it does not matter how a channel's size is shared by activation and weight now.
    rows = (weight * size).norm(dim=1, keepdim=True)
    column = (weight.abs() / rows.clamp(min=1e-300)).amax(dim=0)
    alive = (size > 0) & (column > 0)
    wanted = size.log2() * _SHARE - column.log2() * (1 - _SHARE)
    wanted = torch.where(alive, wanted - wanted[alive].median(), 0.0) if alive.any() else torch.zeros_like(size)
    return torch.exp2(wanted.round().clamp(-16, 16)).float()
