"""One model for all users of the demo: embeddings that are kept, masks of prompts, everything mode, costs."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData

from ..bench.macs import count_macs
from ..convert.sam import load_sam
from ..fast.choice import check, is_slow
from ..modeling.routing import Route
from ..modeling.trunk import KeepRatio
from ..predict.automatic import SamAutomaticMaskGenerator
from ..predict.embeddings import Embedding
from ..predict.predictor import SamPredictor
from ..predict.segment import Prompt, timed


@dataclass(frozen=True)
class Encoded:
    """A photograph at one keep_ratio: its embedding and the milliseconds that it took."""

    embedding: Embedding
    keep_ratio: KeepRatio
    milliseconds: float

    @property
    def route(self) -> Route | None:
        """Which tokens were big; None from a dense encoder."""
        return self.embedding.route


@dataclass(frozen=True)
class Masks:
    """Three masks (3, H, W) bool, their predicted IoUs (3,), and the milliseconds of the click."""

    masks: np.ndarray
    ious: np.ndarray
    milliseconds: float

    def chosen(self, choice: int | None) -> int:
        """`choice`, or the mask with the highest predicted IoU."""
        return int(self.ious.argmax()) if choice is None else choice


class Stopped(Exception):
    """Everything mode was told to stop."""


class Engine:
    """The model and what it has computed.

    Everything here may be called from several threads at once: the encoder runs for one of them at a time, since its
    keep_ratio belongs to the model; prompts are decoded in parallel.

    Args:
        checkpoint: any file that `load_sam` reads.
        device, dtype, native: where and how the encoder runs, as in `BigLittleEncoder.compute_in`.
        kept: embeddings to keep; the least recently used one goes first.
    """

    def __init__(
        self, checkpoint: Path, device: torch.device, dtype: str = "float32", native: bool = False, kept: int = 32
    ) -> None:
        check(device, dtype, native)
        self.checkpoint, self.device, self.dtype, self.native, self.kept = checkpoint, device, dtype, native, kept
        self.sam: Sam = load_sam(checkpoint).to(device)
        self.routed = not getattr(self.sam.image_encoder, "is_dense", True)
        # The counter sees neither int8 nor native kernels.
        self._countable = self.sam.image_encoder
        if native or dtype == "int8":
            self._countable = copy.deepcopy(self.sam.image_encoder)
            if not is_slow(device, "bfloat16"):
                self._countable.to(torch.bfloat16)
        self.sam.image_encoder.compute_in(dtype, native)
        self._encoder_lock, self._lock = threading.Lock(), threading.Lock()
        self._embeddings: OrderedDict[tuple[str, KeepRatio], Encoded] = OrderedDict()
        self._macs: dict[KeepRatio, float] = {}
        self.encode("", np.zeros((8, 8, 3), np.uint8), 1.0)  # the first pass is slow and nobody's
        self._embeddings.clear()

    def encode(self, name: str, image: np.ndarray, keep_ratio: KeepRatio) -> Encoded:
        """The embedding of `image`, uint8 RGB (H, W, 3), which `name` stands for; computed once while it is kept."""
        key = (name, keep_ratio)
        with self._lock:
            if key in self._embeddings:
                self._embeddings.move_to_end(key)
                return self._embeddings[key]
        predictor = SamPredictor(self.sam, strict=True)
        with self._encoder_lock:
            if self.routed:
                self.sam.image_encoder.keep_ratio = keep_ratio
            milliseconds, _ = timed(lambda: predictor.set_image(image), self.device)
        found = Encoded(predictor.get_embedding(), keep_ratio, milliseconds)
        with self._lock:
            self._embeddings[key] = found
            while len(self._embeddings) > self.kept:
                self._embeddings.popitem(last=False)
        return found

    def masks(self, encoded: Encoded, prompt: Prompt) -> Masks:
        """What `SamPredictor.predict` answers to `prompt`."""
        predictor = SamPredictor(self.sam, strict=True)
        predictor.set_embedding(encoded.embedding)
        arguments: dict[str, Any] = {**prompt.arguments()}
        milliseconds, (masks, ious, _) = timed(lambda: predictor.predict(**arguments), self.device)
        return Masks(masks, ious, milliseconds)

    def gmacs(self, route: Route | None) -> float:
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

    def everything(
        self,
        image: np.ndarray,
        encoded: Encoded,
        options: dict[str, float],
        report: Callable[[float], None],
        stop: threading.Event,
    ) -> list[dict]:
        """Records of `SamAutomaticMaskGenerator.generate` with compressed RLEs.

        Args:
            options: of the generator.
            report: called with the share that is done.
            stop: once it is set, Stopped is raised.
        """
        return _Everything(self.sam, encoded.embedding, report, stop, **options).generate(image)


class _Everything(SamAutomaticMaskGenerator):
    """The generator on an embedding that is there already, telling how far it is."""

    def __init__(
        self, sam: Sam, embedding: Embedding, report: Callable[[float], None], stop: threading.Event, **options: Any
    ) -> None:
        super().__init__(sam, points_per_batch=16, output_mode="coco_rle", **options)
        transform = self.predictor.transform
        self.predictor = _Ready(sam, strict=True)
        self.predictor.given, self.predictor.transform = embedding, transform
        self._report, self._stop, self._done = report, stop, 0

    def _process_batch(self, points: np.ndarray, *sizes: Any) -> MaskData:
        if self._stop.is_set():
            raise Stopped
        found = super()._process_batch(points, *sizes)
        self._done += len(points)
        self._report(self._done / len(self.point_grids[0]))
        return found


class _Ready(SamPredictor):
    """A predictor to which every image is the one that was embedded."""

    given: Embedding

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", *, boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        self.set_embedding(self.given)
