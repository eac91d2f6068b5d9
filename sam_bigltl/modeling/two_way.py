"""SAM's two-way transformer for many prompts on one image, without the products that prompts do not need.

`segment_anything`'s own forward repeats the image tokens for every prompt and projects each of them to keys, values and
queries. Here they are projected once for all prompts until the first layer writes to them. From then on they are not
projected at all: a prompt has a handful of tokens, so it is cheaper to bring those through the projections' weights,
q (x W)^T = (q W^T) x^T, than the thousands of image tokens. Modules and weights are `segment_anything`'s; equality
with its forward is tested.

Shapes: B images, P prompts each, T prompt tokens, N image tokens, C channels, H heads of d channels.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn


def two_way(transformer: TwoWayTransformer, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run `transformer`.

    Args:
        image, position: image tokens and their position encoding, (B, N, C).
        tokens: prompt tokens, which are also the prompts' position encoding, (B, P, T, C).

    Returns:
        prompt tokens (B * P, T, C), image tokens (B, P, N, C).
    """
    batch, prompts = tokens.shape[:2]
    place = queries = tokens.flatten(0, 1)  # (B * P, T, C)
    located = image + position  # (B, N, C) until the first layer has written to it, then (B * P, N, C)
    for index, layer in enumerate(transformer.layers):
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + place
            queries = queries + layer.self_attn(q=q, k=q, v=queries)
        queries = layer.norm1(queries)
        read = _read_shared if index == 0 else _read
        queries = layer.norm2(queries + read(layer.cross_attn_token_to_image, queries + place, located, image))
        queries = layer.norm3(queries + layer.mlp(queries))
        write = _write_shared if index == 0 else _write
        image = layer.norm4(write(layer.cross_attn_image_to_token, queries + place, queries, located, image))
        located = (image.unflatten(0, (batch, prompts)) + position[:, None]).flatten(0, 1)
    queries = queries + _read(transformer.final_attn_token_to_image, queries + place, located, image)
    return transformer.norm_final_attn(queries), image.unflatten(0, (batch, prompts))


def _read_shared(attention: Attention, queries: Tensor, located: Tensor, image: Tensor) -> Tensor:
    """Prompt tokens (B * P, T, C) attend to image tokens (B, N, C) that the prompts of an image share."""
    batch, heads = len(image), attention.num_heads
    q, k, v = (
        layer(x).view(batch, -1, heads, layer.out_features // heads).transpose(1, 2)  # (B, H, P * T or N, d)
        for layer, x in ((attention.q_proj, queries), (attention.k_proj, located), (attention.v_proj, image))
    )
    # Not scaled_dot_product_attention: with a handful of tokens on one side it is slower, its backward most of all.
    out = (q * _scale(attention) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return attention.out_proj(out.transpose(1, 2).reshape(*queries.shape[:2], -1))


def _read(attention: Attention, queries: Tensor, located: Tensor, image: Tensor) -> Tensor:
    """Prompt tokens (B * P, T, C) attend to their own image tokens (B * P, N, C)."""
    rows, count = queries.shape[:2]
    q = _by_head(attention, attention.q_proj(queries) * _scale(attention))
    # The bias of the keys adds the same to all logits of a row: softmax does not see it.
    q = _by_prompt(q @ _weights(attention, attention.k_proj), rows)  # (B * P, H * T, C)
    seen = (q @ located.transpose(1, 2)).softmax(dim=-1) @ image  # (B * P, H * T, C)
    seen = seen.unflatten(1, (-1, count)).transpose(0, 1).flatten(1, 2)  # (H, B * P * T, C)
    out = seen @ _weights(attention, attention.v_proj).transpose(1, 2)  # (H, B * P * T, d)
    out = out.transpose(0, 1).reshape(rows, count, -1) + attention.v_proj.bias  # weights of a row sum to 1
    return attention.out_proj(out)


def _write_shared(attention: Attention, keys: Tensor, values: Tensor, located: Tensor, image: Tensor) -> Tensor:
    """Image tokens (B, N, C) attend to the prompt tokens (B * P, T, C), each prompt's apart: image + result,
    (B * P, N, C)."""
    batch, rows, heads = len(image), len(keys), attention.num_heads
    q = attention.q_proj(located).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (B, H, d, N)
    k = (attention.k_proj(keys) * _scale(attention)).view(batch, -1, heads, q.shape[2]).transpose(1, 2)
    logits = (k @ q).unflatten(2, (rows // batch, -1)).transpose(1, 2).flatten(0, 1)  # (B * P, H, T, N)
    image = image[:, None].expand(-1, rows // batch, -1, -1).flatten(0, 1)
    return _add_values(attention, logits, values, image)


def _write(attention: Attention, keys: Tensor, values: Tensor, located: Tensor, image: Tensor) -> Tensor:
    """Image tokens (B * P, N, C) attend to their prompt's tokens (B * P, T, C): image + result, (B * P, N, C)."""
    k = _by_head(attention, attention.k_proj(keys) * _scale(attention))
    constant = _by_prompt(k @ attention.q_proj.bias.view(attention.num_heads, -1, 1), len(keys))  # (B * P, H * T, 1)
    k = _by_prompt(k @ _weights(attention, attention.q_proj), len(keys))  # (B * P, H * T, C)
    logits = torch.baddbmm(constant, k, located.transpose(1, 2))
    return _add_values(attention, logits.unflatten(1, (attention.num_heads, -1)), values, image)


def _add_values(attention: Attention, logits: Tensor, values: Tensor, image: Tensor) -> Tensor:
    """image (B * P, N, C) + attention with `logits` (B * P, H, T, N) to the tokens `values` (B * P, T, C)."""
    v = _by_head(attention, attention.v_proj(values))
    out = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1)).permute(1, 2, 0)  # (H, d, C)
    # The weights of each head sum to 1, so that each may carry its part of the bias.
    v = _by_prompt(v @ out + attention.out_proj.bias / attention.num_heads, len(values))  # (B * P, H * T, C)
    return torch.baddbmm(image, logits.softmax(dim=2).flatten(1, 2).transpose(1, 2), v)


def _scale(attention: Attention) -> float:
    return (attention.internal_dim // attention.num_heads) ** -0.5


def _by_head(attention: Attention, x: Tensor) -> Tensor:
    """(B * P, T, H * d) -> (H, B * P * T, d)"""
    return x.flatten(0, 1).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)


def _by_prompt(x: Tensor, rows: int) -> Tensor:
    """(H, rows * T, n) -> (rows, H * T, n)"""
    return x.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)


def _weights(attention: Attention, layer: nn.Linear) -> Tensor:
    """The weight of a projection to heads, (H, d, C)."""
    return layer.weight.unflatten(0, (attention.num_heads, -1))
