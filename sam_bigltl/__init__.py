"""Segment Anything with a big.LITTLE image encoder (arXiv 2410.10267).

Names are imported when they are asked for: `sam_bigltl.onnx_predictor` runs without torch, and only
`BigLittleClassifier` needs timm.

The rooms, each using those below it: `cli`, `demo`, `tuning`, `training`, `bulk`, `evaluation`, `bench`, `predict`,
`convert`, `modeling`, `fast` and `data`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from .convert import convert_sam, load_sam, save_sam
    from .convert.build_sam import build_sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
    from .convert.in_place import accelerate, accelerated
    from .convert.registry import sam_model_registry
    from .errors import InputError
    from .modeling.classifier import BigLittleClassifier
    from .modeling.encoder import BigLittleEncoder, EncoderConfig
    from .predict.automatic import SamAutomaticMaskGenerator
    from .predict.predictor import SamPredictor
    from .tuning.tune import tune

__version__ = "0.1.0"

_moved.install()

__all__ = [
    "BigLittleClassifier",
    "BigLittleEncoder",
    "EncoderConfig",
    "InputError",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "accelerate",
    "accelerated",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "convert_sam",
    "load_sam",
    "sam_model_registry",
    "save_sam",
    "tune",
]

_MODULES = {
    "BigLittleClassifier": "modeling.classifier",
    "BigLittleEncoder": "modeling.encoder",
    "EncoderConfig": "modeling.encoder",
    "InputError": "errors",
    "SamAutomaticMaskGenerator": "predict.automatic",
    "SamPredictor": "predict.predictor",
    "accelerate": "convert.in_place",
    "accelerated": "convert.in_place",
    "build_sam": "convert.build_sam",
    "build_sam_vit_b": "convert.build_sam",
    "build_sam_vit_h": "convert.build_sam",
    "build_sam_vit_l": "convert.build_sam",
    "convert_sam": "convert.sam",
    "load_sam": "convert.sam",
    "sam_model_registry": "convert.registry",
    "save_sam": "convert.sam",
    "tune": "tuning.tune",
}


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a finder that says so itself
        return False


# `from sam_bigltl import *` is of what is installed: without timm, or without torch, the other names are still there.
if not _is_installed("torch"):
    __all__ = ["InputError"]
elif not _is_installed("timm"):
    __all__.remove("BigLittleClassifier")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
