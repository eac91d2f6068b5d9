"""SAM's two-way transformer for many prompts on one image, with everything shared that the prompts have in common.

`segment_anything`'s own forward repeats the image tokens for every prompt from the start. Here they are projected once
until the first layer writes to them, positions are projected once for all prompts, and projections of the same tokens
are one product. The modules and their weights are `segment_anything`'s; equality with its forward is tested.

Shapes: B images, P prompts each, T prompt tokens, N image tokens, C channels.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def two_way(transformer: TwoWayTransformer, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run `transformer`.

    Args:
        image, position: image tokens and their position encoding, (B, N, C).
        tokens: prompt tokens, which are also the prompts' position encoding, (B, P, T, C).

    Returns:
        prompt tokens (B * P, T, C), image tokens (B, P, N, C).
    """
    batch, prompts = tokens.shape[:2]
    position_of_tokens = queries = tokens.flatten(0, 1)  # (B * P, T, C)
    image = image[:, None]  # (B, 1, N, C) until the first layer has written to it, then (B, P, N, C)
    position = position[:, None]
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + position_of_tokens
            queries = queries + layer.self_attn(q=q, k=q, v=queries)
        queries = layer.norm1(queries)
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        k, v, q = _project(image, position, (to_image.k_proj, to_image.v_proj, to_tokens.q_proj))
        queries = layer.norm2(queries + _attend(to_image, to_image.q_proj(queries + position_of_tokens), k, v))
        queries = layer.norm3(queries + layer.mlp(queries))
        k, v = to_tokens.k_proj(queries + position_of_tokens), to_tokens.v_proj(queries)
        update = _attend(to_tokens, q.expand(-1, prompts, -1, -1).flatten(0, 1), k, v)
        image = layer.norm4(image + update.unflatten(0, (batch, prompts)))
    final = transformer.final_attn_token_to_image
    k, v = _project(image, position, (final.k_proj, final.v_proj))
    queries = queries + _attend(final, final.q_proj(queries + position_of_tokens), k, v)
    return transformer.norm_final_attn(queries), image


def _project(image: Tensor, position: Tensor, layers: tuple[nn.Linear, ...]) -> list[Tensor]:
    """Each layer on image (B, P or 1, N, C); all but the second, the values, see the positions (B, 1, N, C) too."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    parts = F.linear(image, weight, bias).chunk(len(layers), dim=-1)
    return [
        part if index == 1 else part + F.linear(position, layer.weight)
        for index, (part, layer) in enumerate(zip(parts, layers, strict=True))
    ]


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Projected q (B * P, n, c), k and v (B * P, m, c) or (B, 1 or P, m, c) -> (B * P, n, C)."""
    rows, length, width = q.shape
    if k.dim() == 4 and k.shape[1] == 1:  # image tokens that all prompts of an image share: their queries as one
        q = q.reshape(k.shape[0], -1, width)
    heads = [x.flatten(0, -3).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
    q, k, v = heads  # each (B or B * P, heads, n or P * n or m, d)
    # Not scaled_dot_product_attention: with a handful of tokens on one side it is slower, its backward most of all.
    out = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return attention.out_proj(out.transpose(1, 2).reshape(rows, length, width))
