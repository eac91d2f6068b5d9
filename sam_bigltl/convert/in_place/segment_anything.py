"""`segment_anything`'s Sam, its predictor and its generator of masks, and what this project builds from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segment_anything.modeling import Sam, common, image_encoder

from .anatomy import sam_anatomy
from .hq import HQEncoder
from .site import Site

# A subclass in the `sam_hq` package that ComfyUI's and sd-webui's extensions bring along. It answers as SAM-HQ's.
_HQ = ("sam_hq.modeling.image_encoder", "ImageEncoderViTHQ")


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of this library."""
    model = getattr(model, "predictor", model)
    model = model if isinstance(model, Sam) else getattr(model, "model", model)
    if not isinstance(model, Sam):
        return None
    anatomy = sam_anatomy(image_encoder, common)
    kind = type(model.image_encoder)
    if isinstance(model.image_encoder, HQEncoder) or (kind.__module__, kind.__name__) == _HQ:
        return Site(model, replace(anatomy, classes=anatomy.classes | {"": (kind,)}), HQEncoder)
    return Site(model, anatomy)
