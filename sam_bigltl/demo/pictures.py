"""What the page draws, as data URLs: thumbnails, and the encoder's tokens."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..modeling.routing import Route


def thumbnail_url(image: np.ndarray, height: int = 144) -> str:
    """A photograph, uint8 RGB (H, W, 3), made small, as JPEG."""
    small = Image.fromarray(image)
    small.thumbnail((4 * height, height))
    return _url(small, "JPEG", quality=80)


def stage_pictures(route: Route | None) -> list[dict[str, Any]]:
    """For every selection of `route`: "layers", "share", "tokens" and "heat".

    Its layers in words, the share of tokens that were big, a mask of those that stayed little, and their importance
    (None where no router ran); the last two are pictures of one pixel a token.
    """
    if route is None:
        return []
    stages: list[dict[str, Any]] = []
    for group in route.groups:
        grid = np.ones(route.grid[0] * route.grid[1], bool)
        chosen = group.indices[0]
        grid[chosen[chosen >= 0].cpu().numpy()] = False
        first, last = group.layers[0] + 1, group.layers[-1] + 1
        scores = None if group.scores is None else group.scores[0].float().cpu().numpy().reshape(route.grid)
        stages.append({
            "layers": f"layers {first} to {last}" if last > first else f"layer {first}",
            "share": round(1 - float(grid.mean()), 4), "tokens": _mask_url(grid.reshape(route.grid)),
            "heat": None if scores is None else _heat_url(scores),
        })  # fmt: skip
    return stages


def png_bytes(image: np.ndarray) -> bytes:
    """A uint8 array, grey, RGB or RGBA, as the bytes of a PNG."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _mask_url(mask: np.ndarray) -> str:
    """A mask (H, W) bool as a PNG of one bit, white on transparent."""
    return _url(Image.fromarray(mask), "PNG", compress_level=1, transparency=0)


def _heat_url(scores: np.ndarray) -> str:
    """Importance by rank, violet the least and yellow the most: a few tokens hold nearly all of the softmax's mass."""
    rank = scores.ravel().argsort().argsort().reshape(scores.shape)
    heat = cv2.applyColorMap((255 * rank / max(rank.max(), 1)).astype(np.uint8), cv2.COLORMAP_PLASMA)[..., ::-1]
    return _url(Image.fromarray(np.ascontiguousarray(heat)), "PNG")


def _url(image: Image.Image, form: str, **options: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
