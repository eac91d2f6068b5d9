"""One model for all users of the demo: embeddings that are kept, masks of prompts, everything mode, costs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam

from ..bench.macs import count_macs
from ..convert.sam import load_sam
from ..fast.choice import check, is_slow
from ..modeling.routing import Route
from ..modeling.trunk import KeepRatio
from ..predict.embeddings import Embedding
from ..predict.predictor import SamPredictor
from ..predict.prompt import Prompt
from ..predict.segment import timed
from .everything import Options, Region, everything
from .full_size import full_size_mask
from .photos import Photo
from .pictures import stage_pictures
from .rle import Rle, as_rle
from .store import Store


@dataclass(frozen=True)
class Encoded:
    """A photograph at one keep_ratio: its embedding, the milliseconds that it took, and what the encoder spent.

    `stages` are pictures of its routing (none of a dense encoder), `gmacs` its billions of multiply-accumulates.
    """

    embedding: Embedding
    milliseconds: float
    stages: list[dict[str, Any]]
    gmacs: float

    @property
    def bytes(self) -> int:
        """That it takes."""
        pictures = sum(len(value) for stage in self.stages for value in stage.values() if isinstance(value, str))
        return self.embedding.features.untyped_storage().nbytes() + pictures


@dataclass(frozen=True)
class Masks:
    """Three masks at the view's size, their predicted IoUs, the milliseconds of the click, and the logits (3, h, w)."""

    masks: list[Rle]
    ious: list[float]
    milliseconds: float
    low_res: torch.Tensor


class Engine:
    """The model and what it has computed.

    Everything here may be called from several threads at once: the encoder runs for one of them at a time, since its
    keep_ratio belongs to the model; prompts are decoded in parallel.

    Args:
        checkpoint: any file that `load_sam` reads.
        device, dtype, native: where and how the encoder runs, as in `BigLittleEncoder.compute_in`.
        memory: bytes for all that is kept: see `Store`.

    Attributes:
        store: photographs and embeddings of all users.
        transform: what brings photographs and prompts to the model's frame.
    """

    def __init__(
        self, checkpoint: Path, device: torch.device, dtype: str = "float32", native: bool = False,
        memory: int = 2**30,
    ) -> None:  # fmt: skip
        check(device, dtype, native)
        self.checkpoint, self.device, self.dtype, self.native = checkpoint, device, dtype, native
        self.store = Store(memory)
        self.sam: Sam = load_sam(checkpoint).to(device)
        self.routed = not getattr(self.sam.image_encoder, "is_dense", True)
        # The counter sees neither int8 nor native kernels.
        self._countable = self.sam.image_encoder
        if native or dtype == "int8":
            self._countable = copy.deepcopy(self.sam.image_encoder)
            if not is_slow(device, "bfloat16"):
                self._countable.to(torch.bfloat16)
        self.sam.image_encoder.compute_in(dtype, native)
        self.transform = SamPredictor(self.sam).transform
        self._encoder_lock = threading.RLock()
        self._macs: dict[KeepRatio, float] = {}
        side = self.sam.image_encoder.img_size
        self.encode(Photo("", (side, side), (8, 8), np.zeros((side, side, 3), np.uint8)), 1.0)  # the first is slow
        self.store = Store(memory)

    def kept(self, photo: Photo, keep_ratio: KeepRatio) -> Encoded | None:
        """The embedding of a photograph, where it is still there."""
        return self.store.get((photo.key, self._ratio(keep_ratio)))

    def encode(self, photo: Photo, keep_ratio: KeepRatio) -> Encoded:
        """The embedding of a photograph, computed once while it is kept."""
        keep_ratio = self._ratio(keep_ratio)
        with self._encoder_lock:
            # Whoever waited for the same one finds it here.
            if (found := self.store.get((photo.key, keep_ratio))) is not None:
                return found
            if self.routed:
                self.sam.image_encoder.keep_ratio = keep_ratio
            predictor = SamPredictor(self.sam, strict=True)
            pixels = torch.as_tensor(photo.pixels, device=self.device).permute(2, 0, 1).contiguous()[None]
            milliseconds, _ = timed(lambda: predictor.set_torch_image(pixels, photo.size), self.device)
            embedding = predictor.get_embedding()
            encoded = Encoded(
                Embedding(embedding.features, embedding.sizes), milliseconds, stage_pictures(embedding.route),
                self._gmacs(embedding.route),
            )  # fmt: skip
            self.store.put((photo.key, keep_ratio), encoded, encoded.bytes)
            return encoded

    def masks(self, photo: Photo, encoded: Encoded, prompt: Prompt) -> Masks:
        """What `SamPredictor.predict` answers to `prompt`, with masks of the view's size."""
        predictor = SamPredictor(self.sam, strict=True)
        size, input_size = encoded.embedding.sizes[0]
        predictor.set_embedding(Embedding(encoded.embedding.features, [(photo.view, input_size)]))
        points, labels, box = None, None, None
        if prompt.points:
            points = self._tensor(self.transform.apply_coords(np.array(prompt.points), size), torch.float32)
            labels = self._tensor(np.array(prompt.labels), torch.int32)
        if prompt.box is not None:
            box = self._tensor(self.transform.apply_boxes(np.array(prompt.box), size), torch.float32)
        milliseconds, (masks, ious, low_res) = timed(
            lambda: predictor.predict_torch(points, labels, box), self.device
        )  # fmt: skip
        rles = [as_rle(mask) for mask in masks[0].cpu().numpy()]
        return Masks(rles, [float(value) for value in ious[0]], milliseconds, low_res[0].cpu())

    def full_mask(self, photo: Photo, encoded: Encoded, prompt: Prompt, choice: int) -> tuple[Rle, float]:
        """Mask `choice` of the three that `SamPredictor.predict` answers, at the photograph's size, and its IoU."""
        found = self.masks(photo, encoded, prompt)
        side, threshold = self.sam.image_encoder.img_size, self.sam.mask_threshold
        _, input_size = encoded.embedding.sizes[0]
        return full_size_mask(found.low_res[choice], side, input_size, photo.size, threshold), found.ious[choice]

    def everything(
        self, photo: Photo, encoded: Encoded, options: Options, report: Callable[[float, int], None],
        stop: threading.Event,
    ) -> list[Region]:  # fmt: skip
        """All regions of a photograph: see `everything.everything`."""
        return everything(self.sam, encoded.embedding, photo.view, options, report, stop)

    @property
    def dense_gmacs(self) -> float:
        """Billions of multiply-accumulates of a pass with every token big."""
        return self._gmacs(None)

    def _gmacs(self, route: Route | None) -> float:
        """Billions of multiply-accumulates of a pass with as many big tokens as in `route` (None: dense)."""
        encoder = self._countable
        ratio: KeepRatio = 1.0
        if self.routed and route is not None:
            stages = {stage: group for (stage, _), group in zip(encoder.config.groups, route.groups)}
            tokens = route.grid[0] * route.grid[1]
            ratio = tuple(int((stages[stage].indices[0] >= 0).sum()) / tokens for stage in sorted(stages))
        with self._encoder_lock:
            if ratio not in self._macs:
                parameter = next(encoder.parameters())
                side = encoder.img_size
                pixels = torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)
                if self.routed:
                    encoder.keep_ratio = ratio
                self._macs[ratio] = count_macs(encoder, pixels).total / 1e9
            return self._macs[ratio]

    def _ratio(self, keep_ratio: KeepRatio) -> KeepRatio:
        """What is asked of the encoder; a dense one has nothing to choose."""
        return keep_ratio if self.routed else 1.0

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(dtype).to(self.device)[None]
