"""What candidates of docs/fit.md are measured by: how well masks and embeddings agree with the teacher's own.

No annotation is needed: the objects are those of the teacher's everything mode, and each is asked for again with its
box and with its point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sam_bigltl.data.files import sha256, whole_path
from sam_bigltl.data.images import read_image
from sam_bigltl.modeling.decode import draw
from sam_bigltl.predict.automatic import SamAutomaticMaskGenerator
from sam_bigltl.predict.predictor import SamPredictor

GRID = 16  # points a side of everything mode
OBJECTS = 24  # a photograph, evenly by area
IOU, STABILITY = 0.4, 0.6  # that masks must reach: the mini teacher seldom predicts more than 0.7


@dataclass(frozen=True)
class Reference:
    """The teacher's side of one photograph.

    Attributes:
        image: preprocessed, (1, 3, S, S).
        size: of the photograph, (height, width); input_size: of its part of the frame.
        points: (n, 2) and boxes: (n, 4) of n objects, in the frame.
        output: which of the teacher's three masks each point has, (n,).
        masks: for the boxes and then the points, (2n, height, width), bits packed along the width.
        embedding: (1, 256, g, g).
    """

    image: Tensor
    size: tuple[int, int]
    input_size: tuple[int, int]
    points: Tensor
    boxes: Tensor
    output: Tensor
    masks: np.ndarray
    embedding: Tensor

    @property
    def valid(self) -> tuple[slice, slice]:
        """Rows and columns of the embedding that the photograph covers."""
        side, frame = self.embedding.shape[-1], self.image.shape[-1]
        rows, columns = (-(-length * side // frame) for length in self.input_size)
        return slice(rows), slice(columns)

    def first(self, objects: int) -> Reference:
        """The same with fewer objects, evenly by area."""
        kept = _evenly(len(self.points), objects)
        rows = np.concatenate([kept, kept + len(self.points)])
        return replace(
            self, points=self.points[kept], boxes=self.boxes[kept], output=self.output[kept], masks=self.masks[rows]
        )


def _evenly(count: int, wanted: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int)


def references(teacher: Sam, weights: str, paths: Sequence[Path], cache: Path, objects: int) -> Iterator[Reference]:
    """Of each photograph, computed once: `cache` is a folder that keeps them by the teacher's hash, `weights`.

    Without `objects`, the image and its embedding alone.
    """
    for path in paths:
        if not objects:
            yield _make(teacher, read_image(path), everything=False)
            continue
        kept = cache / f"{weights[:12]}-{sha256(path)[:16]}-{GRID}-{OBJECTS}.pt"
        if not kept.exists():
            with whole_path(kept) as partial:
                torch.save(vars(_make(teacher, read_image(path))), partial)
        yield Reference(**torch.load(kept, weights_only=False)).first(objects)


def _make(teacher: Sam, pixels: np.ndarray, everything: bool = True) -> Reference:
    found = (
        []
        if not everything
        else SamAutomaticMaskGenerator(teacher, GRID, pred_iou_thresh=IOU, stability_score_thresh=STABILITY).generate(
            pixels
        )
    )
    found = sorted(found, key=lambda each: each["area"])
    chosen = [found[i] for i in _evenly(len(found), OBJECTS)]
    predictor = SamPredictor(teacher)
    predictor.set_image(pixels)
    transform, size = predictor.transform, pixels.shape[:2]
    points = np.array([each["point_coords"][0] for each in chosen], dtype=np.float32).reshape(-1, 2)
    boxes = np.array([each["bbox"] for each in chosen], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    resized = torch.as_tensor(transform.apply_image(pixels)).permute(2, 0, 1)
    reference = Reference(
        teacher.preprocess(resized)[None], size, tuple(resized.shape[1:]),
        torch.as_tensor(transform.apply_coords(points, size)).float(),
        torch.as_tensor(transform.apply_boxes(boxes, size)).float(),
        torch.zeros(len(chosen), dtype=torch.long), np.zeros(0), predictor.get_image_embedding(),
    )  # fmt: skip
    masks, output = _masks(predictor, reference, None)
    return replace(reference, masks=np.packbits(masks, axis=-1), output=output)


@torch.no_grad()
def _masks(predictor: SamPredictor, reference: Reference, output: Tensor | None) -> tuple[np.ndarray, Tensor]:
    """Masks for the boxes and then the points, (2n, height, width), and which outputs the points' are."""
    sam, drawn = predictor.model, []
    labels = torch.ones(len(reference.points), 1, dtype=torch.int)
    for start in range(0, len(labels), 8):
        part = slice(start, start + 8)
        image, kernels, _ = predictor.read_prompts(None, reference.boxes[part])
        drawn.append(draw(sam.mask_decoder, image, kernels[:, :1], predictor.features.shape[-2:]))
    best = []
    for start in range(0, len(labels), 8):
        part = slice(start, start + 8)
        image, kernels, iou = predictor.read_prompts((reference.points[part, None], labels[part]))
        which = iou[:, 1:].argmax(dim=1) + 1 if output is None else output[part]
        best.append(which)
        kernels = kernels[torch.arange(len(which)), which][:, None]
        drawn.append(draw(sam.mask_decoder, image, kernels, predictor.features.shape[-2:]))
    if not drawn:
        return np.zeros((0, *reference.size), dtype=bool), torch.zeros(0, dtype=torch.long)
    logits = sam.postprocess_masks(torch.cat(drawn), reference.input_size, reference.size)
    return (logits[:, 0] > sam.mask_threshold).numpy(), torch.cat(best)


@torch.no_grad()
def agreement(sam: Sam, references: Sequence[Reference]) -> dict[str, float]:
    """How a model at its keep ratio compares with the teacher.

    Returns:
        "error": squared error of the embedding over the teacher's square, in the photographs' part of the frame;
        "mean", "p5", "above_0.9": of the IoU with the teacher's masks over boxes and points, and "box" and "point",
        the means over either.
    """
    predictor = SamPredictor(sam)
    off = total = 0.0
    ious: list[np.ndarray] = []
    for reference in references:
        embedding = sam.image_encoder(reference.image)
        rows, columns = reference.valid
        part = reference.embedding[..., rows, columns]
        off += (embedding[..., rows, columns] - part).square().sum().item()
        total += part.square().sum().item()
        predictor.features, predictor.is_image_set = embedding, True
        predictor.original_size, predictor.input_size = reference.size, reference.input_size
        masks, _ = _masks(predictor, reference, reference.output)
        wanted = np.unpackbits(reference.masks, axis=-1, count=reference.size[1]).astype(bool)
        both = (masks & wanted).sum(axis=(1, 2))
        either = (masks | wanted).sum(axis=(1, 2))
        ious.append((both / np.maximum(either, 1)).reshape(2, -1))
    iou = np.concatenate(ious, axis=1)
    if not iou.size:
        return {"error": off / total}
    return {
        "error": off / total, "mean": iou.mean(), "p5": np.quantile(iou, 0.05), "above_0.9": (iou > 0.9).mean(),
        "box": iou[0].mean(), "point": iou[1].mean(), "prompts": iou.size,
    }  # fmt: skip
