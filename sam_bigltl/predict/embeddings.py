"""Image embeddings as safetensors files that only the model that made them will read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from ..convert.checkpoints import check_tensors
from ..convert.fingerprint import fingerprint
from ..data.files import utf8_path, whole_path
from ..errors import InputError
from ..modeling.routing import Route

FORMAT = "sam_bigltl embedding 1"
Sizes = list[tuple[tuple[int, int], tuple[int, int]]]  # (original, input) (H, W) of every image


@dataclass(frozen=True)
class Embedding:
    """What `SamPredictor.set_images` computed.

    Attributes:
        features: (B, C, g, g). sizes: of every image. route: which tokens were big, or None.
    """

    features: torch.Tensor
    sizes: Sizes
    route: Route | None = None


def save(path: str | PathLike[str], model: Sam, features: torch.Tensor, sizes: Sizes) -> None:
    """Write `features` (B, C, g, g) and the sizes of the B images. Raises InputError when `path` cannot be written."""
    metadata = {"format": FORMAT, "encoder": fingerprint(model.image_encoder), "sizes": json.dumps(sizes)}
    try:
        with whole_path(path) as partial:
            save_file({"features": features.detach().cpu().contiguous()}, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {error}") from None


def load(path: str | PathLike[str], model: Sam) -> tuple[torch.Tensor, Sizes]:
    """Read what `save` wrote. Raises InputError when it is not such a file, or another model's."""
    if not Path(path).is_file():
        raise InputError(f"embedding not found: {path}: write it with save_embedding")
    try:
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            features = file.get_tensor("features") if names == ["features"] else None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from None
    if metadata.get("format") != FORMAT or features is None:
        raise InputError(f"{path} is not an embedding: write it with save_embedding")
    if metadata.get("encoder") != fingerprint(model.image_encoder):
        raise InputError(f"{path} was made by a model with other encoder weights: load that model, or embed again")
    sizes = _parse_sizes(metadata.get("sizes", ""))
    grid, channels = model.prompt_encoder.image_embedding_size, model.prompt_encoder.embed_dim
    if not sizes or features.shape != (len(sizes), channels, *grid) or not features.is_floating_point():
        raise InputError(f"{path} is damaged: its tensor is not of the images that it names; embed again")
    check_tensors({"features": features}, Path(path))
    return features, sizes


def _parse_sizes(text: str) -> Sizes:
    """What `save` wrote as "sizes", or [] where it is something else."""
    try:
        sizes = [(tuple(original), tuple(resized)) for original, resized in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return []
    sides = [side for pair in sizes for size in pair for side in size]
    proper = all(isinstance(side, int) and side > 0 for side in sides) and len(sides) == 4 * len(sizes)
    return sizes if proper else []
