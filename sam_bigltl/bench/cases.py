"""What is timed: one forward pass of an image encoder or of a classifier, in one setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..fast.devices import synchronize
from ..fast.precision import PRECISIONS, set_precision
from ..fast.quantize import Int8Linear
from ..modeling.trunk import Trunk
from .models import build, input_side, peer

# What other people's encoders can be timed in besides float32 and bfloat16: float32 weights under bfloat16 autocast.
AUTOCAST = "autocast"


@dataclass(frozen=True)
class Job:
    """One encoder in one format: what a process of its own is asked for, so everything in it can be pickled.

    Attributes:
        model: what `models.build` takes, or where `is_peer` what `models.peer` takes.
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
        encoder, weights = build(self.model, self.image_size, self.checkpoint)
        return encoder_cases(self.model, encoder, self, weights)


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


def encoder_cases(name: str, encoder: nn.Module, job: Job, weights: str = "random") -> list[Case]:
    """The cases of `encoder`, which takes images (B, 3, S, S), S as `input_side` has it; it is left as it was."""
    device, size = torch.device(job.device), input_side(encoder)
    assert size is not None
    routed = hasattr(encoder, "keep_ratio") and not encoder.is_dense
    module = copy.deepcopy(encoder).eval().to(device)
    if isinstance(module, Trunk):
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
            module.keep_ratio = ratio  # type: ignore[assignment]  # torch's stub knows tensors and modules only
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            module(pixels)
        synchronize(device)

    return call


def _bytes(module: nn.Module) -> int:
    """Of parameters and of int8 layers' packed weights, which are no parameters."""
    packed = (m.in_features * m.out_features for m in module.modules() if isinstance(m, Int8Linear))
    return sum(p.numel() * p.element_size() for p in module.parameters()) + sum(packed)
