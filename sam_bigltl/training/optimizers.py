"""Optimizers and the learning rate's schedule."""

from __future__ import annotations

import math
import re

import torch
from segment_anything.modeling import Sam

from ..errors import InputError
from .config import LoopConfig


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr * lr`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(sam: Sam, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """Weight decay on matrices and kernels only; prompt encoder and decoder left out where they are frozen."""
    matrices, kernels, plain = [], [], []
    for name, parameter in sam.named_parameters():
        if not config.train_decoder and not name.startswith("image_encoder."):
            parameter.requires_grad_(False)
        elif parameter.ndim < 2 or re.search(r"pos_embed|rel_pos|_tokens?\.weight|point_embed|_embed\.weight", name):
            plain.append(parameter)
        else:
            (matrices if parameter.ndim == 2 else kernels).append(parameter)
    decay = config.weight_decay
    adamw = dict(lr=config.lr, betas=(0.9, 0.98), fused=True)
    if config.optimizer == "adamw":
        groups = [{"params": matrices + kernels, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, **adamw)]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon: use the optimizer adamw, or torch 2.9 or later")
    groups = [{"params": kernels, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, **adamw)]
