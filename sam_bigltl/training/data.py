"""Batches of photographs, prompts and masks from COCO-format JSON.

A batch is a pure function of (seed, step): a resumed run sees exactly the batches that an uninterrupted one would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.coco import Annotation, Usage, check_image_files, read_coco, read_photo
from ..errors import InputError
from ..evaluation.prompts import tight_box
from ..modeling.decode import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT
from .augment import Cutout, degrade, jitter_colour, paste
from .losses import MASK_STRIDE
from .rounds import draw_rounds

PIXEL_MEAN = (124, 116, 104)  # SAM's mean colour: padding with it is padding with 0 after normalisation


@dataclass(frozen=True)
class SampleConfig:
    """How photographs become training samples.

    Attributes:
        frame: side of the model's input, pixels.
        crop: side of the training crop, pixels; less than `frame` trains on parts of the frame, at its scale.
        patch: side of a token, pixels.
        prompts: masks an image.
        scale: range of the random scale, relative to the photograph fitted into the frame.
        as_is: share of images at exactly the scale that inference uses.
        box_share: share of boxes among the prompts of two tokens; the others are one point.
        box_jitter: share of the boxes that are jittered. More teaches to mistrust a box, and a pixel is a lot on a
            small object.
        rounds, round_prompts: see `TrainConfig`.
        balance: "source", or None: see `TrainConfig`.
        paste, degrade: shares of crops that get an object of another photograph, and that are blurred, compressed or
            noisy.
    """

    frame: int
    crop: int
    patch: int = 16
    prompts: int = 8
    scale: tuple[float, float] = (0.5, 1.5)
    as_is: float = 0.4
    box_share: float = 0.65
    box_jitter: float = 0.2
    rounds: int = 1
    round_prompts: int = 4
    balance: str | None = None
    paste: float = 0.0
    degrade: float = 0.0


# Prompt tokens a step, and how often. Two tokens hold a box or one point; the others hold several points.
PROMPT_TOKENS = ((2, 0.8), (4, 0.12), (6, 0.08))
TRIES = 200  # crops drawn for an image of a batch, before the data is called unusable


class MaskBatches(Dataset):
    """`dataset[step]` is the batch of that step: a dict of tensors (B images, P prompts of T tokens, crop side S).

    image (B, 3, S, S) uint8 RGB; offset (B, 2) first row and column of the crop in the frame, tokens;
    valid (B, S / patch, S / patch) tokens that show the photograph; coords (B, P, T, 2) x, y in the frame, pixels;
    labels (B, P, T); boxes (B, P, 4) of the object in the crop, pixels; target (B, P, S / 4, S / 4) uint8, the share
    of each pixel that the object covers times 255; with later rounds also what `draw_rounds` returns.

    Args:
        annotations: COCO-format files, whose images all lie in the folder `images`.
    """

    def __init__(
        self, annotations: Sequence[str | Path], images: str | Path, config: SampleConfig, batch_size: int, seed: int,
        steps: int, ignore_exif: bool = False,
    ) -> None:  # fmt: skip
        self.images, self.usage = [], Usage(0)
        for path in annotations:
            # A crowd is not an object that a prompt could mean.
            loaded, usage = read_coco(path, crowds=False, folder=images, ignore_exif=ignore_exif)
            self.images += loaded
            self.usage += usage
            if config.balance and any(image.source is None for image in loaded):
                raise InputError(f'{path}: balancing by source needs a "source" in every image\'s entry')
        for image in self.images:
            image.annotations = [_boxed(annotation) for annotation in image.annotations]
        check_image_files(self.images, images)
        self.folder = Path(images)
        self.config = config
        self.batch_size = batch_size
        self.places = range(batch_size)
        self.seed = seed
        self.steps = steps
        # An image with more masks teaches more, but not in proportion: neighbours look alike.
        weight = np.array([min(len(image.annotations), config.prompts) ** 0.5 for image in self.images])
        if config.balance:
            sizes = Counter(image.source for image in self.images)
            weight = weight / np.sqrt([sizes[image.source] for image in self.images])
        self.probability = weight / weight.sum()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, step])
        tokens = int(rng.choice([t for t, _ in PROMPT_TOKENS], p=[p for _, p in PROMPT_TOKENS]))
        samples = [self._draw(step, place, tokens) for place in self.places]
        batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
        if self.config.rounds > 1:
            batch |= draw_rounds(self.config.rounds, min(self.config.round_prompts, self.config.prompts), rng)
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def share(self, process: int, processes: int) -> None:
        """Make only this process's images of each batch, which are the same however many processes share it."""
        if self.batch_size % processes:
            raise InputError(f"--batch-size {self.batch_size} is no multiple of the {processes} processes")
        self.places = range(self.batch_size)[process::processes]

    def _draw(self, step: int, place: int, tokens: int) -> dict[str, np.ndarray]:
        """The sample at a place of a batch."""
        rng = np.random.default_rng([self.seed, step, place])
        for _ in range(TRIES):
            sample = self._sample(int(rng.choice(len(self.probability), p=self.probability)), tokens, rng)
            if sample is not None:  # a crop without a usable mask
                return sample
        raise InputError("hardly any crop shows an object of a dozen pixels: the masks are too small to train on")

    def _sample(self, index: int, tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        config, annotations = self.config, self.images[index].annotations
        photo = self._read(index)
        height, width = photo.shape[:2]
        scale = config.frame / max(height, width)
        if rng.random() >= config.as_is:
            scale *= np.exp(rng.uniform(*np.log(config.scale)))
        # The crop in pixels of the photograph, around a random object.
        side = config.crop / scale
        crop_w, crop_h = min(width, round(side)), min(height, round(side))
        x, y, w, h = _box(annotations[rng.integers(len(annotations))])
        x0 = int(np.clip(x + w * rng.random() - crop_w * rng.random(), 0, width - crop_w))
        y0 = int(np.clip(y + h * rng.random() - crop_h * rng.random(), 0, height - crop_h))
        window = np.s_[y0 : y0 + crop_h, x0 : x0 + crop_w]
        out_w = min(config.crop, max(MASK_STRIDE, round(crop_w * scale / MASK_STRIDE) * MASK_STRIDE))
        out_h = min(config.crop, max(MASK_STRIDE, round(crop_h * scale / MASK_STRIDE) * MASK_STRIDE))
        flip = rng.random() < 0.5

        picked = []
        for which in rng.permutation(len(annotations)):
            bx, by, bw, bh = _box(annotations[which])
            if bx + bw <= x0 or bx >= x0 + crop_w or by + bh <= y0 or by >= y0 + crop_h:
                continue
            whole = annotations[which].mask().astype(np.uint8)
            mask = whole[window]
            if mask.sum() * (out_w * out_h) / (crop_w * crop_h) < 12 or mask.sum() < 0.25 * whole.sum():
                continue
            mask = cv2.resize(mask * 255, (out_w, out_h), interpolation=cv2.INTER_AREA)
            if (mask >= 128).sum() >= 8:
                picked.append(mask[:, ::-1] if flip else mask)
            if len(picked) == config.prompts:
                break
        if not picked:
            return None

        resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        photo = cv2.resize(photo[window], (out_w, out_h), interpolation=resampling)
        photo = jitter_colour(photo[:, ::-1] if flip else photo, rng)
        if config.paste and rng.random() < config.paste:
            photo, picked = paste(photo, picked, self._cutout(rng), rng)
            picked = picked[: config.prompts]
            if not picked:
                return None
        if config.degrade and rng.random() < config.degrade:
            photo = degrade(photo, rng)
        image = np.full((config.crop, config.crop, 3), PIXEL_MEAN, np.uint8)
        image[:out_h, :out_w] = photo
        side = config.crop // config.patch
        offset = rng.integers(0, config.frame // config.patch - side + 1, size=2)
        shift = offset[::-1] * config.patch  # x, y
        valid = np.zeros((side, side), bool)
        valid[: -(-out_h // config.patch), : -(-out_w // config.patch)] = True

        coords = np.zeros((config.prompts, tokens, 2), np.float32)
        labels = np.full((config.prompts, tokens), NOT_A_POINT, np.int64)
        boxes = np.zeros((config.prompts, 4), np.float32)
        low = config.crop // MASK_STRIDE
        target = np.zeros((config.prompts, low, low), np.uint8)
        for i in range(config.prompts):  # too few masks: the same ones again, with other prompts
            mask = picked[i % len(picked)]
            boxes[i], coords[i], labels[i] = _prompt(mask >= 128, tokens, config, rng)
            size = (out_w // MASK_STRIDE, out_h // MASK_STRIDE)
            target[i, : size[1], : size[0]] = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        coords += shift
        return {
            "image": image.transpose(2, 0, 1), "offset": offset, "valid": valid,
            "coords": coords, "labels": labels, "boxes": boxes, "target": target,
        }  # fmt: skip

    def _read(self, index: int) -> np.ndarray:
        return read_photo(self.folder / self.images[index].file_name, self.images[index])

    def _cutout(self, rng: np.random.Generator) -> Cutout:
        """A random object of a random photograph, one of the larger ones there."""
        index = int(rng.choice(len(self.probability), p=self.probability))
        candidates = sorted(self.images[index].annotations, key=lambda each: -_box(each)[2] * _box(each)[3])
        annotation = candidates[int(rng.integers(min(3, len(candidates))))]
        mask = annotation.mask()
        if not mask.any():
            mask[:] = True
        x0, y0, x1, y1 = tight_box(mask)
        pixels = jitter_colour(self._read(index)[y0:y1, x0:x1], rng)
        return Cutout(pixels, mask[y0:y1, x0:x1].astype(np.uint8) * 255)


def _boxed(annotation: Annotation) -> Annotation:
    """With the box of its mask, where the JSON has none."""
    if annotation.bbox is not None:
        return annotation
    mask = annotation.mask()
    if not mask.any():
        raise InputError(f"annotation {annotation.id} has neither a box nor a pixel: remove it")
    x0, y0, x1, y1 = map(float, tight_box(mask))
    return replace(annotation, bbox=(x0, y0, x1 - x0, y1 - y0))


def _box(annotation: Annotation) -> tuple[float, float, float, float]:
    """Its box, once `_boxed` has given it one."""
    assert annotation.bbox is not None
    return annotation.bbox


def _prompt(
    mask: np.ndarray, tokens: int, config: SampleConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Box of the mask, and the coordinates and labels of one random prompt with `tokens` tokens, in crop pixels."""
    x0, y0, x1, y1 = tight_box(mask)
    box = np.array([x0, y0, x1, y1], np.float32)
    coords: list[tuple[float, float] | np.ndarray] = []
    labels = []
    with_box = rng.random() < (config.box_share if tokens == 2 else 0.5)
    points = tokens - 2 if with_box else tokens - 1
    inside = mask[y0:y1, x0:x1]
    for number in range(points):
        # Corrections come from either side of the border; a first click is on the object.
        positive = rng.random() < 0.5 if with_box or number else True
        if positive and number == 0 and not with_box and rng.random() < 0.6:
            distance = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = map(int, np.unravel_index(distance.argmax(), distance.shape))
        else:
            y, x = _random_pixel(inside if positive else ~inside, rng)
        coords.append((x0 + x, y0 + y))
        labels.append(FOREGROUND if inside[y, x] else BACKGROUND)
    if with_box:
        corners = box.copy()
        if rng.random() < config.box_jitter:  # SAM's jitter: a tenth of the side, at most 20 px
            side = np.array([x1 - x0, y1 - y0] * 2, np.float32)
            noise = np.clip(rng.normal(0, 0.1, 4) * side, -20, 20)
            corners += np.clip(noise, -0.3 * side, 0.3 * side).astype(np.float32)
        coords += [corners[:2], corners[2:]]
        labels += [TOP_LEFT, BOTTOM_RIGHT]
    else:
        coords.append((0, 0))
        labels.append(NOT_A_POINT)
    return box, np.array(coords, np.float32), np.array(labels, np.int64)


def _random_pixel(region: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A uniform pixel of `region`, or of the whole array where the region is empty (a rectangle has no outside)."""
    flat = np.flatnonzero(region)
    which = int(flat[rng.integers(len(flat))]) if len(flat) else int(rng.integers(region.size))
    return which // region.shape[1], which % region.shape[1]
