"""Names of parameters in transformers' `SamModel` and in `segment_anything`'s `Sam`: the one map between them.

The two hold the same tensors in the same shapes, so a state dict of one is a state dict of the other by other names.
Names are those of whole models. What one side lacks (the little path of our encoders, the parts that `SamHQModel`
adds) has no counterpart, and so has `pixel_mean`, which neither side saves.
"""

from __future__ import annotations

import re

# SamModel stores one matrix of positions twice, tied: the first is for the image, the second for the prompts.
SHARED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

# transformers' name -> SAM's; a star is a number. Modules have weights and, where the model has them, biases.
_MODULES = {
    "vision_encoder.patch_embed.projection": "image_encoder.patch_embed.proj",
    "vision_encoder.layers.*.layer_norm1": "image_encoder.blocks.*.norm1",
    "vision_encoder.layers.*.layer_norm2": "image_encoder.blocks.*.norm2",
    "vision_encoder.layers.*.attn.qkv": "image_encoder.blocks.*.attn.qkv",
    "vision_encoder.layers.*.attn.proj": "image_encoder.blocks.*.attn.proj",
    "vision_encoder.layers.*.mlp.lin1": "image_encoder.blocks.*.mlp.lin1",
    "vision_encoder.layers.*.mlp.lin2": "image_encoder.blocks.*.mlp.lin2",
    "vision_encoder.neck.conv1": "image_encoder.neck.0",
    "vision_encoder.neck.layer_norm1": "image_encoder.neck.1",
    "vision_encoder.neck.conv2": "image_encoder.neck.2",
    "vision_encoder.neck.layer_norm2": "image_encoder.neck.3",
    "prompt_encoder.point_embed.*": "prompt_encoder.point_embeddings.*",
    "prompt_encoder.not_a_point_embed": "prompt_encoder.not_a_point_embed",
    "prompt_encoder.no_mask_embed": "prompt_encoder.no_mask_embed",
    "prompt_encoder.mask_embed.conv1": "prompt_encoder.mask_downscaling.0",
    "prompt_encoder.mask_embed.layer_norm1": "prompt_encoder.mask_downscaling.1",
    "prompt_encoder.mask_embed.conv2": "prompt_encoder.mask_downscaling.3",
    "prompt_encoder.mask_embed.layer_norm2": "prompt_encoder.mask_downscaling.4",
    "prompt_encoder.mask_embed.conv3": "prompt_encoder.mask_downscaling.6",
    "mask_decoder.iou_token": "mask_decoder.iou_token",
    "mask_decoder.mask_tokens": "mask_decoder.mask_tokens",
    **{
        f"mask_decoder.transformer.layers.*.{attention}.{part}": f"mask_decoder.transformer.layers.*.{attention}.{part}"
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    },
    **{
        f"mask_decoder.transformer.layers.*.layer_norm{n}": f"mask_decoder.transformer.layers.*.norm{n}"
        for n in (1, 2, 3, 4)
    },
    "mask_decoder.transformer.layers.*.mlp.lin1": "mask_decoder.transformer.layers.*.mlp.lin1",
    "mask_decoder.transformer.layers.*.mlp.lin2": "mask_decoder.transformer.layers.*.mlp.lin2",
    **{
        f"mask_decoder.transformer.final_attn_token_to_image.{part}":
        f"mask_decoder.transformer.final_attn_token_to_image.{part}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    },
    "mask_decoder.transformer.layer_norm_final_attn": "mask_decoder.transformer.norm_final_attn",
    "mask_decoder.upscale_conv1": "mask_decoder.output_upscaling.0",
    "mask_decoder.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    "mask_decoder.upscale_conv2": "mask_decoder.output_upscaling.3",
}  # fmt: skip
_TENSORS = {
    SHARED[0]: _MATRIX,
    SHARED[1]: _MATRIX,
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
    "vision_encoder.layers.*.attn.rel_pos_h": "image_encoder.blocks.*.attn.rel_pos_h",
    "vision_encoder.layers.*.attn.rel_pos_w": "image_encoder.blocks.*.attn.rel_pos_w",
}
_NAMES = _TENSORS | {
    f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _MODULES.items() for kind in ("weight", "bias")
}
_TO_SAM = dict(_NAMES)
_TO_TRANSFORMERS = {ours: [name for name, other in _NAMES.items() if other == ours] for ours in _NAMES.values()}

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# The heads of the decoder: linear layers 0 ... depth - 1 in SAM, and proj_in, layers.0 ..., proj_out in transformers.
_HEAD = r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\."
_THEIR_HEAD = re.compile(_HEAD + r"(proj_in|proj_out|layers\.(\d+))\.(weight|bias)$")
_OUR_HEAD = re.compile(_HEAD + r"layers\.(\d+)\.(weight|bias)$")


def to_sam(name: str, iou_head_depth: int = 3) -> str | None:
    """The name in `segment_anything`'s Sam of a parameter of transformers' SamModel, or None where it has none.

    Args:
        name: such as "vision_encoder.layers.0.attn.qkv.weight".
        iou_head_depth: layers of the model's `iou_prediction_head`, as in `mask_decoder_config`.
    """
    if head := _THEIR_HEAD.match(name):
        last = _depth(head[1], iou_head_depth) - 1
        layer = {"proj_in": 0, "proj_out": last}.get(head[2])
        layer = int(head[3]) + 1 if layer is None else layer
        return f"{head[1]}.layers.{layer}.{head[4]}" if layer < last or head[2] == "proj_out" else None
    if _OUR_HEAD.match(name):
        return None
    return _translate(name, _TO_SAM.get(_plain(name)))


def to_transformers(name: str, iou_head_depth: int = 3) -> list[str]:
    """The names in transformers' SamModel of a parameter of `segment_anything`'s Sam: one, two of the tied matrix
    (`SHARED`), or none.

    Args:
        name: such as "image_encoder.blocks.0.attn.qkv.weight".
        iou_head_depth: layers of the model's `iou_prediction_head`.
    """
    if head := _OUR_HEAD.match(name):
        last, layer = _depth(head[1], iou_head_depth) - 1, int(head[2])
        if layer > last:
            return []
        part = "proj_in" if layer == 0 else "proj_out" if layer == last else f"layers.{layer - 1}"
        return [f"{head[1]}.{part}.{head[3]}"]
    return [found for other in _TO_TRANSFORMERS.get(_plain(name), []) if (found := _translate(name, other))]


def _depth(head: str, iou_head_depth: int) -> int:
    return iou_head_depth if head.endswith("iou_prediction_head") else 3


def _plain(name: str) -> str:
    """The name with its number, of which all but the heads' have at most one that counts, as a star."""
    return name if name in _TO_SAM or name in _TO_TRANSFORMERS else _NUMBER.sub("*", name, count=1)


def _translate(name: str, pattern: str | None) -> str | None:
    number = _NUMBER.search(name)
    return pattern.replace("*", number[0], 1) if pattern is not None and number else pattern
