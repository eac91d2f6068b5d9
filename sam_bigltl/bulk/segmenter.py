"""The worker that holds the model: photographs in, rows of masks out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ..convert.sam import load_sam
from ..convert.weight_files import weights_sha256
from ..errors import InputError
from ..predict.automatic import SamAutomaticMaskGenerator
from ..predict.batches import embed
from ..predict.embeddings import Embedding, packed
from ..predict.longest_side import resized
from ..predict.predictor import SamPredictor
from ..predict.segment import Segment
from ..predict.segment_folder import answer
from .config import BulkConfig
from .reading import Photograph

Row = dict[str, Any]


class Segmenter:
    """A model that segments what `read_chunks` gives.

    Args:
        config: what to compute. Raises InputError where this machine has not got the model, or cannot run it so.
    """

    def __init__(self, config: BulkConfig) -> None:
        self.config = config
        if not Path(config.checkpoint).exists():
            raise InputError(f"{config.checkpoint} is not on this machine: put it there, under the same path")
        if weights_sha256(config.checkpoint) != config.model:
            raise InputError(f"{config.checkpoint} holds other weights on this machine: copy the file that you named")
        if config.device == "cpu":
            torch.set_num_threads(config.threads)
        sam = load_sam(config.checkpoint).to(config.device).eval()
        sam.image_encoder.compute_in(config.setting.dtype, config.setting.native)
        if hasattr(sam.image_encoder, "keep_ratio"):
            sam.image_encoder.keep_ratio = config.setting.keep_ratio
        self.predictor = SamPredictor(sam, strict=True)
        self.generator: SamAutomaticMaskGenerator | None = None
        if (options := config.everything) is not None:
            self.generator = SamAutomaticMaskGenerator(
                sam, options.points_per_side, pred_iou_thresh=options.pred_iou_thresh,
                stability_score_thresh=options.stability_score_thresh, output_mode="coco_rle",
            )  # fmt: skip

    def segment(self, photographs: Sequence[Photograph]) -> tuple[list[Row], dict[str, Embedding]]:
        """The row of each photograph, with its masks and errors, and the embeddings by its key, if they are asked for.

        The masks are those of `SamPredictor.predict`, or of `SamAutomaticMaskGenerator`, for one photograph at a time.
        """
        rows = [_row(photograph) for photograph in photographs]
        embeddings: dict[str, Embedding] = {}
        good = [(row, each) for row, each in zip(rows, photographs) if each.pixels is not None]
        if self.generator is not None:
            for row, photograph in good:
                assert photograph.pixels is not None  # `good` are those
                with _one_thread():
                    row["masks"] = [_of_everything(record) for record in self.generator.generate(photograph.pixels)]
        if self.generator is None or self.config.embeddings:
            for start in range(0, len(good), self.config.batch):
                self._embed(good[start : start + self.config.batch], embeddings)
        return rows, embeddings

    def packed(self, embeddings: dict[str, Embedding]) -> bytes:
        """The content of a file of embeddings, which `SamPredictor.load_embedding` reads."""
        return packed(self.predictor.model, embeddings)

    def _embed(self, some: Sequence[tuple[Row, Photograph]], embeddings: dict[str, Embedding]) -> None:
        """Encode photographs in one call, answer their prompts, and add their embeddings."""
        if not self.config.embeddings and not any(photograph.asked for _, photograph in some):
            return
        side = self.config.side
        images = [each.pixels for _, each in some if each.pixels is not None]
        images = images if self.generator is None else [resized(image, side) for image in images]
        sizes = [each.size for _, each in some if each.size is not None]
        for (row, photograph), own in zip(some, embed(self.predictor, images, sizes), strict=True):
            if self.config.embeddings:
                embeddings[photograph.key] = own
            if photograph.asked:
                self.predictor.set_embedding(own)
                with _one_thread():
                    row["masks"] = self._masks(photograph)

    def _masks(self, photograph: Photograph) -> list[Row]:
        prompts = [asked.prompt for _, asked in photograph.asked if not isinstance(asked.prompt, InputError)]
        found = answer(self.predictor, prompts, self.config.all_masks)
        return [
            _of_prompt(segment, number, asked.category)
            for (number, asked), segments in zip(photograph.asked, found, strict=True) for segment in segments
        ]  # fmt: skip


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch rounds the decoder's sums otherwise with another number of threads; the encoder's stay as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(photograph: Photograph) -> Row:
    height, width = photograph.size or (None, None)
    return {
        "key": photograph.key, "sha256": photograph.sha256, "height": height, "width": width,
        "masks": [], "embedding": None, "errors": list(photograph.errors),
    }  # fmt: skip


def _of_prompt(segment: Segment, number: int, category: int | None) -> Row:
    rle = coco_mask.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
    return _mask(rle, segment.predicted_iou) | {"prompt": number, "category_id": category}


def _of_everything(record: dict[str, Any]) -> Row:
    rle = record["segmentation"]
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *rle["size"])
    found = _mask(rle, record["predicted_iou"])
    return found | {"stability": float(record["stability_score"]), "point": record["point_coords"][0]}


def _mask(rle: dict[str, Any], predicted_iou: float) -> Row:
    counts = rle["counts"]
    return {
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        "predicted_iou": float(predicted_iou), "stability": None,
        "box": [int(value) for value in coco_mask.toBbox(rle)], "area": int(coco_mask.area(rle)),
        "prompt": None, "category_id": None, "point": None,
    }  # fmt: skip
