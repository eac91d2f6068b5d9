"""SAM-HQ's Sam of `segment_anything_hq`, its predictor and its generator: the encoder returns the embedding and the
tokens after its global layers."""

from __future__ import annotations

from typing import Any

from segment_anything_hq.modeling import Sam, TinyViT, common, image_encoder
from torch import Tensor

from ...errors import InputError
from .anatomy import sam_anatomy
from .encoder import InPlaceEncoder
from .site import Site


class HQEncoder(InPlaceEncoder):
    """Answers as SAM-HQ's encoder."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        """(B, 3, S, S) -> (B, out_chans, g, g), and (B, g, g, C) after each global layer, in the dtype of `images`."""
        self.check_size(images)
        states = self.states(images)
        layers = [states.layers[layer].to(images.dtype) for layer in self.config.global_layers]
        return states.embedding.to(images.dtype), layers


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of this library."""
    model = getattr(model, "predictor", model)
    model = model if isinstance(model, Sam) else getattr(model, "model", model)
    if not isinstance(model, Sam):
        return None
    if isinstance(model.image_encoder, TinyViT):
        raise InputError("this model has a small image encoder already (TinyViT), which is no ViT of SAM's")
    return Site(model, sam_anatomy(image_encoder, common), HQEncoder)
