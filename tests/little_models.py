"""Tiny models of ours with every weight alive, for the tests of conversion and training."""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn

from sam_bigltl.convert import convert_sam
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.registry import build_sam


def dense_config(**changes) -> EncoderConfig:
    """64 px, four layers of two stages; windows of 3 in a grid of 4, so padded."""
    fields = dict(img_size=64, dim=32, depth=4, num_heads=2, global_layers=(1, 3), window=3, out_chans=32)
    return EncoderConfig(**(fields | changes))


def enliven(encoder: nn.Module, seed: int = 0) -> None:
    """Weights at which no term of the encoder is zero or an identity, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in encoder.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.2 * noise.abs())
            elif ("norm" in name and name.endswith("weight")) or name.endswith(".1.weight"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_((0.2 if "pos" in name else 0.12) * noise)


def dense_sam(config: EncoderConfig | None = None, seed: int = 0) -> Sam:
    """A Sam of ours, in eval mode."""
    torch.manual_seed(seed)
    sam = build_sam(config or dense_config())
    enliven(sam.image_encoder, seed)
    return sam


def little_student() -> Sam:
    """`dense_sam` converted, its little path alive, at keep_ratio 0.5."""
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=1)
    sam.image_encoder.keep_ratio = 0.5
    return sam


def small_reference_sam(seed: int = 0) -> Sam:
    """`segment_anything`'s encoder, tiny, with the prompt encoder and mask decoder of SAM's own builders."""
    sam = dense_sam(seed=seed)
    sam.image_encoder = ImageEncoderViT(
        img_size=64, embed_dim=32, depth=4, num_heads=2, out_chans=32, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3), norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    enliven(sam.image_encoder, seed)
    return sam.eval()


def encoder_images(sam: Sam, batch: int = 2) -> Tensor:
    """Normalised noise (B, 3, S, S)."""
    side = sam.image_encoder.img_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def embed(sam: Sam, keep_ratio: float | None = None) -> Tensor:
    """Embeddings of `encoder_images`, at a keep ratio where the encoder has one."""
    if keep_ratio is not None:
        sam.image_encoder.keep_ratio = keep_ratio
    return sam.image_encoder(encoder_images(sam))
