"""Segment Anything with a big.LITTLE image encoder (arXiv 2410.10267)."""

from .automatic import SamAutomaticMaskGenerator
from .convert import convert_sam, load_sam, save_sam
from .encoder import BigLittleEncoder, EncoderConfig
from .errors import InputError
from .predictor import SamPredictor
from .registry import sam_model_registry

__version__ = "0.1.0"

__all__ = [
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
