"""From SAM to big.LITTLE and from files to models: conversion that keeps the function, and loading that checks."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor

from ..data.files import load_json, whole_path
from ..errors import InputError
from ..fast.quantize import Int8Linear, Int8MLP
from ..modeling.encoder import BigLittleEncoder, EncoderConfig, init_weights
from ..modeling.registry import DENSE, ENCODERS, build_sam
from .checkpoints import check_tensors, find_weights, has_tensors, load_tensors, read_checkpoint, read_metadata
from .decoder import decoder_settings, fit_decoder
from .transformers_files import CONFIG, read_transformers
from .tuned import Setting, apply_from, for_file, read_setting
from .variants import Stated, read_sam
from .weight_files import join_shards, weight_files

_PREFIX = "image_encoder."
# Names in an encoder that only its little path has.
LITTLE_PATH = re.compile(r"^(little_blocks|transitions)\.|^blocks\.\d+\.(attn\.kv_little|norm_little|up|gamma)\b")


def convert_sam(
    sam: Sam,
    little_dim: int | None = None,
    route_every: int | None = None,
    little_stream: Literal["per_group", "continuous"] = "per_group",
) -> Sam:
    """A Sam with a big.LITTLE encoder that computes the same function at keep_ratio 1.0.

    Args:
        sam: `segment_anything`'s Sam, or a dense one of ours. It is left as it was.
        little_dim: width of the little path; None is a quarter of the big one. It starts random, see `warm_start`.
        route_every: layers that share one selection of tokens; None is one selection a stage.
        little_stream: see `EncoderConfig`.

    Returns:
        a new Sam in eval mode with copies of all weights, on the device of `sam`, in float32.
    """
    encoder = sam.image_encoder
    state = {name: value.float() for name, value in encoder.state_dict().items()}
    config = infer_config({_PREFIX + name: value for name, value in state.items()}, "this model")
    if config.little_dim:
        raise InputError("this model has a little path already: there is nothing to convert")
    if isinstance(encoder, ImageEncoderViT):  # what a state dict without relative positions does not tell
        heads = encoder.blocks[0].attn.num_heads
        attends_all = tuple(i for i, block in enumerate(encoder.blocks) if block.window_size == 0)
        window = max(block.window_size for block in encoder.blocks)
        config = replace(config, img_size=encoder.img_size, num_heads=heads, global_layers=attends_all, window=window)
    little_dim = config.dim // 4 if little_dim is None else little_dim
    if little_dim <= 0:
        raise InputError(f"little_dim is positive, not {little_dim}")
    if route_every is not None and route_every < 1:
        raise InputError(f"route_every is at least 1, not {route_every}")
    if little_stream not in ("per_group", "continuous"):
        raise InputError(f"little_stream is 'per_group' or 'continuous', not {little_stream!r}")
    config = replace(config, little_dim=little_dim, route_every=route_every, little_stream=little_stream)
    big = BigLittleEncoder(config)
    init_weights(big)
    for name, missing in _load(big, state).items():
        # A ViT without relative or absolute positions or biases is one whose positions and biases are zero.
        if re.search(r"rel_pos_[hw]$|pos_embed$|attn\.qkv\.bias$", name):
            missing.zero_()
    result = Sam(big, copy.deepcopy(sam.prompt_encoder).float(), copy.deepcopy(sam.mask_decoder).float())
    result.pixel_mean, result.pixel_std = sam.pixel_mean.float().clone(), sam.pixel_std.float().clone()
    return result.to(sam.device).eval()


def _load(encoder: BigLittleEncoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy `state` into `encoder`; returns the tensors of the big path that it did not hold."""
    result = encoder.load_state_dict(state, strict=False)
    if result.unexpected_keys:
        raise InputError(f"an image encoder of another kind: {result.unexpected_keys[0]} has no place in SAM's ViT")
    own = encoder.state_dict()
    return {name: own[name] for name in result.missing_keys if not LITTLE_PATH.match(name)}


def load_sam(path: str | PathLike[str], model_type: str | None = None, tuned: bool = False) -> Sam:
    """Read a model from a file, its type inferred from the tensors.

    Args:
        path: a `.safetensors` file of ours, a SAM checkpoint (`.pth`; SAM-HQ's without its HQ output, which is logged),
            or a file or folder of transformers' `SamModel`; all but ours become the dense model of their type. The
            tensors may lie under a key such as "model" or "state_dict", have a prefix such as "module.", and lie in
            several files with an index. Beside transformers' names, `config.json` is read where there is one; of a
            folder that `save_pretrained` wrote, its `keep_ratio`.
        model_type: the key of `sam_model_registry` that the file must hold. A `bigltl_*` key also takes the checkpoint
            of the SAM that it converts from; its little path then starts random.
        tuned: run as the setting says that `sam-bigltl tune` (or `save_sam`) has written into the file: its number
            format, its C++ kernels and its keep_ratio, for inference on the CPU. Never in another way: where the file
            has no setting, or this machine cannot run it, it raises InputError.

    Raises:
        InputError: one line, for a file that is missing, broken, no Sam, of another type, or with values that are not
            finite.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(f"load_sam reads a file or folder: give its path, not a {type(path).__name__}")
    path = Path(path)
    setting = read_setting(path) if tuned else None  # first: it takes no time
    state, stated = _read_state(path)
    try:
        config = infer_config(state, str(path))
    except InputError:
        raise
    except (ValueError, IndexError, ArithmeticError):
        raise InputError(f"{path} holds tensors of SAM's names, but not of shapes that fit together") from None
    told = {name: getattr(stated, name) for name in ("num_heads", "global_layers", "window")}
    config = replace(config, **{name: value for name, value in told.items() if value is not None})
    if stated.route_every is not None:
        finer = replace(config, route_every=stated.route_every)
        if finer.groups != config.groups and len(finer.groups) == len(config.groups):
            config = finer
    if model_type is not None and config != ENCODERS[model_type]:
        if config != ENCODERS.get(DENSE.get(model_type, "")):
            raise InputError(f"{path} holds {describe(config)}, not {model_type}: load it as what it is")
        sam = convert_sam(_build(config, state, stated, path))
    else:
        sam = _build(config, state, stated, path)
    if path.is_dir() and (ratio := _keep_ratio(path)) is not None:
        sam.image_encoder.keep_ratio = ratio
    if setting is not None:
        apply_from(path, sam.image_encoder, setting)
    return sam


def _keep_ratio(folder: Path) -> Any:
    """What the configuration of a folder of ours says of `keep_ratio`; None without one."""
    path, repair = folder / CONFIG, "delete it, or write the folder again"
    config = load_json(path, "configuration", repair, repair) if path.is_file() else None
    # transformers' configurations have a model_type.
    return config.get("keep_ratio") if isinstance(config, dict) and "model_type" not in config else None


def save_sam(sam: Sam, path: str | Path, dtype: torch.dtype = torch.float32, setting: Setting | None = None) -> None:
    """Write a model's tensors as safetensors, floating point ones as `dtype`; whole or not at all.

    `setting` goes into the file, for `load_sam(path, tuned=True)`: how its encoder runs best. The weights stay as they
    are, so that the file can be run in any other way, too.
    """
    path = Path(path)
    state = finite_state(sam, path, dtype)
    config = getattr(sam.image_encoder, "config", None) or infer_config(state, str(path))
    # Tensors tell the number of routing groups, which several values of route_every can share.
    about = {"model": describe(config), "route_every": config.route_every} | decoder_settings(sam)
    if setting is not None:
        about["setting"] = for_file(setting, config)
    try:
        with whole_path(path) as partial:
            # One entry: several come in any order.
            save_file(state, partial, metadata={"sam_bigltl": json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def finite_state(sam: Sam, path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a model on the CPU, floating point ones as `dtype`; InputError where one cannot be written so."""
    if any(isinstance(module, (Int8Linear, Int8MLP)) for module in sam.modules()):
        raise InputError(
            f"{path} is not written: int8 layers have no weights to write; save it before optimize('int8')"
        )
    state = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in sam.state_dict().items()
    }
    for name, value in state.items():
        if not value.isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise InputError(f"{path} is not written: {name} has values that are not finite, or not in {kind}")
    return state


def describe(config: EncoderConfig) -> str:
    """The registry key of a configuration, or its sizes in words."""
    for key, known in ENCODERS.items():
        if known == config:
            return key
    little = f", little width {config.little_dim}" if config.little_dim else ", dense"
    return f"an encoder of width {config.dim}, depth {config.depth}, {config.img_size} px{little}"


def _read_state(path: Path) -> tuple[dict[str, Tensor], Stated]:
    """The tensors of a file or folder by SAM's names, and what it says beside."""
    files = weight_files(path)
    contents, about = zip(*(read_checkpoint(file, _load_file) for file in files))
    content = contents[0] if len(files) == 1 else join_shards(list(contents), path)
    theirs = not has_tensors(content, "image_encoder") and has_tensors(content, "vision_encoder")
    state = find_weights(content, "vision_encoder" if theirs else "image_encoder", path)
    check_tensors(state, path)
    # Of a part that was wrapped alone; no name of SAM's has such a component.
    state = {name.replace(".module.", "."): value for name, value in state.items()}
    if theirs:
        return read_transformers(state, path, files[0].parent)
    return read_sam(state, path), Stated.of(about[0])


def _load_file(path: Path) -> tuple[Any, dict[str, Any]]:
    return load_tensors(path), read_metadata(path)


def _build(config: EncoderConfig, state: dict[str, Tensor], stated: Stated, path: Path) -> Sam:
    try:
        with torch.device("meta"):  # a file can imply a model of any size: nothing is allocated before the tensors fit
            sam = build_sam(config)
            fit_decoder(sam, state, stated.decoder_heads, stated.decoder_eps)
            sam.load_state_dict(state, assign=True)
    except Exception as error:  # of whatever module the sizes do not suit
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path} looks like {describe(config)}, but its tensors do not fit: {detail}") from None
    sam = build_sam(config)
    fit_decoder(sam, state, stated.decoder_heads, stated.decoder_eps)
    sam.load_state_dict(state)  # to float32
    return sam


def infer_config(state: dict[str, Tensor], source: str) -> EncoderConfig:
    """The encoder that a Sam's tensors belong to.

    Args:
        state: state dict of a Sam.
        source: where it comes from, for the message.

    Raises:
        InputError: no Sam with a ViT encoder.
    """
    shapes = {name[len(_PREFIX) :]: tuple(value.shape) for name, value in state.items() if name.startswith(_PREFIX)}
    needed = ("pos_embed", "neck.0.weight", "blocks.0.mlp.lin1.weight", "blocks.0.attn.qkv.weight")
    if absent := [name for name in needed if name not in shapes]:
        if source != "this model" or absent != ["pos_embed"]:
            raise InputError(f"{source} holds no SAM with a ViT image encoder: it has no {_PREFIX}{absent[0]}")
    out_chans, dim = shapes["neck.0.weight"][:2]
    layers = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    depth = len(layers)
    if layers != set(range(depth)):
        raise InputError(f"{source} lacks layers: of {max(layers) + 1} it holds {depth}")
    side = shapes["pos_embed"][1] if "pos_embed" in shapes else 0
    tables = [shapes.get(f"blocks.{layer}.attn.rel_pos_h", (2 * side - 1, dim)) for layer in range(depth)]
    sizes = [(table[0] + 1) // 2 for table in tables]
    stem: tuple[int, ...] | Literal["mobile"] | None = None
    patch = shapes.get("patch_embed.proj.weight", (0, 0, 16, 16))[-1]
    if any(name.startswith("patch_embed.taps.") for name in shapes):
        stem = "mobile"
    elif any(name.startswith("patch_embed.layers.") for name in shapes):
        patch = 16
        convs = [shape for name, shape in shapes.items() if re.fullmatch(r"patch_embed\.layers\.\d+\.0\.weight", name)]
        stem = tuple(shape[0] for shape in convs)
    config = EncoderConfig(
        img_size=side * patch,
        dim=dim,
        depth=depth,
        num_heads=max(1, dim // tables[0][1]),
        global_layers=tuple(layer for layer, size in enumerate(sizes) if size == side),
        window=next((size for size in sizes if size != side), 0),
        patch_size=patch,
        mlp_ratio=shapes["blocks.0.mlp.lin1.weight"][0] / dim,
        out_chans=out_chans,
        stem=stem,
        little_dim=shapes.get("transitions.0.down.weight", (0,))[0],
    )
    groups = len({name.split(".")[1] for name in shapes if name.startswith("transitions.")})
    if groups and groups != len(config.groups):
        every = [n for n in range(1, depth + 1) if len(replace(config, route_every=n).groups) == groups]
        if not every:
            raise InputError(f"{source} has {groups} routing groups, which no route_every gives over {depth} layers")
        config = replace(config, route_every=every[0])
    if groups > 1 and "transitions.1.down.weight" not in shapes:
        config = replace(config, little_stream="continuous")
    return config
