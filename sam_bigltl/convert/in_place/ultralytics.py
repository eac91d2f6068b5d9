"""ultralytics' SAM, its SAMModel and its Predictor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from ultralytics.models.sam.modules import blocks, encoders
from ultralytics.models.sam.modules.sam import SAMModel
from ultralytics.models.sam.modules.tiny_encoder import TinyViT
from ultralytics.nn.modules import transformer

from ...errors import InputError
from .anatomy import sam_anatomy
from .encoder import InPlaceEncoder
from .site import Site


class FixedSizeEncoder(InPlaceEncoder):
    """Answers as ultralytics' encoder, at one size: for another, theirs interpolates its positions."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, out_chans, g, g), in the dtype of `images`."""
        self.check_size(images)
        return super().forward(images)


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of this library."""
    if not isinstance(model, SAMModel):
        inner = getattr(model, "model", model)  # of SAM, of a Predictor
        if inner is None:
            raise InputError("this predictor holds no model yet: call its setup_model() first")
        model = inner
    if not isinstance(model, SAMModel):
        if type(model).__name__.startswith(("SAM2", "SAM3")):
            raise InputError(f"accelerate is for the ViT of the first SAM: {type(model).__name__} has another encoder")
        return None
    if isinstance(model.image_encoder, TinyViT):
        raise InputError("this model has a small image encoder already (TinyViT), which is no ViT of SAM's")
    parts = SimpleNamespace(
        ImageEncoderViT=encoders.ImageEncoderViT, Block=blocks.Block, Attention=blocks.REAttention,
        PatchEmbed=blocks.PatchEmbed, MLPBlock=transformer.MLPBlock, LayerNorm2d=transformer.LayerNorm2d,
    )  # fmt: skip
    return Site(model, sam_anatomy(parts), FixedSizeEncoder)
