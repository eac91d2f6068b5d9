"""Where the little path of an accelerated encoder comes from, which keep_ratio below 1.0 needs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ...data.images import read_image
from ...errors import InputError
from ...modeling.encoder import EncoderConfig
from ..sam import describe, load_sam
from ..warm_start import warm_start
from .encoder import InPlaceEncoder, Origin, adopt, tie
from .site import Site

Images = Iterable[np.ndarray | str | PathLike[str]]


def from_file(site: Site, path: str | Path, config: EncoderConfig, origin: Origin) -> InPlaceEncoder:
    """The encoder of a big.LITTLE file that was distilled from this model.

    Raises InputError: the file is none, or of other sizes.
    """
    found = load_sam(path).image_encoder
    if replace(found.config, little_dim=0, route_every=None) != replace(config, little_dim=0, route_every=None):
        raise InputError(f"{path} holds {describe(found.config)}, but the model has {describe(config)}")
    if found.is_dense:
        raise InputError(f"{path} has no little path either: give a big.LITTLE file, or images=... to fit one")
    return adopt(site.kind, found, origin)


def fitted(site: Site, config: EncoderConfig, origin: Origin, images: Images) -> InPlaceEncoder:
    """An encoder whose little path is fitted to photographs in closed form (`warm_start`).

    Args:
        images: uint8 RGB arrays (H, W, 3), or paths; some dozens.

    Raises:
        InputError: there are none, or one is no photograph.
    """
    with torch.random.fork_rng(devices=[]):  # the same little path on every run, whatever was drawn before
        torch.manual_seed(0)
        encoder = tie(site.kind, replace(config, little_dim=config.dim // 4, route_every=None), origin)
    if isinstance(images, np.ndarray | str | PathLike):
        raise InputError("images is a list of photographs, uint8 RGB arrays or paths: put a single one into a list")
    count = 0

    def counted() -> Iterator[Tensor]:
        nonlocal count
        for image in _preprocessed(encoder, site.model, images):
            count += 1
            yield image

    training = encoder.training
    part_of_a_sam: Any = SimpleNamespace(image_encoder=encoder.eval())
    warm_start(part_of_a_sam, counted())
    encoder.train(training)
    print(f"sam_bigltl.accelerate: the little path is fitted to {count} images", file=sys.stderr)
    return encoder


def _preprocessed(encoder: InPlaceEncoder, model: Any, images: Images) -> Iterator[Tensor]:
    """(1, 3, S, S) each, as SAM's own preprocessing gives them."""
    reference = Sam.__new__(Sam)
    torch.nn.Module.__init__(reference)
    weight = encoder.pos_embed
    for name, fallback in (("pixel_mean", (123.675, 116.28, 103.53)), ("pixel_std", (58.395, 57.12, 57.375))):
        value = getattr(model, name, None)
        value = torch.tensor(fallback).view(3, 1, 1) if value is None else value
        reference.register_buffer(name, value.to(weight.device, torch.float32))
    reference.image_encoder = SimpleNamespace(img_size=encoder.config.img_size)
    resize = ResizeLongestSide(encoder.config.img_size)
    for index, image in enumerate(images):
        if not isinstance(image, np.ndarray | str | PathLike):
            kind = f"{type(image).__module__.split('.')[0]} {type(image).__name__}"
            raise InputError(f"image {index} is a {kind}: give uint8 RGB arrays (height, width, 3), or paths")
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            kind = f"{pixels.dtype} {pixels.shape}"
            raise InputError(f"image {index} is {kind}: give uint8 RGB arrays (height, width, 3), or paths")
        resized = torch.as_tensor(resize.apply_image(pixels), device=weight.device).permute(2, 0, 1)
        yield reference.preprocess(resized)[None].to(weight.dtype)
