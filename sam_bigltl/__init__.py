"""Segment Anything with a big.LITTLE image encoder (arXiv 2410.10267).

Names are imported when they are asked for: `sam_bigltl.onnx_predictor` runs without torch, and only
`BigLittleClassifier` needs timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .automatic import SamAutomaticMaskGenerator
    from .classifier import BigLittleClassifier
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

_MODULES = {
    "BigLittleClassifier": "classifier",
    "BigLittleEncoder": "encoder",
    "EncoderConfig": "encoder",
    "InputError": "errors",
    "SamAutomaticMaskGenerator": "automatic",
    "SamPredictor": "predictor",
    "convert_sam": "convert",
    "load_sam": "convert",
    "sam_model_registry": "registry",
    "save_sam": "convert",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
