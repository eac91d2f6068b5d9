"""From photographs to what a distillation step takes: frames as inference makes them, and prompts for the teacher.

A frame is a pure function of the photograph and (seed, step, place in the batch), so that neither the number of
processes nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from segment_anything.utils.transforms import ResizeLongestSide
from torch.utils.data import IterableDataset, get_worker_info

from ..data.skipped import Skipped
from ..data.sources import GIVE_UP, Cursor, Photo, Source
from ..errors import InputError
from ..evaluation.prompts import tight_box
from ..modeling.decode import BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT

MIN_PIXELS = 12  # of an object that is prompted, in the frame


class Embeddings(Protocol):
    """The teacher's, such as an `EmbeddingCache`."""

    def get(self, key: str) -> np.ndarray | None:
        """That of a photograph, (C, g, g), or None."""


@dataclass(frozen=True)
class FrameConfig:
    """How photographs become frames.

    Attributes:
        side: of the model's input, pixels.
        prompts: objects an image; 0 for frames without prompts.
        rounds: corrective points after the first prompt.
        box_share: share of boxes among first prompts; the others are one point.
        flip: whether half of the frames are mirrored (not with cached embeddings).
    """

    side: int
    prompts: int = 0
    rounds: int = 1
    box_share: float = 0.5
    flip: bool = True


def make_frame(photo: Photo, config: FrameConfig, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """One frame, or None if prompts are wanted and no object is large enough.

    Returns:
        image (3, S, S) uint8 RGB, the photograph at the top left; size (2,) its rows and columns in the frame; with
        prompts P: coords (P, 2, 2) x, y in the frame, labels (P, 2), noise (P, rounds) uniform in [0, 1).
    """
    pixels = ResizeLongestSide(config.side).apply_image(photo.pixels)
    height, width = pixels.shape[:2]
    flip = config.flip and rng.random() < 0.5
    image = np.zeros((config.side, config.side, 3), np.uint8)
    image[:height, :width] = pixels[:, ::-1] if flip else pixels
    frame = {"image": image.transpose(2, 0, 1), "size": np.array([height, width])}
    if not config.prompts:
        return frame
    masks = _objects(photo.masks, (height, width), config.prompts, rng)
    if not masks:
        return None
    coords, labels = zip(*(
        _first_prompt(masks[i % len(masks)][:, ::-1] if flip else masks[i % len(masks)], config.box_share, rng)
        for i in range(config.prompts)  # too few masks: the same ones again, with other prompts
    ))  # fmt: skip
    noise = rng.random((config.prompts, config.rounds), dtype=np.float32)
    return frame | {"coords": np.stack(coords), "labels": np.stack(labels), "noise": noise}


def _objects(
    masks: Sequence[dict[str, Any]], size: tuple[int, int], count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Up to `count` random masks that are large enough, boolean at the frame's scale."""
    found: list[np.ndarray] = []
    for which in rng.permutation(len(masks)):
        mask = coco_mask.decode(masks[which])
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
        if mask.sum() >= MIN_PIXELS:
            found.append(mask)
        if len(found) == count:
            break
    return found


def _first_prompt(mask: np.ndarray, box_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The box of a mask, or a random point of it: (2, 2) coordinates and (2,) labels."""
    if rng.random() < box_share:
        return tight_box(mask).reshape(2, 2).astype(np.float32), np.array([TOP_LEFT, BOTTOM_RIGHT])
    rows, columns = np.nonzero(mask)
    which = rng.integers(len(rows))
    return np.array([[columns[which], rows[which]], [0, 0]], np.float32), np.array([FOREGROUND, NOT_A_POINT])


@dataclass
class Part:
    """One stream's share of a step: arrays by name with the images first, what was skipped, and the cursor after it."""

    arrays: dict[str, torch.Tensor]
    skipped: list[Skipped]
    stream: int
    cursor: Cursor


class FrameStreams(IterableDataset):
    """Some of a source's streams, as one `Part` a stream and step, in turn; endless.

    Args:
        streams: the streams of this process; count: of all processes.
        each: images a stream and step.
        cursors: where each stream is.
        step: the step that comes next.
        cache: of the teacher's embeddings, which then come along as "embedding".
    """

    def __init__(
        self, source: Source, config: FrameConfig, streams: Sequence[int], count: int, each: int, seed: int,
        cursors: dict[int, Cursor], step: int, cache: Embeddings | None = None,
    ) -> None:  # fmt: skip
        self.source, self.config, self.streams, self.count, self.each = source, config, list(streams), count, each
        self.seed, self.cursors, self.step, self.cache = seed, cursors, step, cache

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        mine = self.streams[worker.id :: worker.num_workers] if worker else self.streams
        photos = {i: self.source.stream(i, self.count, self.seed, self.cursors[i]) for i in mine}
        step = self.step
        while True:
            for stream in mine:
                yield self._part(stream, photos[stream], step)
            step += 1

    def _part(self, stream: int, photos: Iterator[tuple[Cursor, Photo | Skipped]], step: int) -> Part:
        frames: list[dict[str, np.ndarray]] = []
        skipped: list[Skipped] = []
        while len(frames) < self.each:
            if len(skipped) >= GIVE_UP:
                last = skipped[-1]
                raise InputError(f"{GIVE_UP} photographs in a row cannot be used, the last: {last.key}: {last.reason}")
            cursor, photo = next(photos)
            if isinstance(photo, Skipped):
                skipped.append(photo)
                continue
            frame = make_frame(photo, self.config, np.random.default_rng([self.seed, step, stream, len(frames)]))
            embedding = self.cache.get(photo.key) if self.cache else None
            if frame is None:
                skipped.append(Skipped(photo.key, f"has no object of {MIN_PIXELS} pixels"))
            elif self.cache and embedding is None:
                skipped.append(Skipped(photo.key, "is not in the cache of embeddings"))
            else:
                frames.append(frame | ({} if embedding is None else {"embedding": embedding}))
        arrays = {key: torch.from_numpy(np.stack([frame[key] for frame in frames])) for key in frames[0]}
        return Part(arrays, skipped, stream, cursor)
