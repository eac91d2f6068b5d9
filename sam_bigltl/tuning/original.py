"""The original: its encoder as `segment_anything` computes it, and the objects that it finds in a photograph."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from ..convert.sam import LITTLE_PATH
from ..evaluation.metrics import size_splits
from ..modeling.encoder import EncoderConfig
from ..predict.automatic import SamAutomaticMaskGenerator
from ..predict.predictor import SamPredictor

POINTS_PER_SIDE = 16  # of the grid in which objects are sought: 256 points
# Predicted IoU and stability that a mask needs: SAM's own; of models that rate themselves lower; and of any.
_THRESHOLDS = ((0.88, 0.95), (0.7, 0.85), (0.4, 0.6), (0.0, 0.0))
_ENOUGH = 3  # objects, or lower thresholds are tried
_LEAST_AREA = 64  # pixels of an object


def segment_anything_encoder(config: EncoderConfig) -> ImageEncoderViT:
    """`segment_anything`'s encoder of a shape, on the default device of torch; a stem is its own projection."""
    return ImageEncoderViT(
        img_size=config.img_size, patch_size=config.patch_size, embed_dim=config.dim, depth=config.depth,
        num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, out_chans=config.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=config.window,
        global_attn_indexes=config.global_layers,
    )  # fmt: skip


def original_of(sam: Sam) -> Sam:
    """The dense model that a big.LITTLE one came from, whose weights it shares, with `segment_anything`'s own encoder.

    A convolutional stem, which segment_anything does not have, stays this project's.
    """
    encoder = sam.image_encoder
    with torch.device("meta"):
        plain = segment_anything_encoder(encoder.config)
    if encoder.config.stem:
        plain.patch_embed = encoder.patch_embed  # takes and gives what PatchEmbed does
    state = {name: value for name, value in encoder.state_dict().items() if not LITTLE_PATH.match(name)}
    plain.load_state_dict(state, assign=True)
    original = Sam(plain, sam.prompt_encoder, sam.mask_decoder)
    original.pixel_mean, original.pixel_std = sam.pixel_mean, sam.pixel_std
    return original.eval().requires_grad_(False)


@dataclass(frozen=True)
class Objects:
    """What the original sees in a photograph: n objects, each prompted with a box and with a point.

    Attributes:
        key: of the photograph. pixels: uint8 RGB (H, W, 3), at most the encoder's input on the long side.
        embedding: (1, C, g, g) of the original.
        boxes: x0, y0, x1, y1, (n, 4); points: x, y inside the objects, (n, 2).
        masks: of "box" and "point", bool (n, H, W) each.
        scores: the predicted IoUs of "box" (n, 1) and of the three masks of "point" (n, 3).
        output: which of the three has the highest one, (n,).
    """

    key: str
    pixels: np.ndarray = field(repr=False)
    embedding: Tensor = field(repr=False)
    boxes: np.ndarray
    points: np.ndarray
    masks: dict[str, Tensor] = field(repr=False)
    scores: dict[str, Tensor] = field(repr=False)
    output: Tensor = field(repr=False)

    @property
    def areas(self) -> dict[str, np.ndarray]:
        """Pixels of the original's masks, (n,) each, by prompt."""
        return {kind: masks.flatten(1).sum(dim=1).numpy() for kind, masks in self.masks.items()}

    def sizes(self, kind: str) -> list[str]:
        """Size of each object by its mask for a prompt: "small", "medium" or "large"."""
        splits = size_splits(self.areas[kind])
        return ["small" if small else "medium" if medium else "large"
                for small, medium in zip(splits["small"], splits["medium"])]  # fmt: skip


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """The photograph with at most `side` pixels on its long side: the encoder sees no more of it."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def find_objects(sam: Sam, pixels: np.ndarray) -> list[dict[str, Any]]:
    """What everything mode finds, as its records with COCO RLEs, from small to large; can be empty."""
    found: list[dict[str, Any]] = []
    for lowest in _THRESHOLDS[-2:]:  # most models need the first one alone
        generator = SamAutomaticMaskGenerator(
            sam, POINTS_PER_SIDE, pred_iou_thresh=lowest[0], stability_score_thresh=lowest[1], output_mode="coco_rle"
        )
        every = [record for record in generator.generate(pixels) if record["area"] >= _LEAST_AREA]
        for iou, stability in _THRESHOLDS[: _THRESHOLDS.index(lowest) + 1]:
            found = [
                record for record in every if record["predicted_iou"] >= iou and record["stability_score"] >= stability
            ]
            if len(found) >= _ENOUGH:
                return _by_area(found)
        found = every
    return _by_area(found)


def _by_area(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda record: (record["area"], record["bbox"]))


def find_prompts(sam: Sam, pixels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and points (n, 2) of at most `most` objects that everything mode finds, from small to large.

    Where it finds many, they are taken at equal steps of their order by area, a single one from its middle. n can be 0.
    """
    found = find_objects(sam, pixels)
    count = min(most, len(found))
    places = np.linspace(0, len(found) - 1, count) if count > 1 else [(len(found) - 1) / 2] * count
    chosen = [found[round(place)] for place in places]
    boxes = [_corners(record["bbox"]) for record in chosen]
    points = [_innermost(coco_mask.decode(record["segmentation"])) for record in chosen]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(points, dtype=np.float64).reshape(-1, 2)


def find_masks(sam: Sam, pixels: np.ndarray) -> list[dict[str, Any]]:
    """COCO RLEs of what everything mode finds."""
    return [record["segmentation"] for record in find_objects(sam, pixels)]


def _corners(bbox: list[float]) -> tuple[float, ...]:
    x, y, width, height = bbox
    return x, y, x + max(width, 1), y + max(height, 1)


def _innermost(mask: np.ndarray) -> tuple[float, float]:
    """The centre of the pixel of a mask (H, W) that is farthest from its outline, where a person clicks."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return column + 0.5, row + 0.5


def see(sam: Sam, key: str, pixels: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> Objects:
    """The original's answers for given prompts; `pixels` as `shrunk` gives them."""
    predictor = SamPredictor(sam)
    predictor.set_image(pixels)
    embedding = predictor.get_image_embedding().clone()
    masks, scores = answers(predictor, boxes, points)
    output = scores["point"].argmax(dim=1)
    return Objects(key, pixels, embedding, boxes, points, chosen_masks(masks, output), scores, output)


def chosen_masks(masks: dict[str, Tensor], output: Tensor) -> dict[str, Tensor]:
    """Of what `answers` gave, the mask of each box, and of each point the one of three that `output` (n,) says."""
    return {"box": masks["box"][:, 0], "point": masks["point"][torch.arange(len(output)), output]}


def answers(
    predictor: SamPredictor, boxes: np.ndarray, points: np.ndarray
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and predicted IoUs, on the CPU: one mask (n, 1, H, W) for boxes, three (n, 3, H, W) for points."""
    size, transform, device = predictor.original_size, predictor.transform, predictor.device
    masks, scores = {}, {}
    corners = torch.as_tensor(transform.apply_boxes(boxes, size), dtype=torch.float32, device=device)
    coords = torch.as_tensor(transform.apply_coords(points, size), dtype=torch.float32, device=device)
    labels = torch.ones(len(coords), 1, dtype=torch.int32, device=device)
    prompts: dict[str, tuple[Any, ...]] = {
        "box": (None, None, corners, None, False),
        "point": (coords[:, None], labels, None, None, True),
    }
    for kind, prompt in prompts.items():
        if len(prompt[0] if prompt[0] is not None else corners) == 0:
            continue
        found, iou, _ = predictor.predict_torch(*prompt)
        masks[kind], scores[kind] = found.cpu(), iou.float().cpu()
    return masks, scores
