"""Image encoders and classifiers by name, for the benchmark: SAM's, this project's, timm's, and other people's."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import segment_anything
import torch
from torch import nn

from ..convert.callables import call_named
from ..convert.registry import sam_model_registry
from ..errors import InputError
from ..modeling.registry import ENCODERS, build_sam

if find_spec("timm") is not None:
    import timm

    from ..modeling.classifier import registered

    CLASSIFIERS = tuple(registered())
else:
    CLASSIFIERS = ()

SAM_MODELS = {f"sam_{key}": segment_anything.sam_model_registry[key] for key in ("vit_b", "vit_l", "vit_h")}


def is_ours(name: str) -> bool:
    """Whether `name` is a model of this project: of its SAM registry or among its classifiers."""
    return name in sam_model_registry or name in CLASSIFIERS


def is_timm(name: str) -> bool:
    """Whether `name` is a model of timm's, not one that this project registers there."""
    return bool(CLASSIFIERS) and not is_ours(name) and ":" not in name and timm.is_model(name)


def build(name: str, image_size: int | None = None, checkpoint: Path | None = None) -> tuple[nn.Module, str]:
    """An encoder of this project's SAM registry or of SAM's, or a classifier of this project, and what its weights are.

    Raises InputError where `image_size` is given for a model of SAM, or a checkpoint for a classifier.
    """
    torch.manual_seed(0)
    if name in SAM_MODELS:
        if image_size not in (None, 1024):
            raise InputError(f"{name} takes 1024 px only: --image-size is for this project's models")
        return SAM_MODELS[name]().image_encoder, "random"
    if name in CLASSIFIERS:
        if checkpoint is not None:
            raise InputError(f"{name} is timed with random weights: leave --checkpoint out")
        _check_size(image_size or 16, 16)
        return timm.create_model(name, img_size=image_size or 224), "random"
    if image_size is None or name not in ENCODERS or image_size == ENCODERS[name].img_size:
        sam = sam_model_registry[name](checkpoint=checkpoint)
        return sam.image_encoder, "random" if checkpoint is None else checkpoint.name
    if checkpoint is not None:
        raise InputError("--image-size is for random weights: leave --checkpoint out")
    config = ENCODERS[name]
    _check_size(image_size, config.patch_size)
    return build_sam(replace(config, img_size=image_size)).image_encoder, "random"


def _check_size(side: int, patch: int) -> None:
    if side < patch or side % patch:
        raise InputError(f"--image-size {side} is no multiple of {patch}")


def peer(name: str) -> tuple[str, nn.Module]:
    """A name and an encoder: of `module:callable[@size]` or of timm's registry.

    The callable takes no arguments and returns the encoder. The side of its input is `size`, else its own. Raises
    InputError.
    """
    if is_timm(name):
        torch.manual_seed(0)
        return name, timm.create_model(name)
    target, _, size = name.partition("@")
    encoder = call_named("--peer", target)
    if not isinstance(encoder, nn.Module):
        raise InputError(f"--peer {target} returned a {type(encoder).__name__}, not a torch.nn.Module")
    if size:
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"--peer {name}: {size!r} is no size in pixels")
        encoder.img_size = int(size)  # type: ignore[assignment]  # torch's stub: tensors, modules only
    if input_side(encoder) is None:
        raise InputError(f"--peer {target} has no img_size: give it as {target}@1024")
    return target.rpartition(":")[2], encoder


def input_side(encoder: nn.Module) -> int | None:
    """Pixels a side of its input: its own `img_size`, or as timm's models tell it; None where it has neither."""
    if isinstance(side := getattr(encoder, "img_size", None), int):
        return side
    sides = getattr(getattr(encoder, "patch_embed", None), "img_size", None)
    sides = sides or (getattr(encoder, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
    return sides[0] if sides else None
