"""What a model's weights are told apart by."""

from __future__ import annotations

import hashlib

import torch


def fingerprint(encoder: torch.nn.Module) -> str:
    """A sha256 over the names, shapes and about 16 values of every weight of `encoder`.

    It does not change with the device or with a cast to bfloat16.
    """
    digest, samples = hashlib.sha256(), []
    for name, weight in encoder.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)};".encode())
        flat = weight.detach().reshape(-1)
        # Rounded, so that a model and its bfloat16 copy, which share their embeddings, agree.
        samples.append(flat[:: max(1, flat.numel() // 16)].to(torch.bfloat16))
    if samples:
        digest.update(torch.cat(samples).float().cpu().numpy().tobytes())
    return digest.hexdigest()
