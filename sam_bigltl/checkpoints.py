"""Files of weights, read without executing anything in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import InputError
from .files import utf8_path


def load_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain containers. Anything else in the file is refused."""
    return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path, load: Callable[[Path], Any] = load_torch) -> Any:
    """`load(path)`, where `load` executes nothing of the file; raises InputError if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are then refused
            with utf8_path(path) as readable:
                return load(readable)
    except Exception:  # on noise the unpickler raises whatever its first bytes happen to mean
        raise InputError(f"{path} cannot be read as a checkpoint: it is truncated, damaged or no such file") from None
