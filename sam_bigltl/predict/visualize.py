"""Pictures of masks, prompts and routing.

All images are uint8 RGB arrays of shape (H, W, 3); inputs are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..modeling.routing import Route

# Distinct on photographs and to colour-blind eyes; green and red are left to the points.
COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 114, 255), (255, 176, 0), (170, 60, 220), (0, 200, 200), (255, 105, 180), (240, 230, 60), (130, 90, 40),
    (140, 170, 255),
)  # fmt: skip
POSITIVE, NEGATIVE = (40, 200, 60), (225, 40, 40)
WHITE = (255, 255, 255)


def colour(index: int) -> tuple[int, int, int]:
    """The RGB colour of mask `index`; after the last colour they start again."""
    return COLOURS[index % len(COLOURS)]


def overlay(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float] | None] = (),
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    opacity: float = 0.5,
) -> np.ndarray:
    """The photograph with masks and prompts drawn over it.

    Args:
        image: (H, W, 3).
        masks: bool masks (H, W), each drawn in its own colour with a contour.
        boxes: x0, y0, x1, y1 in pixels; box i has the colour of mask i, None draws none.
        points: x, y in pixels, drawn as stars.
        labels: one per point, 1 green, anything else red.
        opacity: of the masks, 0 to 1.
    """
    picture = image.copy()
    width = _line_width(image)
    for index, mask in enumerate(masks):
        mask = np.ascontiguousarray(mask, dtype=bool)
        picture[mask] = (1 - opacity) * picture[mask] + opacity * np.array(colour(index))
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, WHITE, width + 1, cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, colour(index), width, cv2.LINE_AA)
    for index, box in enumerate(boxes):
        if box is None:
            continue
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), WHITE, width + 2, cv2.LINE_AA)
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour(index), width, cv2.LINE_AA)
    for point, label in zip(points, labels, strict=True):
        _star(picture, point, POSITIVE if label == 1 else NEGATIVE, 6 * width + 2)
    return picture


def routing_picture(image: np.ndarray, route: Route, image_index: int = 0) -> np.ndarray:
    """The photograph in grey: dark where tokens stayed LITTLE, else tinted by how often they went to the big path.

    The tint goes from violet (one of many selections took the token) to yellow (all did).

    Args:
        image: the photograph (H, W, 3) whose encoding took `route`.
        route: `SamPredictor.route`.
        image_index: which image of a batch.
    """
    height, width = image.shape[:2]
    counts = route.counts()[image_index].cpu().numpy()  # (gh, gw), of the padded square frame
    side = max(height, width)
    rows = np.arange(height) * counts.shape[0] // side  # token row of every pixel row
    columns = np.arange(width) * counts.shape[1] // side
    share = (counts / len(route.groups))[rows][:, columns]  # (H, W), 0 to 1
    heat = cv2.applyColorMap((70 + 185 * share).astype(np.uint8), cv2.COLORMAP_PLASMA)[..., ::-1]
    big = (share > 0)[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]  # the photograph's own colours would mix with the tint
    picture = np.where(big, 0.5 * grey + 0.5 * heat, 0.28 * grey)
    if side >= 6 * max(counts.shape):  # else the grid would hide the photograph
        lines = (np.diff(rows, prepend=rows[0]) > 0)[:, None] | (np.diff(columns, prepend=columns[0]) > 0)[None]
        picture[lines] = 0.85 * picture[lines] + 0.15 * 128
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def side_by_side(pictures: Sequence[np.ndarray], captions: Sequence[str], height: int = 360) -> np.ndarray:
    """One strip of pictures, each scaled to `height` pixels and captioned below.

    Captions are in ASCII, what is not comes out as escapes; one too wide for its picture is drawn smaller.
    """
    gap, bar = 8, 34
    panels = []
    for picture, caption in zip(pictures, captions, strict=True):
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        smaller = height < picture.shape[0]
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
        panel = np.full((height + bar, max(width, 160), 3), 255, np.uint8)
        panel[:height, :width] = scaled
        _caption(panel, caption, bar)
        panels += [panel, np.full((height + bar, gap, 3), 255, np.uint8)]
    return np.concatenate(panels[:-1], axis=1)


def _caption(panel: np.ndarray, text: str, bar: int) -> None:
    text = text.encode("ascii", "backslashreplace").decode()  # OpenCV crashes on half a surrogate pair
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.6
    (width, text_height), _ = cv2.getTextSize(text, font, scale, 1)
    scale *= min(1.0, (panel.shape[1] - 8) / max(width, 1))
    baseline = panel.shape[0] - (bar - text_height) // 2
    cv2.putText(panel, text, (4, baseline), font, scale, (20, 20, 20), 1, cv2.LINE_AA)


def _star(picture: np.ndarray, centre: Sequence[float], fill: tuple[int, int, int], radius: float) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, radius, 0.45 * radius)
    corners = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) + np.asarray(centre, float)
    polygon = [np.round(corners * 16).astype(np.int32)]  # 4 fractional bits
    cv2.fillPoly(picture, polygon, fill, cv2.LINE_AA, shift=4)
    cv2.polylines(picture, polygon, True, WHITE, max(1, round(radius / 8)), cv2.LINE_AA, shift=4)


def _line_width(image: np.ndarray) -> int:
    return max(1, round(max(image.shape[:2]) / 350))
