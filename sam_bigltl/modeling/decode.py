"""SAM's prompt encoder and mask decoder over several images and prompts at once.

`segment_anything` decodes the prompts of one image a call. These functions run its modules, untouched, on B images
with P prompts each in one pass, for training and for evaluation, and accept embeddings that cover a part of the frame
(training on crops).
Equality with the classes' own forward is tested.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from .two_way import two_way

# Labels of prompt tokens. Boxes are two corner tokens, as in SAM.
NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3

_TOKENS = 1024  # image tokens that are upscaled at once


def embed_prompts(prompt_encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Sparse prompt tokens.

    Args:
        coords: (..., T, 2) x, y in pixels of the model's input frame.
        labels: (..., T) of the labels above.

    Returns:
        (..., T, embed_dim). SAM ends prompts without a box with one NOT_A_POINT token: the caller does so too.
    """
    weights = [prompt_encoder.not_a_point_embed.weight, *(e.weight for e in prompt_encoder.point_embeddings)]
    # Positions need float32: the sine of a bfloat16 phase is noise.
    with torch.autocast(coords.device.type, enabled=False):
        position = prompt_encoder.pe_layer.forward_with_coords(
            coords.float().flatten(0, -3) + 0.5, prompt_encoder.input_image_size
        )
    position = position.view(*coords.shape[:-1], position.shape[-1]) * (labels >= 0)[..., None]
    return position + torch.cat(weights)[labels + 1]


def dense_position(prompt_encoder: PromptEncoder, offsets: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position encoding of image tokens, cut to each image's part of the frame.

    Args:
        offsets: (B, 2) first row and column of the part, in tokens.
        grid: rows and columns of the part.

    Returns:
        (B, embed_dim, *grid)
    """
    with torch.autocast(offsets.device.type, enabled=False):
        whole = prompt_encoder.get_dense_pe()[0]  # (embed_dim, G, G)
    rows = offsets[:, 0, None] + torch.arange(grid[0], device=offsets.device)  # (B, gh)
    columns = offsets[:, 1, None] + torch.arange(grid[1], device=offsets.device)
    return whole[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def decode(
    decoder: MaskDecoder,
    prompt_encoder: PromptEncoder,
    embeddings: Tensor,
    position: Tensor,
    sparse: Tensor,
    choose: Callable[[Tensor], Tensor] | None = None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of the decoder's four outputs.

    Args:
        embeddings, position: (B, C, gh, gw).
        sparse: prompt tokens (B, P, T, C).
        choose: from the predicted IoU (B, P, 4), the outputs that masks are wanted of, int64 (B, P, k); None for all.
        dense: embeddings of mask inputs (B, C, gh, gw), as the prompt encoder gives them; None without mask inputs.

    Returns:
        mask logits (B, P, k, 4 gh, 4 gw), output 0 being the single mask; predicted IoU (B, P, 4).
    """
    image, kernels, iou = read_prompts(decoder, prompt_encoder, embeddings, position, sparse, dense)
    if choose is not None:
        kernels = kernels.gather(2, choose(iou)[..., None].expand(-1, -1, -1, kernels.shape[-1]))
    masks = draw(decoder, image.flatten(0, 1), kernels.flatten(0, 1), embeddings.shape[-2:])
    return masks.unflatten(0, iou.shape[:2]), iou


def read_prompts(
    decoder: MaskDecoder,
    prompt_encoder: PromptEncoder,
    embeddings: Tensor,
    position: Tensor,
    sparse: Tensor,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of `decode`, with its arguments: all but the masks.

    Returns:
        each prompt's image tokens (B, P, N, C); what its four masks are products with (B, P, 4, C / 8); predicted IoU
        (B, P, 4).
    """
    batch, prompts = sparse.shape[:2]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(batch, prompts, -1, -1), sparse], dim=2)
    image = embeddings + (prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1) if dense is None else dense)
    if torch.is_autocast_enabled(image.device.type):  # else every one of its image-sized sums is a float32 one
        dtype = torch.get_autocast_dtype(image.device.type)
        image, position = image.to(dtype), position.to(dtype)
    image, position = (x.flatten(2).transpose(1, 2).contiguous() for x in (image, position))  # (B, gh * gw, C)
    hidden, image = two_way(decoder.transformer, image, position, tokens)
    iou = decoder.iou_prediction_head(hidden[:, 0])
    kernels = torch.stack([mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    return image, kernels.unflatten(0, (batch, prompts)), iou.unflatten(0, (batch, prompts))


def draw(decoder: MaskDecoder, image: Tensor, kernels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The second half of `decode`: mask logits of n prompts.

    Args:
        image: each prompt's image tokens, (n, gh * gw, C); kernels: (n, k, C / 8); grid: gh, gw.

    Returns:
        (n, k, 4 gh, 4 gw)
    """
    gh, gw = grid
    # A few prompts at a time, so that what lies between the image tokens and the masks stays in the cache.
    rows = max(1, _TOKENS // (gh * gw))
    parts = zip(image.split(rows), kernels.split(rows), strict=True)
    masks = torch.cat([_upscale(decoder, x).flatten(1, -2) @ kernel.transpose(1, 2) for x, kernel in parts])
    masks = masks.view(-1, gh, gw, 2, 2, 2, 2, kernels.shape[1])
    return masks.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(image), kernels.shape[1], 4 * gh, 4 * gw)


def _upscale(decoder: MaskDecoder, x: Tensor) -> Tensor:
    """`decoder.output_upscaling` on tokens (n, N, C) -> (n, N, 2, 2, 2, 2, C / 8).

    A transposed convolution of kernel and stride 2 is a linear layer that gives each token 2 x 2 of its own. Row and
    column of the first one come before those of the second; keeping them apart leaves out every change of layout.
    """
    first, norm, activation, second, last_activation = decoder.output_upscaling
    x = _linear_2x2(first, x)
    x = activation(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    return last_activation(_linear_2x2(second, x))


def _linear_2x2(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """(..., C) -> (..., 2, 2, out): the row and column come last, before the channels."""
    assert layer.bias is not None  # SAM's have one
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * out, C)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (2, 2, -1))
