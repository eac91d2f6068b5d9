"""Models by name: `sam_model_registry[key](checkpoint=None)` builds a `segment_anything` Sam."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from segment_anything.modeling import Sam

from ..errors import InputError
from ..modeling.registry import DENSE, ENCODERS, build_sam

__all__ = ["DENSE", "ENCODERS", "build_sam", "default_checkpoint", "sam_model_registry"]


def _build(key: str, checkpoint: str | Path | None = None) -> Sam:
    if checkpoint is None:
        return build_sam(ENCODERS[key])
    from .sam import load_sam

    return load_sam(checkpoint, model_type=key)


sam_model_registry: dict[str, Callable[..., Sam]] = {key: partial(_build, key) for key in ENCODERS}
sam_model_registry["default"] = sam_model_registry["bigltl_h"]


def default_checkpoint() -> Path:
    """The shipped weights, `bigltl_mini.safetensors`.

    They are those of the installed package, else of this checkout's `checkpoints/`.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "weights", package.parent / "checkpoints"):
        if (folder / "bigltl_mini.safetensors").is_file():
            return folder / "bigltl_mini.safetensors"
    raise InputError("this installation has lost bigltl_mini.safetensors: install it again, or use --checkpoint PATH")
