"""Files of transformers' `SamModel`, read into SAM's names; transformers itself is not needed.

What its configuration can say and SAM's encoder and decoder cannot compute is refused, never changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import load_json
from ..errors import InputError
from .transformers_names import SHARED, to_sam
from .variants import ENCODER_ALONE, Stated, refuse_adapters, without_hq

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_LARGEST = 4096  # of sizes: of the zeros that stand for absent positions, too
_DECODER_EPS = 1e-6  # of the norms in the decoder's layers, where nothing says otherwise; SAM's own have 1e-5

# What SAM's classes compute whatever a configuration says; a key that is not there has this value, too.
_FIXED: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3},
    "prompt_encoder_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_point_embeddings": 4},
    "mask_decoder_config": {"hidden_act": "relu"},
}
_PREPARED: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True,
    "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD,
}  # fmt: skip


def read_transformers(state: dict[str, Tensor], path: Path, folder: Path) -> tuple[dict[str, Tensor], Stated]:
    """A SamModel's tensors by SAM's names, complete, and what its configuration says beside.

    Args:
        state: the tensors by transformers' names.
        path: of the file or folder, for messages.
        folder: with `config.json` and `preprocessor_config.json`, where there are any.

    Raises:
        InputError: another model, one that SAM's classes do not compute, or half of one.
    """
    config = _read_config(folder)
    refuse_adapters(state, path)
    if not any(name.startswith("mask_decoder.") for name in state):
        raise InputError(f"{path} {ENCODER_ALONE}")
    state = _translate(without_hq(state, path), path)
    parts = {name: config.get(name) or {} for name in _FIXED} if config else {}
    if config:
        _check(parts, folder / CONFIG)
    vision, decoder = parts.get("vision_config", {}), parts.get("mask_decoder_config", {})
    stated = Stated(
        num_heads=vision.get("num_attention_heads"),
        global_layers=_layers(vision.get("global_attn_indexes"), vision.get("window_size"), _depth(state)),
        window=vision.get("window_size"),
        decoder_heads=decoder.get("num_attention_heads"),
        decoder_eps=decoder.get("layer_norm_eps", _DECODER_EPS),
    )
    if config:
        _check_presence(state, vision, decoder, folder / CONFIG)
    _fill(state, vision, stated, path)
    _check_size(state, parts, folder)
    return state, stated


def _read_config(folder: Path) -> dict[str, Any] | None:
    """A configuration of SAM, checked to be one; None without any."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    repair = "download it again"
    config = load_json(path, "configuration", repair, repair)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("sam", "sam_hq", "sam_vision_model", "sam_hq_vision_model"):
        raise InputError(f"{path} is of another model ({str(kind)[:40]}) than the SAM beside it: take it away")
    if "vision" in kind:
        config = {"vision_config": config}
    if not all(isinstance(config.get(part, {}), dict | None) for part in _FIXED):
        raise InputError(f"{path} is no configuration of SAM: {repair}")
    return config


def _check(parts: dict[str, dict[str, Any]], path: Path) -> None:
    for part, fixed in _FIXED.items():
        for key, value in fixed.items():
            if parts[part].get(key, value) != value:
                raise InputError(
                    f"{path} has {part}.{key} = {parts[part][key]!r:.40}, which SAM's classes do not compute "
                    f"(theirs is {value!r}): this model runs in transformers alone"
                )
    for part, key, lowest in (
        ("vision_config", "num_attention_heads", 1), ("vision_config", "window_size", 0),
        ("vision_config", "image_size", 1), ("prompt_encoder_config", "image_size", 1),
        ("mask_decoder_config", "num_attention_heads", 1),
    ):  # fmt: skip
        value = parts[part].get(key, lowest)
        if type(value) is not int or not lowest <= value <= _LARGEST:
            raise InputError(
                f"{path} has {part}.{key} = {str(value)[:40]}, and SAM needs a whole number up to {_LARGEST}"
            )
    layers = parts["vision_config"].get("global_attn_indexes", [])
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise InputError(f"{path} has vision_config.global_attn_indexes = {str(layers)[:40]}, which are no layers")
    eps = parts["mask_decoder_config"].get("layer_norm_eps", _DECODER_EPS)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise InputError(f"{path} has mask_decoder_config.layer_norm_eps = {str(eps)[:40]}, which is no small number")


def _check_presence(state: dict[str, Tensor], vision: dict[str, Any], decoder: dict[str, Any], path: Path) -> None:
    """That there are tensors of what the configuration has, and of nothing else: transformers would leave them out."""
    for key, end in (("use_rel_pos", ".attn.rel_pos_h"), ("qkv_bias", ".attn.qkv.bias"), ("use_abs_pos", ".pos_embed")):
        if not vision.get(key, True) and (name := next((name for name in state if name.endswith(end)), None)):
            raise InputError(f"{path} has vision_config.{key} = {vision[key]}, and the tensors have {name}")
    rows = {name.split(".")[3] for name in state if name.startswith("mask_decoder.transformer.layers.")}
    for part, config, depth in (("vision", vision, _depth(state)), ("mask_decoder", decoder, len(rows))):
        if (layers := config.get("num_hidden_layers", depth)) != depth:
            raise InputError(f"{path} has {part}_config.num_hidden_layers = {layers!s:.40}, and the tensors {depth}")


def _translate(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    depth = sum(bool(re.match(r"mask_decoder\.iou_prediction_head\.layers\.\d+\.weight$", name)) for name in state) + 2
    tied = [state[name] for name in SHARED if name in state]
    if len(tied) == 2 and not torch.equal(*tied):
        raise InputError(f"{path} holds {SHARED[0]} and {SHARED[1]} with other values: SAM has one matrix for both")
    found = {}
    for name, value in state.items():
        ours = to_sam(name, depth)
        if ours is None:
            raise InputError(f"{path} holds {name[:80]}, which is no part of transformers' SamModel")
        found[ours] = value
    return found


def _depth(state: dict[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})


def _layers(indexes: list[int] | None, window: int | None, depth: int) -> tuple[int, ...] | None:
    """Layers that attend to the whole image."""
    if window == 0:
        return tuple(range(depth))
    return None if indexes is None else tuple(sorted({index for index in indexes if 0 <= index < depth}))


def _fill(state: dict[str, Tensor], vision: dict[str, Any], stated: Stated, path: Path) -> None:
    """Add zeros for the biases and positions that the model does without, which compute the same."""
    depth, blocks = _depth(state), "image_encoder.blocks."
    weight = state.get("image_encoder.neck.0.weight")
    if weight is None or weight.ndim != 4:
        return  # what is missing is said where the sizes are found
    dim = weight.shape[1]
    biased = vision.get("qkv_bias", bool(vision))  # without a configuration, all or none are there
    if not biased and not any(name.startswith(blocks) and name.endswith(".attn.qkv.bias") for name in state):
        state.update({f"{blocks}{layer}.attn.qkv.bias": torch.zeros(3 * dim) for layer in range(depth)})
    size, patch = vision.get("image_size", 1024), state.get("image_encoder.patch_embed.proj.weight")
    if not vision.get("use_abs_pos", True) and patch is not None and patch.ndim == 4:
        side = size // max(1, patch.shape[-1])
        state["image_encoder.pos_embed"] = torch.zeros(1, side, side, dim)
    positions = state.get("image_encoder.pos_embed")
    if positions is None or positions.ndim != 4 or any(".attn.rel_pos_" in name for name in state):
        return
    if not vision:
        raise InputError(f"{path} has no relative positions, so that its heads are not known: put its {CONFIG} beside")
    if vision.get("use_rel_pos", True):
        return  # they are missing, and the name of the first is said where the tensors are loaded
    heads = stated.num_heads or 12
    window = 14 if stated.window is None else stated.window
    attends_all = (2, 5, 8, 11) if stated.global_layers is None else stated.global_layers
    for layer in range(depth):
        length = 2 * (positions.shape[1] if layer in attends_all else window) - 1
        for axis in "hw":
            state[f"{blocks}{layer}.attn.rel_pos_{axis}"] = torch.zeros(length, dim // heads)


def _check_size(state: dict[str, Tensor], parts: dict[str, dict[str, Any]], folder: Path) -> None:
    """That the sizes that are written down agree with the tensors, and that photographs are prepared as SAM's are."""
    positions, patch = (state.get(f"image_encoder.{name}") for name in ("pos_embed", "patch_embed.proj.weight"))
    if positions is None or patch is None or positions.ndim != 4:
        return
    side = positions.shape[1] * patch.shape[-1]
    for part in ("vision_config", "prompt_encoder_config"):
        size = parts.get(part, {}).get("image_size", side)
        if size != side:
            raise InputError(f"{folder / CONFIG} has {part}.image_size = {size}, and the tensors are of {side} px")
    for name in (PREPROCESSOR, PROCESSOR):
        if not (folder / name).is_file():
            continue
        said = load_json(folder / name, "configuration", "", "download it again")
        said = said.get("image_processor", {} if name == PROCESSOR else said) if isinstance(said, dict) else {}
        said = said if isinstance(said, dict) else {}
        wrong = [key for key, value in _PREPARED.items() if not _same(said.get(key, value), value)]
        size, padded = said.get("size"), said.get("pad_size")
        # Where the padded size is another one, transformers cannot run the model at all, and nothing is changed.
        if isinstance(size, dict) and padded == {"height": side, "width": side}:
            wrong += ["size"] * (size.get("longest_edge", side) != side)
        if wrong:
            what = f"{wrong[0]} = {said[wrong[0]]}"
            raise InputError(
                f"{folder / name} prepares photographs with {what[:80]}, and SAM does not: this model runs in "
                "transformers alone; where the file is wrong, take it away"
            )


def _same(first: Any, second: Any) -> bool:
    if isinstance(second, list):
        return isinstance(first, list) and len(first) == len(second) and all(map(_same, first, second))
    return first == second or (type(first) is float and abs(first - second) < 1e-6)
