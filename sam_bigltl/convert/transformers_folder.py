"""A Sam as a folder that transformers reads: `config.json`, `preprocessor_config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from torch import Tensor

from ..data.files import whole_file, whole_path
from ..errors import InputError
from ..modeling.encoder import EncoderConfig
from .decoder import decoder_settings
from .sam import convert_sam, finite_state
from .transformers_files import CONFIG, MEAN, PREPROCESSOR, STD
from .transformers_names import to_transformers
from .weight_files import SINGLE

_LITTLE = ("little_blocks", "transitions")
_LITTLE_IN_BLOCK = ("norm_little", "up", "gamma")


def save_transformers(sam: Sam, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write what `SamModel.from_pretrained` and `SamProcessor.from_pretrained` read, without the LITTLE path.

    Raises:
        InputError: what SamModel has no place for: a convolutional stem, a keep_ratio below 1.0, a decoder of another
            class; or a folder that cannot be written.
    """
    eps = float(getattr(sam.image_encoder.blocks[0].norm1, "eps", 1e-6))
    if not hasattr(sam.image_encoder, "config"):  # segment_anything's
        sam = convert_sam(sam)
    config = sam.image_encoder.config
    if config.stem is not None:
        raise InputError(
            "transformers' SamModel has no place for this model's convolutional stem: models of SAM's sizes "
            "(vit_b, bigltl_b and so on) can be written for it, the minis cannot"
        )
    ratio = sam.image_encoder.keep_ratio
    if isinstance(ratio, str) or min(ratio if isinstance(ratio, (tuple, list)) else [ratio]) < 1.0:
        raise InputError(
            f"keep_ratio is {ratio}, and transformers' SamModel has no place for the LITTLE path: set "
            "image_encoder.keep_ratio = 1.0 to write the big path alone"
        )
    decoder = sam.mask_decoder
    if type(decoder) is not MaskDecoder or type(decoder.transformer) is not TwoWayTransformer:
        raise InputError(f"the mask decoder is no longer SAM's own ({type(decoder).__name__}): SamModel has no other")
    if decoder.transformer.final_attn_token_to_image.internal_dim * 2 != decoder.transformer_dim:
        raise InputError("the mask decoder's attention_downsample_rate is not 2, which SamModel has in all its layers")
    state = _translate(sam, finite_state(sam, folder / SINGLE, dtype), config)
    kind = str(dtype).removeprefix("torch.")
    description = {"architectures": ["SamModel"], "model_type": "sam", "dtype": kind, "torch_dtype": kind}
    texts = {CONFIG: description | _sizes(sam, config, eps), PREPROCESSOR: _preprocessing(sam, config.img_size)}
    try:
        with whole_path(folder / SINGLE) as partial:
            save_file(state, partial, metadata={"format": "pt"})
        for name, content in texts.items():
            with whole_file(folder / name) as file:
                file.write(json.dumps(content, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None


def _translate(sam: Sam, state: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    depth, found = sam.mask_decoder.iou_prediction_head.num_layers, {}
    for name, value in state.items():
        names = to_transformers(name, depth)
        if not names and not _is_little(name):
            raise InputError(f"{name} has no place in transformers' SamModel: was the model changed after loading?")
        found.update({each: value.clone() for each in names})  # the matrix of positions twice, as files of SamModel
    return found


def _is_little(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "image_encoder" and (
        parts[1] in _LITTLE
        or (parts[1] == "blocks" and (parts[3] in _LITTLE_IN_BLOCK or parts[3:5] == ["attn", "kv_little"]))
    )


def _sizes(sam: Sam, config: EncoderConfig, eps: float) -> dict[str, Any]:
    decoder, embed = sam.mask_decoder, sam.prompt_encoder
    transformer, head, told = decoder.transformer, decoder.iou_prediction_head, decoder_settings(sam)
    image = {"image_size": config.img_size, "patch_size": config.patch_size}
    return {
        "vision_config": image | {
            "model_type": "sam_vision_model",
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
            "mlp_dim": round(config.dim * config.mlp_ratio),
            "window_size": config.window,
            "global_attn_indexes": list(config.global_layers),
            "output_channels": config.out_chans,
            "num_pos_feats": config.out_chans // 2,
            "num_channels": 3,
            "qkv_bias": True,
            "use_abs_pos": True,
            "use_rel_pos": True,
            "hidden_act": "gelu",
            "layer_norm_eps": eps,
            "attention_dropout": 0.0,
        },
        "prompt_encoder_config": image | {
            "model_type": "sam_prompt_encoder",
            "hidden_size": embed.embed_dim,
            "image_embedding_size": config.side,
            "mask_input_channels": embed.mask_downscaling[3].out_channels,
            "num_point_embeddings": len(embed.point_embeddings),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": decoder.transformer_dim,
            "num_hidden_layers": transformer.depth,
            "num_attention_heads": transformer.num_heads,
            "mlp_dim": transformer.mlp_dim,
            "attention_downsample_rate": 2,
            "num_multimask_outputs": decoder.num_multimask_outputs,
            "iou_head_depth": head.num_layers,
            "iou_head_hidden_dim": head.layers[0].out_features,
            "hidden_act": "relu",
            "layer_norm_eps": told.get("decoder_eps", 1e-5),  # SAM's; transformers' own files say 1e-6
        },
    }  # fmt: skip


def _preprocessing(sam: Sam, side: int) -> dict[str, Any]:
    mean, std = ([round(x / 255, 6) for x in values.flatten().tolist()] for values in (sam.pixel_mean, sam.pixel_std))
    if (mean, std) != (MEAN, STD):
        raise InputError("this model normalises photographs in another way than SAM: it cannot be written for SamModel")
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": side // 4},
        "mask_pad_size": {"height": side // 4, "width": side // 4},
    }
