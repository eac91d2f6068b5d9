"""Disagreements drawn over their photographs: where only the original's mask is, and where only the tuned model's."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from .result import Disagreement

SIDE = 640  # pixels of a picture's longer side at most
QUALITY = 82
# Rare on photographs, and far apart in lightness, too: for colour-blind eyes and grey prints.
ORIGINAL, TUNED = (0, 90, 200), (255, 150, 0)
PROMPT, CASING = (255, 255, 255), (20, 20, 20)
OPACITY = 0.6
_MOST_ENLARGED = 4.0
_LEAST_REGION = 64  # pixels of the photograph


def jpeg(found: Disagreement) -> tuple[bytes, tuple[int, int]]:
    """`draw` as the bytes of a JPEG, and its width and height."""
    picture = draw(found)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "jpeg", quality=QUALITY)
    return stream.getvalue(), (picture.shape[1], picture.shape[0])


def draw(found: Disagreement) -> np.ndarray:
    """The surroundings of a prompt, uint8 RGB, SIDE pixels at most.

    Filled is what one of the two masks alone has, in the colour of that one; both have their outlines, and the prompt
    is a white box or cross.
    """
    y0, y1, x0, x1 = region(found)
    pixels = np.ascontiguousarray(found.pixels[y0:y1, x0:x1])
    scale = min(SIDE / max(pixels.shape[:2]), _MOST_ENLARGED)
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Lines are drawn after scaling, so that they are equally wide over small and large objects.
    masks = [
        cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        for mask in (found.original, found.tuned)
    ]
    first, second = masks
    for own, other, colour in ((first, second, ORIGINAL), (second, first, TUNED)):
        alone = own & ~other
        picture[alone] = np.round((1 - OPACITY) * picture[alone] + OPACITY * np.array(colour))
    for mask, colour, width in zip(masks, (ORIGINAL, TUNED), (5, 2)):  # of lines in one place both are seen
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, colour, width, cv2.LINE_AA)
    _draw_prompt(picture, found, x0, y0, scale)
    return picture


def region(found: Disagreement) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1 of the part that is drawn: both masks and the prompt, with a third of their size around."""
    height, width = found.original.shape
    prompt = np.array(found.prompt, float).reshape(-1, 2)  # of x, y
    corners = [prompt.min(axis=0), prompt.max(axis=0)]
    for mask in (found.original, found.tuned):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            corners += [np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    room = max(float((high - low).max()) / 3, (_LEAST_REGION - float((high - low).max())) / 2)
    x0, y0 = np.clip(np.floor(low - room), 0, (width - 1, height - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(high + room), (x0 + 1, y0 + 1), (width, height)).astype(int)
    return int(y0), int(y1), int(x0), int(x1)


def _draw_prompt(picture: np.ndarray, found: Disagreement, x0: int, y0: int, scale: float) -> None:
    places = [
        (round((x - x0) * scale), round((y - y0) * scale)) for x, y in np.array(found.prompt, float).reshape(-1, 2)
    ]
    for colour, width in ((CASING, 4), (PROMPT, 2)):
        if found.kind == "box":
            cv2.rectangle(picture, places[0], places[1], colour, width, cv2.LINE_AA)
        else:
            cv2.drawMarker(picture, places[0], colour, cv2.MARKER_CROSS, 20 + width, width, cv2.LINE_AA)
