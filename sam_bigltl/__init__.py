"""Segment Anything with a big.LITTLE image encoder (arXiv 2410.10267)."""

from typing import Any

from .automatic import SamAutomaticMaskGenerator
from .convert import convert_sam, load_sam, save_sam
from .encoder import BigLittleEncoder, EncoderConfig
from .errors import InputError
from .predictor import SamPredictor
from .registry import sam_model_registry

__version__ = "0.1.0"

__all__ = [
    "BigLittleClassifier",
    "BigLittleEncoder",
    "EncoderConfig",
    "InputError",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "convert_sam",
    "load_sam",
    "sam_model_registry",
    "save_sam",
]


def __getattr__(name: str) -> Any:
    """BigLittleClassifier, imported when it is asked for: it alone needs timm."""
    if name != "BigLittleClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .classifier import BigLittleClassifier

    return BigLittleClassifier
