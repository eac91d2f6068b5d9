"""SAM-HQ's Sam of `segment_anything_hq`, its predictor and its generator."""

from __future__ import annotations

from typing import Any

from segment_anything_hq.modeling import Sam, TinyViT, image_encoder

from ...errors import InputError
from .anatomy import sam_anatomy
from .hq import HQEncoder
from .site import Site


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of this library."""
    model = getattr(model, "predictor", model)
    model = model if isinstance(model, Sam) else getattr(model, "model", model)
    if not isinstance(model, Sam):
        return None
    if isinstance(model.image_encoder, TinyViT):
        raise InputError("this model has a small image encoder already (TinyViT), which is no ViT of SAM's")
    return Site(model, sam_anatomy(image_encoder), HQEncoder)
