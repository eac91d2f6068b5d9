"""The number formats that an encoder computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .kernels import round_kernels
from .quantize import quantize_encoder
from .rescale import centre_keys

# What this project's ViTs have and others lack. By hasattr: a Protocol sees no parts of a module from Python 3.12 on.
_OURS = ("blocks", "pos_embed", "keep_ratio")

# Each with the dtype of its activations. No float16: it overflows in the LayerNorms of these encoders.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}


def check_precision(name: str, device: torch.device) -> None:
    """Raise InputError where `name` is none of PRECISIONS or cannot run on `device`."""
    if name not in PRECISIONS:
        raise InputError(f"unknown dtype {name!r}: choose from {', '.join(PRECISIONS)}")
    if name == "int8" and device.type != "cpu":
        raise InputError(f"int8 runs on the CPU only, not on {device}: use bfloat16 there")


def set_precision(encoder: Any, name: str) -> nn.Module:
    """Make `encoder`, in place, compute in the format `name` of PRECISIONS; returns it.

    int8 is for inference, for this project's encoders, and cannot be undone. Raises InputError.
    """
    if name == "int8":
        if not all(hasattr(encoder, part) for part in _OURS):
            raise InputError("int8 is for this project's encoders only: convert the model first")
        check_precision(name, next(encoder.parameters()).device)
        if encoder.precision == "int8":
            return encoder
        encoder.precision = name
        return quantize_encoder(encoder)
    if getattr(encoder, "precision", "") == "int8":
        raise InputError(f"this encoder is in int8, which cannot be undone: load the model again for {name}")
    check_precision(name, torch.device("cpu"))
    if all(hasattr(encoder, part) for part in _OURS):
        encoder.precision = name
    if name == "bfloat16" and all(hasattr(encoder, part) for part in _OURS):
        centre_keys(encoder)  # while the weights have all their digits
        round_kernels(encoder)
    return encoder.to(PRECISIONS[name])
