"""Masks for many prompts of one image, through any predictor with `segment_anything.SamPredictor`'s interface."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, cast

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from ..modeling import unchanged
from ..modeling.decode import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT, decode, embed_prompts
from ..predict.predictor import SamPredictor as OwnPredictor
from ..predict.prompt_checks import at_once
from ..predict.resize import ResizeLongestSideFloat32
from .metrics import mask_iou

# What `BatchDecoder` does in their place.
_PREDICTORS = [
    {name: getattr(kind, name) for name in ("predict", "predict_torch")}
    for kind in (OwnPredictor, segment_anything.SamPredictor)
]
_TRANSFORMS = (ResizeLongestSide, ResizeLongestSideFloat32)


class Predictor(Protocol):
    """What an evaluation needs of a model: an image, then prompts on it."""

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None: ...

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class RoutedPredictor(Predictor, Protocol):
    """This project's: with a `keep_ratio`, and an encoder that can be told the boxes."""

    model: Sam

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", *, boxes: Sequence[np.ndarray] | None = None
    ) -> None: ...


class SamPredictor(Predictor, Protocol):
    """What `BatchDecoder` reads besides: `segment_anything`'s names."""

    model: Sam
    transform: ResizeLongestSide
    features: torch.Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """One prompt: a box (4,) x0, y0, x1, y1, points (n, 2) with labels (n,), or both; in pixels of the image.

    `logits` (h, w) are an earlier prediction's, to be improved on. `target` is the ground truth, for the oracle only.
    """

    box: np.ndarray | None = None
    coords: np.ndarray | None = None
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """The chosen mask of a prompt: boolean (H, W) at the image's size, predicted IoU, low-resolution logits (h, w)."""

    mask: np.ndarray
    predicted_iou: float
    logits: np.ndarray


def decoder_for(predictor: Predictor, batch_size: int) -> PromptLoop:
    """Batches for `segment_anything`'s Sams, whatever their encoder.

    One `predict` a prompt for others, at size 0, and where a prompt encoder, a mask decoder or a predictor is no longer
    as SAM or this project has it: `BatchDecoder` would leave out what was changed.
    """
    if not batch_size or not isinstance(getattr(predictor, "model", None), Sam) or not hasattr(predictor, "features"):
        return PromptLoop(predictor)
    own = any(unchanged.has_methods(predictor, methods) for methods in _PREDICTORS)
    sam_predictor = cast(SamPredictor, predictor)
    if own and type(sam_predictor.transform) in _TRANSFORMS and unchanged.is_plain(sam_predictor.model):
        return BatchDecoder(sam_predictor, batch_size)
    return PromptLoop(predictor)


class PromptLoop:
    """One call of `predict` a prompt, as a user would do it.

    Args:
        predictor: with an image set before `run`.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def run(self, prompts: Sequence[Prompt], mask_select: str) -> list[Prediction]:
        """Predictions in the order of `prompts`; `mask_select` as in `protocols.Protocol`."""
        return [self._one(prompt, mask_select) for prompt in prompts]

    def _one(self, prompt: Prompt, mask_select: str) -> Prediction:
        points = {} if prompt.coords is None else {"point_coords": prompt.coords, "point_labels": prompt.labels}
        feedback = {} if prompt.logits is None else {"mask_input": prompt.logits[None]}
        masks, scores, logits = self.predictor.predict(
            **points, box=prompt.box, **feedback, multimask_output=mask_select != "first"
        )
        which = _choose(mask_select, scores, masks, prompt.target)
        return Prediction(masks[which].astype(bool), float(scores[which]), logits[which])


def _choose(mask_select: str, scores: np.ndarray, masks: np.ndarray, target: np.ndarray | None) -> int:
    if mask_select == "oracle":
        assert target is not None
        return int(np.argmax([mask_iou(mask.astype(bool), target) for mask in masks]))
    return int(np.argmax(scores))


def _outputs(mask_select: str, predicted_iou: torch.Tensor) -> torch.Tensor:
    """The decoder's outputs that a mask is needed of, (..., k) int64, from their predicted IoU (..., 4)."""
    if mask_select == "argmax":
        return 1 + predicted_iou[..., 1:].argmax(dim=-1, keepdim=True)
    wanted = [0] if mask_select == "first" else [1, 2, 3]
    return torch.tensor(wanted, device=predicted_iou.device).expand(*predicted_iou.shape[:-1], -1)


class BatchDecoder(PromptLoop):
    """The same masks several prompts at a time, and only the masks that can be chosen made at all.

    Args:
        predictor: `segment_anything`'s SamPredictor or this project's.
        batch_size: prompts at once.
    """

    predictor: SamPredictor

    def __init__(self, predictor: SamPredictor, batch_size: int) -> None:
        super().__init__(predictor)
        self.sam = predictor.model
        self.batch_size = batch_size

    def run(self, prompts: Sequence[Prompt], mask_select: str) -> list[Prediction]:
        """Predictions in the order of `prompts`; `mask_select` as in `protocols.Protocol`."""
        found: dict[int, Prediction] = {}
        by_shape = defaultdict(list)  # a batch needs equally many tokens, and mask inputs for all or none
        for index, prompt in enumerate(prompts):
            tokens = 0 if prompt.coords is None else len(prompt.coords)
            by_shape[tokens, prompt.box is None, prompt.logits is None].append(index)
        for (tokens, *_), indices in by_shape.items():
            parts = -(-len(indices) // at_once(self.batch_size, tokens))
            for part in np.array_split(indices, parts):  # none much smaller than others
                predictions = self._batch([prompts[index] for index in part], mask_select)
                for index, prediction in zip(part, predictions, strict=True):
                    found[index] = prediction
        return [found[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _batch(self, prompts: list[Prompt], mask_select: str) -> list[Prediction]:
        sam, predictor = self.sam, self.predictor
        coords, labels = self._tokens(prompts)
        weight = sam.mask_decoder.iou_token.weight
        sparse = embed_prompts(sam.prompt_encoder, coords, labels).to(weight.dtype)
        features = predictor.features[:1].to(weight.dtype)
        position, dense, outputs = self._position, None, partial(_outputs, mask_select)
        if prompts[0].logits is not None:  # each mask input makes an image of its own
            inputs = torch.from_numpy(np.stack([prompt.logits for prompt in prompts if prompt.logits is not None]))[
                :, None
            ]
            dense = sam.prompt_encoder.mask_downscaling(inputs.to(features.device, weight.dtype))
            features, position = (x.expand(len(prompts), -1, -1, -1) for x in (features, position))
            sparse = sparse.transpose(0, 1)
        logits, scores = decode(sam.mask_decoder, sam.prompt_encoder, features, position, sparse, outputs, dense)
        scores = scores.gather(2, outputs(scores)).flatten(0, 1).float()  # (P, k)
        logits = logits.flatten(0, 1).float()  # (P, k, h, w)
        masks = self._to_image(logits)  # (P, k, H, W)
        chosen = np.zeros(len(prompts), dtype=np.int64)
        if mask_select == "oracle":
            chosen[:] = [_choose("oracle", s, m, p.target) for s, m, p in zip(scores, masks, prompts, strict=True)]
        ious, planes = scores.cpu().numpy(), logits.cpu().numpy()
        return [
            Prediction(masks[row, which], float(ious[row, which]), planes[row, which])
            for row, which in enumerate(chosen)
        ]

    @cached_property
    def _position(self) -> torch.Tensor:
        """Position encoding of the image tokens, (1, C, g, g): the same for every image."""
        return self.sam.prompt_encoder.get_dense_pe().to(self.sam.mask_decoder.iou_token.weight.dtype)

    def _tokens(self, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates (1, P, T, 2) in the model's frame and labels (1, P, T), in SAM's order: points, then the box."""
        predictor = self.predictor
        coords, labels = [], []
        for prompt in prompts:
            xy: np.ndarray = np.zeros((0, 2), np.float32)
            kind: np.ndarray = np.zeros(0, np.int64)
            if prompt.coords is not None:
                assert prompt.labels is not None
                xy, kind = prompt.coords, prompt.labels
            if prompt.box is not None:
                xy = np.concatenate([xy, np.reshape(prompt.box, (2, 2))])
                kind = np.concatenate([kind, [TOP_LEFT, BOTTOM_RIGHT]])
            xy = predictor.transform.apply_coords(xy, predictor.original_size)
            if prompt.box is None:
                xy, kind = np.concatenate([xy, [[0, 0]]]), np.concatenate([kind, [NOT_A_POINT]])
            coords.append(xy.astype(np.float32))
            labels.append(kind.astype(np.int64))
        device = predictor.features.device
        return torch.from_numpy(np.stack(coords))[None].to(device), torch.from_numpy(np.stack(labels))[None].to(device)

    def _to_image(self, logits: torch.Tensor) -> np.ndarray:
        """(P, n, h, w) -> boolean (P, n, H, W)"""
        sam, predictor = self.sam, self.predictor
        masks = sam.postprocess_masks(logits, predictor.input_size, predictor.original_size)
        return (masks > sam.mask_threshold).cpu().numpy()
