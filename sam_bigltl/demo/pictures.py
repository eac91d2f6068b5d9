"""What the page draws, as data URLs: the photograph, masks, and the encoder's tokens."""

from __future__ import annotations

import base64
from io import BytesIO

import cv2
import numpy as np
from PIL import Image

from ..modeling.routing import Route


def photo_url(image: np.ndarray, quality: int = 90) -> str:
    """A photograph, uint8 RGB (H, W, 3), as JPEG."""
    return _url(Image.fromarray(image), "JPEG", quality=quality)


def mask_url(mask: np.ndarray) -> str:
    """A mask (H, W) bool as a PNG of one bit, white on transparent: the page gives it its colour."""
    return _url(Image.fromarray(mask), "PNG", compress_level=1, transparency=0)


def regions_url(labels: np.ndarray, colours: np.ndarray) -> str:
    """Regions (H, W) uint16, 0 for none and i + 1 for `colours[i]`, as a half-transparent PNG with white outlines."""
    picture = np.zeros((*labels.shape, 4), np.uint8)
    inside = labels > 0
    picture[inside, :3] = colours[labels[inside] - 1]
    picture[inside, 3] = 130
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    picture[edge] = 255
    return _url(Image.fromarray(picture), "PNG", compress_level=3)


def stage_pictures(route: Route | None) -> list[dict[str, object]]:
    """For every selection of `route`: "layers", "share", "tokens" and "heat".

    Its layers in words, the share of tokens that were big, a mask of those that stayed little, and their importance
    (None where no router ran); the last two are pictures of one pixel a token.
    """
    if route is None:
        return []
    stages: list[dict[str, object]] = []
    for group in route.groups:
        grid = np.ones(route.grid[0] * route.grid[1], bool)
        chosen = group.indices[0]
        grid[chosen[chosen >= 0].cpu().numpy()] = False
        first, last = group.layers[0] + 1, group.layers[-1] + 1
        scores = None if group.scores is None else group.scores[0].float().cpu().numpy().reshape(route.grid)
        stages.append({
            "layers": f"layers {first} to {last}" if last > first else f"layer {first}",
            "share": round(1 - float(grid.mean()), 4), "tokens": mask_url(grid.reshape(route.grid)),
            "heat": None if scores is None else _heat_url(scores),
        })  # fmt: skip
    return stages


def _heat_url(scores: np.ndarray) -> str:
    """Importance by rank, violet the least and yellow the most: a few tokens hold nearly all of the softmax's mass."""
    rank = scores.ravel().argsort().argsort().reshape(scores.shape)
    heat = cv2.applyColorMap((255 * rank / max(rank.max(), 1)).astype(np.uint8), cv2.COLORMAP_PLASMA)[..., ::-1]
    return _url(Image.fromarray(np.ascontiguousarray(heat)), "PNG")


def png_bytes(image: np.ndarray) -> bytes:
    """A uint8 array, grey, RGB or RGBA, as the bytes of a PNG."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """`content` of media type `kind` as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _url(image: Image.Image, form: str, **options: object) -> str:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return data_url(buffer.getvalue(), f"image/{form.lower()}")
