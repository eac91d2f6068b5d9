"""The check behind `eval/exactness.py`, on an encoder small enough for a test."""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from sam_bigltl.bench.exactness import TOLERANCE, conversion_difference, randomise_positions


def tiny_sam() -> Sam:
    """64 px, 4 x 4 tokens, windows of 3 x 3 tokens (padded), the second layer global."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=64, embed_dim=32, depth=2, num_heads=2, use_rel_pos=True, window_size=3, global_attn_indexes=(1,)
    )
    prompt_encoder = PromptEncoder(256, (4, 4), (64, 64), 16)
    decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 512))
    return Sam(encoder, prompt_encoder, decoder).eval()


def test_positions_become_nonzero_and_repeat() -> None:
    first, second = tiny_sam().image_encoder, tiny_sam().image_encoder
    randomise_positions(first)
    randomise_positions(second)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters()):
        assert torch.equal(a, b), name
        if "pos" in name:
            assert a.abs().min() > 0, name


def test_a_converted_encoder_is_equal() -> None:
    sam = tiny_sam()
    randomise_positions(sam.image_encoder)
    assert conversion_difference(sam) <= TOLERANCE
