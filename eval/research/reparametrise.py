"""A Sam with outliers as published checkpoints have them, that computes exactly what it computed before.

Trained transformers have a few channels whose values are hundreds of times those of the rest (LLM.int8(), arXiv
2208.07339; massive activations, arXiv 2402.17762), and SAM's keys gather around two modes far from zero (PTQ4SAM, arXiv
2405.03144). A small model has little of either. Each function here puts such statistics into a model where the layers
around take them out again (the exact re-scaling of SmoothQuant, arXiv 2211.10438, run backwards):

* `concentrate`: the residual stream turned so that its strongest directions lie on one channel each. LayerNorm lets
  through every rotation that keeps the direction (1, ..., 1), once its gain is part of the layer after it.
* `scale_queries`: queries down, keys and relative positions up.
* `shift_positions`, `shift_keys`: constants that all keys of a query have alike, which the softmax does not see. A
  padded place of a window is a key as well: the bias, which is shifted.
* `scale_values`: channels of the values up, columns of the output projection down.
* `scale_norms`: channels of a norm's gain and bias up, columns of the layer after it down.
* `scale_residual`: all that is written to the residual stream up. Only the norms' epsilon can tell.

Two things have no exact form. GELU lets no scale through: hidden channels of the MLPs stay as they are. And what is
written to the stream is shared by all tokens: single tokens stay as large, beside others, as they are.

The functions change `segment_anything`'s encoder or a dense one of ours in place, in the precision of its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Generator, Tensor, nn

from sam_bigltl.errors import InputError


def reparametrised(sam: Sam, images: Tensor, seed: int = 0) -> Sam:
    """A copy of `sam` with all of the above, computed in float64 and returned in float32.

    Args:
        sam: dense; it is left as it was.
        images: preprocessed images (B, 3, S, S), which tell the strong directions of the residual stream.
        seed: of channels, factors and signs.

    Raises:
        InputError: the model has a little path.
    """
    if getattr(getattr(sam.image_encoder, "config", None), "little_dim", 0):
        raise InputError("this model has a little path: re-parametrise it before convert_sam")
    changed = copy.deepcopy(sam)
    encoder = changed.image_encoder.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        concentrate(encoder, images.double())
        scale_queries(encoder, generator)
        shift_positions(encoder, generator)
        shift_keys(encoder, generator)
        scale_values(encoder, generator)
        scale_norms(encoder, generator)
        scale_residual(encoder)
    encoder.float()
    return changed


def concentrate(encoder: Any, images: Tensor, directions: int = 2) -> None:
    """Turn the residual stream so that its `directions` strongest ones, over all layers, are a channel each.

    The strongest is nearly the same for all tokens: the massive activation of arXiv 2402.17762.
    """
    power = _power_of_stream(encoder, images)
    dim = len(power)
    turn = torch.eye(dim).to(power)
    done = [torch.ones_like(power[0]) * dim**-0.5]
    strongest = torch.linalg.eigh(power).eigenvectors.T.flip(0)[:directions]
    for number, direction in enumerate(strongest):
        target = torch.zeros(dim).to(power)
        target[(2 * number + 1) * dim // (2 * directions)] = 1
        source = turn @ direction
        for fixed in done:  # what the earlier turns put in place stays
            source, target = source - fixed * (fixed @ source), target - fixed * (fixed @ target)
        source, target = source / source.norm(), target / target.norm()
        mirror = (source - target) / (source - target).norm()
        turn = turn - 2 * torch.outer(mirror, mirror @ turn)
        done.append(target)
    for weight, bias in _writers(encoder):
        weight.copy_(torch.tensordot(turn, weight, dims=1))
        if bias is not None:
            bias.copy_(turn @ bias)
    encoder.pos_embed.copy_(encoder.pos_embed @ turn.T)
    encoder.neck[0].weight.copy_(torch.einsum("ocij,dc->odij", encoder.neck[0].weight, turn))
    for norm, layer in _normed(encoder):
        # The gain moves into the layer. The bias may not: a padded place of a window is zero instead of the norm.
        norm.bias.copy_(turn @ (norm.bias / norm.weight))
        layer.weight.copy_(layer.weight * norm.weight @ turn.T)
        norm.weight.fill_(1.0)


def scale_queries(encoder: Any, generator: Generator, channels: int = 2, factor: float = 32.0) -> None:
    """Some channels of every head: queries / `factor`, keys and relative positions * `factor`."""
    for block in encoder.blocks:
        attn = block.attn
        scale = _outliers(len(attn.proj.bias) // attn.num_heads, generator, channels, factor, factor)
        every = scale.repeat(attn.num_heads)
        _scale_rows(attn.qkv, torch.cat([1 / every, every, torch.ones_like(every)]))
        for table in (attn.rel_pos_h, attn.rel_pos_w):
            table.mul_(scale.to(table))


def shift_positions(encoder: Any, generator: Generator, size: float = 20.0) -> None:
    """A constant added to all rows of each table of relative positions, `size` times their standard deviation."""
    for block in encoder.blocks:
        for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            table.add_(table.std(dim=0).mean() * size * _signs(table.shape[1], generator).to(table))


def shift_keys(encoder: Any, generator: Generator, size: float = 20.0) -> None:
    """A constant added to every key, `size` times its channel's standard deviation, up or down: two modes."""
    for block in encoder.blocks:
        part = slice(len(block.attn.proj.bias), 2 * len(block.attn.proj.bias))
        spread = (block.attn.qkv.weight[part] * block.norm1.weight).norm(dim=1)  # of normed tokens
        block.attn.qkv.bias[part] += size * spread * _signs(len(spread), generator).to(spread)


def scale_values(
    encoder: Any, generator: Generator, channels: int = 3, low: float = 100.0, high: float = 500.0
) -> None:
    """Some channels of the values * `low` to `high`, their columns of the output projection / the same."""
    for block in encoder.blocks:
        scale = _outliers(len(block.attn.proj.bias), generator, channels, low, high)
        _scale_rows(block.attn.qkv, torch.cat([torch.ones_like(scale).repeat(2), scale]))
        block.attn.proj.weight.div_(scale.to(block.attn.proj.weight))


def scale_norms(encoder: Any, generator: Generator, channels: int = 3, low: float = 100.0, high: float = 500.0) -> None:
    """Some channels of every norm's gain and bias * `low` to `high`, their columns of the layer after it / the same."""
    for norm, layer in [*_normed(encoder), (encoder.neck[1], encoder.neck[2])]:
        scale = _outliers(len(norm.weight), generator, channels, low, high).to(norm.weight)
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
        layer.weight.div_(scale.view(-1, *[1] * (layer.weight.ndim - 2)))


def scale_residual(encoder: Any, factor: float = 50.0) -> None:
    """All that is written to the residual stream * `factor`."""
    encoder.pos_embed.mul_(factor)
    for weight, bias in _writers(encoder):
        weight.mul_(factor)
        if bias is not None:
            bias.mul_(factor)
    encoder.neck[0].weight.div_(factor)


def _writers(encoder: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weights (C, ...) and biases (C,) of the layers that write to the residual stream; beside them, `pos_embed`."""
    embed = encoder.patch_embed
    layers = [*embed.taps.values()] if hasattr(embed, "taps") else [embed.proj]
    for block in encoder.blocks:
        layers += [block.attn.proj, block.mlp.lin2]
    yield from ((layer.weight, layer.bias) for layer in layers)


def _normed(encoder: Any) -> Iterator[tuple[nn.LayerNorm, nn.Linear]]:
    """Norms of the residual stream, each with the only layer that reads it; beside them, the neck."""
    for block in encoder.blocks:
        yield from ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.lin1))


def _power_of_stream(encoder: Any, images: Tensor) -> Tensor:
    """Second moments (C, C) of what the blocks get, without each token's mean; every layer weighs the same."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        x = x - x.mean(dim=1, keepdim=True)
        seen.append(x.T @ x / x.square().sum())

    handles = [block.register_forward_pre_hook(keep) for block in encoder.blocks]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen).mean(dim=0)


def _outliers(count: int, generator: Generator, channels: int, low: float, high: float) -> Tensor:
    """Ones (count,) with `channels` of them replaced by factors between `low` and `high`."""
    scale = torch.ones(count, dtype=torch.float64)
    chosen = torch.randperm(count, generator=generator)[:channels]
    scale[chosen] = low * (high / low) ** torch.rand(len(chosen), generator=generator, dtype=torch.float64)
    return scale


def _signs(count: int, generator: Generator) -> Tensor:
    """Numbers around 1 and -1, (count,)."""
    sign = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    return sign * (1 + 0.1 * torch.randn(count, generator=generator))


def _scale_rows(layer: nn.Linear, scale: Tensor) -> None:
    layer.weight.mul_(scale.to(layer.weight)[:, None])
    layer.bias.mul_(scale.to(layer.bias))
