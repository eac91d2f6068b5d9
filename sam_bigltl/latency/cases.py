"""What is timed: one forward pass of an image encoder, in one setting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import segment_anything
import torch
from segment_anything.modeling import Sam
from torch import nn

from ..callables import call_named
from ..devices import synchronize
from ..encoder import BigLittleEncoder
from ..errors import InputError
from ..precision import PRECISIONS, set_precision
from ..registry import ENCODERS, build_sam, sam_model_registry

SAM_MODELS = {f"sam_{key}": segment_anything.sam_model_registry[key] for key in ("vit_b", "vit_l", "vit_h")}


@dataclass(frozen=True)
class Settings:
    """What every encoder is timed at: all combinations."""

    keep_ratios: Sequence[float] = (1.0,)
    dtypes: Sequence[str] = ("float32",)
    batches: Sequence[int] = (1,)
    compiled: Sequence[bool] = (False,)


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        model, keep_ratio, dtype, batch, compiled, image_size: the setting.
        weights: "random", or the checkpoint's file name.
        parameter_bytes: of the encoder in this format.
        call: runs one forward pass and returns when it has finished.
    """

    model: str
    keep_ratio: float
    dtype: str
    image_size: int
    weights: str
    call: Callable[[], Any]
    batch: int = 1
    compiled: bool = False
    parameter_bytes: int = 0


def encoder_cases(
    name: str, encoder: nn.Module, settings: Settings, device: torch.device, weights: str = "random"
) -> list[Case]:
    """The cases of one encoder.

    SAM's own encoder, other people's, and a dense one of this project compute every token: they are listed at 1.0 only.
    int8 is for this project's encoders.

    Args:
        encoder: maps (B, 3, S, S) to (B, 256, g, g), with S its `img_size`; it is left as it was.
    """
    size = encoder.img_size
    ours = isinstance(encoder, BigLittleEncoder)
    routed = hasattr(encoder, "keep_ratio") and not encoder.is_dense
    cases = []
    for dtype in settings.dtypes:
        if dtype == "int8" and not ours:
            continue
        for compiled in settings.compiled:
            module = copy.deepcopy(encoder).eval().to(device)
            if ours:
                module.optimize(dtype, compiled)
            else:
                set_precision(module, dtype)
                if compiled:
                    module.compile(dynamic=False)
            for batch in settings.batches:
                pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
                pixels = pixels.to(device, PRECISIONS[dtype])
                for ratio in settings.keep_ratios if routed else (1.0,):
                    call = _call(module, pixels, ratio if routed else None, device)
                    cases.append(
                        Case(name, ratio, dtype, size, weights, call, batch, compiled, _bytes(module))
                    )  # fmt: skip
    return cases


def _call(module: nn.Module, pixels: torch.Tensor, ratio: float | None, device: torch.device) -> Callable[[], None]:
    def call() -> None:
        if ratio is not None:
            module.keep_ratio = ratio
        with torch.inference_mode():
            module(pixels)
        synchronize(device)

    return call


def _bytes(module: nn.Module) -> int:
    """Of parameters and of int8 layers' packed weights, which are no parameters."""
    packed = (m.in_features * m.out_features for m in module.modules() if hasattr(m, "packed"))
    return sum(p.numel() * p.element_size() for p in module.parameters()) + sum(packed)


def build(name: str, image_size: int | None = None, checkpoint: Path | None = None) -> tuple[Sam, str]:
    """A model of this project's registry or of SAM's, and what its weights are.

    Raises InputError where `image_size` is given for a model of SAM.
    """
    torch.manual_seed(0)
    if name in SAM_MODELS:
        if image_size not in (None, 1024):
            raise InputError(f"{name} takes 1024 px only: --image-size is for this project's models")
        return SAM_MODELS[name](), "random"
    if image_size is None or name not in ENCODERS or image_size == ENCODERS[name].img_size:
        sam = sam_model_registry[name](checkpoint=checkpoint)
        return sam, "random" if checkpoint is None else checkpoint.name
    if checkpoint is not None:
        raise InputError("--image-size is for random weights: leave --checkpoint out")
    config = ENCODERS[name]
    if image_size < config.patch_size or image_size % config.patch_size:
        raise InputError(f"--image-size {image_size} is no multiple of {config.patch_size}")
    return build_sam(replace(config, img_size=image_size)), "random"


def peer(name: str) -> tuple[str, nn.Module]:
    """A name and an encoder for `module:callable[@size]`, a callable without arguments that returns the encoder.

    The side of its input is `size`, else its own `img_size`. Raises InputError.
    """
    target, _, size = name.partition("@")
    encoder = call_named("--peer", target)
    if not isinstance(encoder, nn.Module):
        raise InputError(f"--peer {target} returned a {type(encoder).__name__}, not a torch.nn.Module")
    if size:
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"--peer {name}: {size!r} is no size in pixels")
        encoder.img_size = int(size)
    if not isinstance(getattr(encoder, "img_size", None), int):
        raise InputError(f"--peer {target} has no img_size: give it as {target}@1024")
    return target.rpartition(":")[2], encoder
