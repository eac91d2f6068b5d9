"""Photographs without masks, as the encoder takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .images import read_image

if TYPE_CHECKING:  # processes that only read photographs do not load torch
    from segment_anything.modeling import Sam
    from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def is_hidden(name: str | PurePath) -> bool:
    """Whether a file, relative to where it was looked for, or a folder on the way is hidden: .thumbnails/1.jpg."""
    return any(part.startswith(".") and part != ".." for part in PurePath(name).parts)


def photos_in(folder: Path) -> list[tuple[str, Path]]:
    """The photographs in a folder and its subfolders, by the order of their paths: names relative to it, and paths."""
    found = ((each, str(each.relative_to(folder))) for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES)
    return [(name, each) for each, name in sorted(found) if not is_hidden(name)]


def preprocessed(sam: Sam, folder: str | Path, count: int, seed: int = 0) -> Iterator[Tensor]:
    """`count` random photographs of a folder (all, if there are fewer), preprocessed: each (1, 3, S, S)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with photographs")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not is_hidden(path.name))
    if not paths or count < 1:
        raise InputError(f"no photographs in {folder}" if not paths else f"at least 1 photograph, not {count}")
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    for index in sorted(chosen):
        yield preprocess(sam, read_image(paths[index]))


def preprocess(sam: Sam, pixels: np.ndarray) -> Tensor:
    """One photograph, uint8 RGB (H, W, 3), as the encoder takes it: (1, 3, S, S)."""
    import torch
    from segment_anything.utils.transforms import ResizeLongestSide

    resized = ResizeLongestSide(sam.image_encoder.img_size).apply_image(pixels)
    return sam.preprocess(torch.as_tensor(resized, device=sam.device).permute(2, 0, 1))[None]
