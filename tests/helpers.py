"""Small models and pictures that several tests share."""

from __future__ import annotations

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def tiny_sam(img_size: int = 64, seed: int = 0) -> Sam:
    """A `segment_anything` Sam of two narrow layers with random weights, in eval mode."""
    torch.manual_seed(seed)
    grid = img_size // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=img_size, embed_dim=32, depth=2, num_heads=2, out_chans=32, use_rel_pos=True,
            window_size=3, global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(32, (grid, grid), (img_size, img_size), mask_in_chans=4),
        mask_decoder=MaskDecoder(
            transformer_dim=32, transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64)
        ),
    )  # fmt: skip
    for name, weight in sam.image_encoder.named_parameters():
        if "pos" in name:  # zero at birth, so that a test would not see them
            torch.nn.init.normal_(weight, std=0.2)
    for module in (sam.prompt_encoder, sam.mask_decoder):
        for weight in module.parameters():  # larger, so that masks depend visibly on the prompt
            if weight.ndim > 1:
                weight.data.mul_(2.5)
    return sam.eval()


def picture(height: int = 40, width: int = 52, seed: int = 0) -> np.ndarray:
    """A uint8 RGB picture (H, W, 3) of smooth noise."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, rng.uniform(3, 9, 3), height)[:, None]
    columns = np.linspace(0, rng.uniform(3, 9, 3), width)[None]
    noise = rng.normal(0, 0.2, (height, width, 3))
    return np.clip(128 + 70 * (np.sin(rows) + np.cos(columns) + noise), 0, 255).astype(np.uint8)
