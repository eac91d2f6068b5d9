"""How far the masks of a setting agree with the original's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..predict.predictor import SamPredictor
from .original import Objects, answers, chosen_masks
from .result import SIZES, Disagreement, Row
from .settings import Setting

FOCUSED = 2  # boxes of a photograph that are encoded each for itself


@dataclass(frozen=True)
class Measured:
    """One setting on one photograph: a figure a prompt, in lists of one length.

    Attributes:
        kinds: "box" or "point". sizes: of SIZES.
        ious: with the original's mask. drifts: absolute differences of the predicted IoU.
        switched: whether another of the three masks of a point has the highest predicted IoU; None for boxes.
        embedding_error: squared error over the original's variance about the mean of each channel.
        indices: of the prompts, among those that a setting without boxes given measures.
    """

    kinds: list[str]
    sizes: list[str]
    ious: list[float]
    drifts: list[float]
    switched: list[bool | None]
    embedding_error: float
    indices: list[int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(predictor: SamPredictor, seen: Objects, setting: Setting) -> Measured:
    """What a model that runs as `setting` says makes of the original's prompts."""
    if setting.focus:
        return _measure_focused(predictor, seen)
    predictor.set_image(seen.pixels)
    masks, scores = answers(predictor, seen.boxes, seen.points)
    error = embedding_error(predictor.get_image_embedding(), seen.embedding)
    output, chosen = seen.output, chosen_masks(masks, seen.output)
    ious = [iou for kind in ("box", "point") for iou in mask_ious(chosen[kind], seen.masks[kind])]
    drifts = (scores["box"] - seen.scores["box"])[:, 0].abs().tolist()
    drifts += (scores["point"] - seen.scores["point"]).abs().gather(1, output[:, None])[:, 0].tolist()
    switched = (scores["point"].argmax(dim=1) != output).tolist()
    count = len(seen.boxes)
    return Measured(
        ["box"] * count + ["point"] * count, seen.sizes("box") + seen.sizes("point"),
        ious, drifts, [None] * count + switched, error, list(range(2 * count)),
    )  # fmt: skip


def focused_objects(seen: Objects) -> list[int]:
    """Which objects are encoded for themselves: FOCUSED, from the middle of each part of their order."""
    count = len(seen.boxes)
    return sorted({int((number + 0.5) * count / FOCUSED) for number in range(FOCUSED)}) if count else []


def _measure_focused(predictor: SamPredictor, seen: Objects) -> Measured:
    sizes, ious, drifts, errors = seen.sizes("box"), [], [], []
    chosen = focused_objects(seen)
    for index in chosen:
        box = seen.boxes[index : index + 1]
        predictor.set_image(seen.pixels, boxes=box.tolist())
        masks, scores = answers(predictor, box, seen.points[:0])
        ious += mask_ious(masks["box"][:, 0], seen.masks["box"][index : index + 1])
        drifts.append(float((scores["box"][0, 0] - seen.scores["box"][index, 0]).abs()))
        errors.append(embedding_error(predictor.get_image_embedding(), seen.embedding))
    count = len(chosen)
    mean = float(np.mean(errors)) if errors else 0.0
    return Measured(["box"] * count, [sizes[index] for index in chosen], ious, drifts, [None] * count, mean, chosen)


def mask_ious(masks: Tensor, targets: Tensor) -> list[float]:
    """IoUs of bool masks (n, H, W) with others; two empty ones agree, 1."""
    masks, targets = masks.flatten(1), targets.flatten(1)
    union = (masks | targets).sum(dim=1)
    shared = (masks & targets).sum(dim=1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0).tolist()


def embedding_error(embedding: Tensor, original: Tensor) -> float:
    """Squared error over the original's variance, embeddings (1, C, g, g)."""
    original = original.to(embedding.device).double()
    variance = (original - original.mean(dim=(2, 3), keepdim=True)).square().sum()
    return float((embedding.double() - original).square().sum() / variance.clamp(min=1e-12))


def summarise(setting: Setting, parts: Sequence[Measured], seconds: float, reference: float) -> Row:
    """A setting over all photographs; `seconds` of an encoder pass of its own and of the original."""
    ious = np.array([value for part in parts for value in part.ious])
    kinds = np.array([value for part in parts for value in part.kinds])
    sizes = np.array([value for part in parts for value in part.sizes])
    switched = [value for part in parts for value in part.switched if value is not None]
    return Row(
        setting, seconds, reference / seconds, float(ious.mean()), float(np.percentile(ious, 5)),
        float((ious > 0.9).mean()), {size: _mean(ious[sizes == size]) for size in SIZES},
        {kind: _mean(ious[kinds == kind]) for kind in ("box", "point")},
        float(np.mean(switched)) if switched else None,
        float(np.mean([part.embedding_error for part in parts])),
        float(np.mean([value for part in parts for value in part.drifts])), len(ious),
    )  # fmt: skip


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def disagreements(predictor: SamPredictor, seen: Objects, most: int) -> list[Disagreement]:
    """The prompts of a photograph for which the model's mask agrees least with the original's, the worst first."""
    predictor.set_image(seen.pixels)
    masks = chosen_masks(answers(predictor, seen.boxes, seen.points)[0], seen.output)
    found = []
    for kind, prompts in (("box", seen.boxes), ("point", seen.points)):
        ious = mask_ious(masks[kind], seen.masks[kind])
        for index in sorted(range(len(ious)), key=ious.__getitem__)[:most]:
            found.append(Disagreement(
                seen.key, seen.pixels, kind, tuple(map(float, prompts[index])),
                seen.masks[kind][index].numpy(), masks[kind][index].numpy(), ious[index],
            ))  # fmt: skip
    return sorted(found, key=lambda each: each.iou)[:most]
