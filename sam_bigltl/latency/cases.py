"""What is timed: one forward pass of an image encoder, in one setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


# What other people's encoders can be timed in besides float32 and bfloat16: float32 weights under bfloat16 autocast.
AUTOCAST = "autocast"


@dataclass(frozen=True)
class Job:
    """One encoder in one format: what a process of its own is asked for, so everything in it can be pickled.

    Attributes:
        model: a key of this project's registry or of SAM_MODELS, or `module:callable[@px]` where `is_peer`.
        image_size: side of the input; None is the model's own.
        dtype: of PRECISIONS, or AUTOCAST.
        native: this project's C++ kernels.
        keep_memory: whether the process keeps its freed memory; this project's encoders always do.
        batches, keep_ratios: all combinations are timed.
        threads: CPU threads; None leaves torch's choice.
    """

    model: str
    is_peer: bool = False
    image_size: int | None = None
    checkpoint: Path | None = None
    dtype: str = "float32"
    compiled: bool = False
    native: bool = False
    keep_memory: bool = True
    batches: tuple[int, ...] = (1,)
    keep_ratios: tuple[float, ...] = (1.0,)
    device: str = "cpu"
    threads: int | None = None

    def __str__(self) -> str:
        words = [self.model.rpartition(":")[2] if self.is_peer else self.model, self.dtype]
        return " ".join(words + ["native"] * self.native + ["compiled"] * self.compiled)

    def cases(self) -> list[Case]:
        """Build the encoder and list its cases.

        Encoders that compute every token (SAM's own, other people's, dense ones) are listed at keep_ratio 1.0 only.
        """
        if self.is_peer:
            return encoder_cases(*peer(self.model), self, "its own")
        sam, weights = build(self.model, self.image_size, self.checkpoint)
        return encoder_cases(self.model, sam.image_encoder, self, weights)


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        model, keep_ratio, dtype, batch, compiled, native, image_size: the setting.
        memory: "kept" where the process keeps its freed memory, else "default".
        weights: "random", or the checkpoint's file name.
        parameter_bytes: of the encoder in this format.
        call: runs one forward pass and returns when it has finished.
    """

    model: str
    keep_ratio: float
    dtype: str
    image_size: int
    weights: str
    call: Callable[[], Any] | None = None
    batch: int = 1
    compiled: bool = False
    native: bool = False
    memory: str = "kept"
    parameter_bytes: int = 0


def is_ours(name: str) -> bool:
    """Whether `name` is a model of this project's registry."""
    return name in sam_model_registry


def encoder_cases(name: str, encoder: nn.Module, job: Job, weights: str = "random") -> list[Case]:
    """The cases of `encoder`, which maps (B, 3, S, S) to (B, 256, g, g), S its `img_size`; it is left as it was."""
    device, size = torch.device(job.device), encoder.img_size
    routed = hasattr(encoder, "keep_ratio") and not encoder.is_dense
    module = copy.deepcopy(encoder).eval().to(device)
    if isinstance(encoder, BigLittleEncoder):
        module.optimize(job.dtype, job.compiled, job.native)
    else:
        set_precision(module, "float32" if job.dtype == AUTOCAST else job.dtype)
        if job.compiled:
            module.compile(dynamic=False)
    cases = []
    for batch in job.batches:
        pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        pixels = pixels.to(device, PRECISIONS.get(job.dtype, torch.float32))
        for ratio in job.keep_ratios if routed else (1.0,):
            call = _call(module, pixels, ratio if routed else None, job.dtype == AUTOCAST)
            memory = "kept" if job.keep_memory else "default"
            cases.append(
                Case(
                    name, ratio, job.dtype, size, weights, call, batch, job.compiled, job.native, memory, _bytes(module)
                )
            )
    return cases


def _call(module: nn.Module, pixels: torch.Tensor, ratio: float | None, autocast: bool) -> Callable[[], None]:
    device = pixels.device

    def call() -> None:
        if ratio is not None:
            module.keep_ratio = ratio
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
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
