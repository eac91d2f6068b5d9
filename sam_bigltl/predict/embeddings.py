"""Image embeddings as safetensors files that only the model that made them will read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from ..convert.checkpoints import check_tensors
from ..convert.fingerprint import fingerprint
from ..data.files import utf8_path, whole_path
from ..errors import InputError
from ..modeling.routing import Route

FORMAT = "sam_bigltl embedding 1"
SEVERAL = "sam_bigltl embeddings 1"  # of photographs by their names
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


def packed(model: Sam, embeddings: Mapping[str, Embedding]) -> bytes:
    """The content of a file of several photographs' embeddings, each (1, C, g, g), which `load` reads by their keys."""
    sizes = {key: each.sizes for key, each in embeddings.items()}
    metadata = {"format": SEVERAL, "encoder": fingerprint(model.image_encoder), "sizes": json.dumps(sizes)}
    return pack({key: each.features.detach().cpu().contiguous() for key, each in embeddings.items()}, metadata)


def load(path: str | PathLike[str], model: Sam, key: str | None = None) -> tuple[torch.Tensor, Sizes]:
    """Read what `save` wrote, or with `key` one photograph of `packed`.

    Raises InputError when it is not such a file, or another model's.
    """
    if not Path(path).is_file():
        raise InputError(f"embedding not found: {path}: write it with save_embedding")
    try:
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            kind = metadata.get("format")
            _check_key(path, kind, names, key)
            name = "features" if key is None else key
            features = file.get_tensor(name) if name in names else None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from None
    if kind not in (FORMAT, SEVERAL) or features is None:
        raise InputError(f"{path} is not an embedding: write it with save_embedding")
    if metadata.get("encoder") != fingerprint(model.image_encoder):
        raise InputError(f"{path} was made by a model with other encoder weights: load that model, or embed again")
    sizes = _parse_sizes(metadata.get("sizes", ""), key)
    grid, channels = model.prompt_encoder.image_embedding_size, model.prompt_encoder.embed_dim
    if not sizes or features.shape != (len(sizes), channels, *grid) or not features.is_floating_point():
        raise InputError(f"{path} is damaged: its tensor is not of the images that it names; embed again")
    check_tensors({"features": features}, Path(path))
    return features, sizes


def _check_key(path: str | PathLike[str], kind: str | None, names: set[str], key: str | None) -> None:
    if kind == SEVERAL and (key is None or key not in names):
        what = "name one of them" if key is None else f"none is {key!r}"
        raise InputError(f"{path} holds {len(names)} photographs ({', '.join(sorted(names)[:3])} ...): {what}")
    if kind == FORMAT and key is not None:
        raise InputError(f"{path} is one embedding: load it without a key")


def _parse_sizes(text: str, key: str | None) -> Sizes:
    """What `save` or `packed` wrote as "sizes", or [] where it is something else."""
    try:
        content = json.loads(text)
        sizes = [(tuple(original), tuple(resized)) for original, resized in (content if key is None else content[key])]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    sides = [side for pair in sizes for size in pair for side in size]
    proper = all(isinstance(side, int) and side > 0 for side in sides) and len(sides) == 4 * len(sizes)
    return sizes if proper else []
