"""`segment_anything`'s Sam, its predictor and its generator of masks, and what this project builds from them."""

from __future__ import annotations

from typing import Any

from segment_anything.modeling import Sam, common, image_encoder

from .anatomy import sam_anatomy
from .site import Site


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of this library."""
    model = getattr(model, "predictor", model)
    model = model if isinstance(model, Sam) else getattr(model, "model", model)
    return Site(model, sam_anatomy(image_encoder, common)) if isinstance(model, Sam) else None
