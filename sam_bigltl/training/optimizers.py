"""Optimizers and the learning rate's schedule."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import nn

from ..errors import InputError
from .config import LoopConfig


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr * lr`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return cosine(config, (step - config.warmup) / max(1, config.steps - config.warmup))


def cosine(config: LoopConfig, progress: float) -> float:
    """The learning rate after a share of the steps, without the warm-up."""
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(sam: Sam, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """Weight decay on matrices and kernels only; what is frozen is left out, and prompt encoder and decoder may be.

    Each group has a `share` of the schedule's learning rate: `stem_lr` for a pretrained stem's convolutions, else 1.
    """
    matrices: list[nn.Parameter] = []
    kernels: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    stem: list[nn.Parameter] = []
    for name, parameter in sam.named_parameters():
        if not config.train_decoder and not name.startswith("image_encoder."):
            parameter.requires_grad_(False)
        elif not parameter.requires_grad:
            continue
        elif re.match(r"image_encoder\.patch_embed\.(first|stages)\.", name):
            stem.append(parameter)
        elif parameter.ndim < 2 or re.search(r"pos_embed|rel_pos|_tokens?\.weight|point_embed|_embed\.weight", name):
            plain.append(parameter)
        else:
            (matrices if parameter.ndim == 2 else kernels).append(parameter)
    decay = config.weight_decay
    adamw = partial(torch.optim.AdamW, lr=config.lr, betas=(0.9, 0.98), fused=True)
    if config.optimizer == "adamw":
        return [adamw(_groups(matrices + kernels, plain, stem, config))]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon: use the optimizer adamw, or torch 2.9 or later")
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(_groups(kernels, plain, stem, config))]


def _groups(
    decayed: list[nn.Parameter], plain: list[nn.Parameter], stem: list[nn.Parameter], config: LoopConfig
) -> list[dict[str, Any]]:
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "share": 1.0},
        {"params": plain, "weight_decay": 0.0, "share": 1.0},
        {"params": stem, "weight_decay": 0.0, "share": config.stem_lr},
    ]
    return [group for group in groups if group["params"]]
