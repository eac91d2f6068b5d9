"""From and to other people's files: SAM's and timm's weights, the Hugging Face Hub, downloads, ONNX, the warm start.

May use `modeling`, `fast` and `data`. Names are imported when they are asked for: `convert_vit` alone needs timm, and
the names of ONNX files are read where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sam import convert_sam, describe, infer_config, load_sam, save_sam
    from .vit import convert_vit

__all__ = ["convert_sam", "convert_vit", "describe", "infer_config", "load_sam", "save_sam"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = ".vit" if name == "convert_vit" else ".sam"
    value = globals()[name] = getattr(import_module(module, __name__), name)
    return value
