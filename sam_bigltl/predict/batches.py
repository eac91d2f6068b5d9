"""Embeddings of photographs that another process has resized, several in one call of the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .embeddings import Embedding
from .predictor import SamPredictor


@torch.no_grad()
def embed(
    predictor: SamPredictor, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> list[Embedding]:  # fmt: skip
    """The embedding of each image, for `SamPredictor.set_embedding`; equal to `set_image`'s of one after the other.

    Args:
        images: uint8 RGB (h, w, 3), as `longest_side.resized` brings them to the encoder's size.
        sizes: their (H, W) before that.
    """
    tensors = [torch.as_tensor(image.copy(), device=predictor.device).permute(2, 0, 1)[None] for image in images]
    batch = torch.cat([predictor.model.preprocess(tensor) for tensor in tensors])  # B x 3 x S x S
    both = [(size, (image.shape[0], image.shape[1])) for image, size in zip(images, sizes, strict=True)]
    predictor.reset_image()
    predictor.encode(batch, both)
    whole = predictor.get_embedding()
    return [Embedding(whole.features[index : index + 1], [size]) for index, size in enumerate(whole.sizes)]
