"""The model under evaluation: a checkpoint of ours or of SAM, or any object with SamPredictor's interface."""

from __future__ import annotations

from pathlib import Path

import torch

from ..convert.callables import call_named
from ..convert.sam import load_sam
from ..errors import InputError
from ..predict.predictor import SamPredictor
from .decoding import Predictor

_NEEDED = ("set_image", "predict")


def predictor_of_checkpoint(
    path: str | Path, device: torch.device, precision: str, native: bool = False
) -> SamPredictor:
    """This project's predictor with weights of ours or of SAM, its encoder in `precision`, in native kernels or not."""
    sam = load_sam(path).to(device).eval()
    sam.image_encoder.compute_in(precision, native)
    return SamPredictor(sam)


def predictor_of_callable(name: str, checkpoint: str | None, device: torch.device) -> Predictor:
    """What `module:callable` returns, called with the checkpoint's path if there is one; moved to `device`.

    Args:
        name: `package.module:callable`, or `path/to/file.py:callable`.
        checkpoint: path, or None.

    Raises:
        InputError: there is no such module or callable, it fails, or what it returns is not a predictor.
    """
    predictor = call_named("--model", name, *([checkpoint] if checkpoint else []))
    missing = [each for each in _NEEDED if not hasattr(predictor, each)]
    if missing:
        raise InputError(f"--model {name} returned a {type(predictor).__name__} without {', '.join(missing)}")
    model = getattr(predictor, "model", None)
    if isinstance(model, torch.nn.Module):
        model.to(device).eval()
    return predictor
