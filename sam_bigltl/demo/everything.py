"""Everything mode on an embedding that is there already, telling how far it is, and ready to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData

from ..predict.automatic import SamAutomaticMaskGenerator
from ..predict.embeddings import Embedding
from ..predict.predictor import SamPredictor
from ..predict.thresholds import find_thresholds
from .rle import Rle, from_coco

_POINTS = 12  # a side, of the page's grid
_AT_ONCE = 16  # points: more would tell less often how far it is


class Stopped(Exception):
    """Everything mode was told to stop."""


@dataclass(frozen=True)
class Options:
    """Arguments of `SamAutomaticMaskGenerator`."""

    points_per_side: int
    pred_iou_thresh: float
    stability_score_thresh: float


def find_options(sam: Sam, images: Iterable[np.ndarray]) -> Options:
    """What the page starts with, found from photographs (H, W, 3) uint8."""
    return Options(_POINTS, *find_thresholds(sam, images))


@dataclass(frozen=True)
class Region:
    """One region: its mask at the size of the view, both scores, and the point in it that was asked with.

    `point` is in pixels of the photograph; `choice` is which of that point's three masks it is.
    """

    mask: Rle
    iou: float
    stability: float
    point: tuple[float, float]
    choice: int


def everything(
    sam: Sam,
    embedding: Embedding,
    view: tuple[int, int],
    options: Options,
    report: Callable[[float, int], None],
    stop: threading.Event,
) -> list[Region]:
    """All regions of the photograph that was embedded, the largest first.

    Args:
        view: (H, W) at which the masks are compared, and come back.
        report: called with the share that is done, and how many masks have passed so far.
        stop: once it is set, Stopped is raised.
    """
    generator = _Everything(sam, embedding, report, stop, **asdict(options))
    records = generator.generate(np.broadcast_to(np.uint8(0), (*view, 3)))
    records.sort(key=lambda record: -record["area"])
    scale = np.array(embedding.sizes[0][0][::-1]) / np.array(view[::-1])
    choices = _choices(generator, records, view) if records else []
    return [
        Region(
            from_coco(record["segmentation"]), float(record["predicted_iou"]), float(record["stability_score"]),
            (float(x), float(y)), choice,
        )
        for record, choice in zip(records, choices)
        for x, y in [np.array(record["point_coords"][0]) * scale]
    ]  # fmt: skip


@torch.no_grad()
def _choices(generator: _Everything, records: Sequence[dict[str, Any]], view: tuple[int, int]) -> list[int]:
    """Which of the three masks of its point each record is: the one of its predicted IoU."""
    predictor = generator.predictor
    predictor.set_embedding(predictor.given)  # the generator has let go of it
    places = np.array([record["point_coords"][0] for record in records]).reshape(-1, 2)
    scores = torch.tensor([record["predicted_iou"] for record in records])
    coords = torch.as_tensor(predictor.transform.apply_coords(places, view))
    found: list[int] = []
    for part, score in zip(coords.split(_AT_ONCE), scores.split(_AT_ONCE)):
        labels = torch.ones(len(part), 1, dtype=torch.int, device=predictor.device)
        _, _, ious = predictor.read_prompts((part[:, None].to(predictor.device), labels))
        found += (ious[:, 1:].float().cpu() - score[:, None]).abs().argmin(dim=1).tolist()
    return found


class _Everything(SamAutomaticMaskGenerator):
    def __init__(
        self,
        sam: Sam,
        embedding: Embedding,
        report: Callable[[float, int], None],
        stop: threading.Event,
        **options: Any,
    ) -> None:
        super().__init__(sam, points_per_batch=_AT_ONCE, output_mode="coco_rle", **options)
        transform = self.predictor.transform
        self.predictor = _Ready(sam, strict=True)
        self.predictor.given, self.predictor.transform = embedding, transform
        self._report, self._stop, self._done, self._found = report, stop, 0, 0

    def _process_batch(self, points: np.ndarray, *sizes: Any) -> MaskData:
        if self._stop.is_set():
            raise Stopped
        found = super()._process_batch(points, *sizes)
        self._done += len(points)
        self._found += len(found["rles"])
        self._report(self._done / len(self.point_grids[0]), self._found)
        return found


class _Ready(SamPredictor):
    """A predictor to which every image is the one that was embedded."""

    given: Embedding

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", *, boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        self.set_embedding(self.given)
