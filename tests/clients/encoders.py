"""`segment_anything`'s image encoder, tiny, and ours with its weights."""

from __future__ import annotations

import pytest
import torch
from little_models import enliven, small_reference_sam
from torch import nn

from sam_bigltl.convert import convert_sam
from sam_bigltl.modeling.encoder import BigLittleEncoder


@pytest.fixture
def pair():
    """`segment_anything`'s encoder and ours with its weights; windows of 3 in a grid of 4, so padded."""
    reference = small_reference_sam()
    ours = convert_sam(reference, little_dim=16).image_encoder
    enliven_little(ours)
    return reference.image_encoder, ours


def enliven_little(encoder: BigLittleEncoder) -> None:
    names = ("little_blocks", "transitions", "kv_little", "norm_little", ".up.", "gamma")
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    enliven(encoder, 3)
    kept = {name: value for name, value in state.items() if not any(part in name for part in names)}
    encoder.load_state_dict(kept, strict=False)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11))


def pictures(encoder: nn.Module, batch: int = 2) -> torch.Tensor:
    return noise(batch, 3, encoder.img_size, encoder.img_size)
