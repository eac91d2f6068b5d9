"""SAM's prompt encoder and mask decoder in the sizes of given tensors: files of transformers have them in any."""

from __future__ import annotations

import re
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

_HEADS, _EPS = 8, 1e-5  # of SAM


def fit_decoder(sam: Sam, state: dict[str, Tensor], heads: int | None = None, eps: float | None = None) -> None:
    """Give `sam` a prompt encoder and a mask decoder of the sizes of `state`, where they are not SAM's own.

    Args:
        sam: in eval mode, changed in place.
        state: state dict of a whole Sam.
        heads: of the mask decoder's attention; None is SAM's.
        eps: of the norms in its layers; None is SAM's.
    """
    heads, shapes = heads or _HEADS, {name: tuple(value.shape) for name, value in state.items()}

    def rows(name: str, usual: int) -> int:
        return (shapes.get(name) or (usual,))[0]

    def count(pattern: str, usual: int) -> int:
        return len({match[0] for name in shapes if (match := re.match(pattern, name))}) or usual

    width = sam.mask_decoder.transformer_dim
    if (channels := rows("prompt_encoder.mask_downscaling.3.weight", 16)) != 16:
        old = sam.prompt_encoder
        sam.prompt_encoder = PromptEncoder(width, old.image_embedding_size, old.input_image_size, channels).eval()
    sizes = {
        "depth": count(r"mask_decoder\.transformer\.layers\.\d+\.", 2),
        "mlp_dim": rows("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2048),
        "attention_downsample_rate":
            width // rows("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", width // 2),
    }  # fmt: skip
    iou_head = {
        "iou_head_depth": count(r"mask_decoder\.iou_prediction_head\.layers\.\d+\.", 3),
        "iou_head_hidden_dim": rows("mask_decoder.iou_prediction_head.layers.0.weight", 256),
    }
    if [*sizes.values(), *iou_head.values(), heads] != [2, 2048, 2, 3, 256, _HEADS]:
        transformer = TwoWayTransformer(embedding_dim=width, num_heads=heads, **sizes)
        sam.mask_decoder = MaskDecoder(transformer_dim=width, transformer=transformer, **iou_head).eval()
    for layer in sam.mask_decoder.transformer.layers if eps is not None else ():
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            norm.eps = eps


def decoder_settings(sam: Sam) -> dict[str, Any]:
    """What the tensors of a Sam's mask decoder do not tell, where it is not SAM's: `decoder_heads`, `decoder_eps`."""
    transformer, found = sam.mask_decoder.transformer, {}
    if not isinstance(transformer, TwoWayTransformer) or not len(transformer.layers):
        return {}
    if transformer.num_heads != _HEADS:
        found["decoder_heads"] = transformer.num_heads
    if (eps := float(getattr(transformer.layers[0].norm1, "eps", _EPS))) != _EPS:
        found["decoder_eps"] = eps
    return found
