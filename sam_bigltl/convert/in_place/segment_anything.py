"""`segment_anything`'s Sam, its predictor and its generator, those of this project, and copies of the package.

Many projects bring `segment_anything` along under another name; `verify` sees whether a copy computes the same.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from segment_anything.modeling import Sam, image_encoder
from torch import nn

from ...modeling.encoder import BigLittleEncoder
from .anatomy import sam_anatomy
from .hq import HQEncoder
from .site import Site

_CLASSES = ("ImageEncoderViT", "Block", "Attention", "PatchEmbed", "MLPBlock", "LayerNorm2d")
# A subclass in the `sam_hq` package that ComfyUI's and sd-webui's extensions bring along. It answers as SAM-HQ's.
_HQ = ("sam_hq.modeling.image_encoder", "ImageEncoderViTHQ")


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is no Sam."""
    model = getattr(model, "predictor", model)
    model = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    encoder = getattr(model, "image_encoder", None)
    if not isinstance(model, nn.Module) or not isinstance(encoder, nn.Module):
        return None
    is_ours = isinstance(encoder, BigLittleEncoder)
    namespace = image_encoder if is_ours else _namespace(type(encoder))
    if namespace is None:
        return Site(model, sam_anatomy(image_encoder)) if isinstance(model, Sam) else None
    anatomy, kind = sam_anatomy(namespace), type(encoder)
    if isinstance(encoder, HQEncoder) or (kind.__module__, kind.__name__) == _HQ:
        return Site(model, replace(anatomy, classes=anatomy.classes | {"": (kind,)}), HQEncoder)
    return Site(model, anatomy)


def _namespace(kind: type) -> Any:
    """The module of the encoder's class, or of its base, if it has all of `segment_anything`'s classes."""
    for base in kind.__mro__:
        module = sys.modules.get(base.__module__)
        if base.__name__ == _CLASSES[0] and all(hasattr(module, name) for name in _CLASSES):
            return module
    return None
