"""The model family: the sizes of every encoder, and a `segment_anything` Sam around one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from .encoder import BigLittleEncoder, EncoderConfig, init_weights

_sam = partial(EncoderConfig, img_size=1024, window=14)

ENCODERS: dict[str, EncoderConfig] = {
    "bigltl_h": _sam(dim=1280, depth=32, num_heads=16, global_layers=(7, 15, 23, 31), little_dim=320),
    "bigltl_l": _sam(dim=1024, depth=24, num_heads=16, global_layers=(5, 11, 17, 23), little_dim=256),
    "bigltl_b": _sam(dim=768, depth=12, num_heads=12, global_layers=(2, 5, 8, 11), little_dim=192),
    "bigltl_s": _sam(dim=384, depth=12, num_heads=6, global_layers=(2, 5, 8, 11), little_dim=96),
    # Trained from few photographs: a stem that saw ImageNet, and a 40 x 40 grid because small objects need pixels.
    "bigltl_mini": EncoderConfig(
        img_size=640, dim=256, depth=6, num_heads=8, global_layers=(1, 3, 5), window=8, stem="mobile", little_dim=64,
    ),
}  # fmt: skip

# The dense models they come from: no little path, keep_ratio 1.0 only.
DENSE = {"bigltl_mini": "vit_mini", "bigltl_b": "vit_b", "bigltl_l": "vit_l", "bigltl_h": "vit_h"}
ENCODERS |= {dense: replace(ENCODERS[key], little_dim=0) for key, dense in DENSE.items()}


def build_sam(config: EncoderConfig) -> Sam:
    """A Sam around a big.LITTLE encoder, randomly initialised, in eval mode.

    The prompt encoder and the mask decoder are `segment_anything`'s, with the sizes of its own builders.
    """
    encoder = BigLittleEncoder(config)
    init_weights(encoder)
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=config.out_chans,
            image_embedding_size=(config.side, config.side),
            input_image_size=(config.img_size, config.img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=config.out_chans, mlp_dim=2048, num_heads=8),
            transformer_dim=config.out_chans,
        ),
    )
    return sam.eval()
