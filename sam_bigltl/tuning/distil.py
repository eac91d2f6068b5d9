"""Distillation on the photographs that the little path was fitted to, for some minutes.

The big path stays as it is, so that at keep_ratio 1.0 the model computes the original's masks to the bit. Recipe: that
of docs/study.md, where the loss on the embedding alone was the best for boxes and masks beside it helped single clicks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from ..data.photos import preprocess
from ..data.sources import ListedSource, Photo
from ..errors import InputError
from ..fast.processor import multiplies_bfloat16
from ..training.distill import fingerprint
from ..training.engine import Batch
from ..training.frames import FrameConfig, make_frame
from ..training.timed import TimedConfig, TimedDistiller
from .photographs import is_held_out

STAGE_1 = 0.6  # share of the time that goes to embeddings, the rest to masks
_MIRRORED = " mirrored"

RECIPE: dict[str, Any] = {
    "optimizer": "muon" if hasattr(torch.optim, "Muon") else "adamw",  # torch has it since 2.9
    "lr": 3e-4, "final_lr": 0.02, "warmup": 4, "ema": 0.95, "train_decoder": False,
    "batch_size": 4, "workers": 0, "prompts": 8, "log_every": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Distilled:
    """What the minutes were spent on.

    Attributes:
        steps: of each stage. seconds: of all of it, all runs together.
        stopped_early: whether the last stage ended because the held-out loss no longer fell.
        trained, held_out: photographs.
        gained: whether a stage ended with weights that are better on the held-out ones than those that it began with.
        before, after: relative squared error of the embedding on the held-out photographs, by keep_ratio.
    """

    steps: tuple[int, ...]
    seconds: float
    stopped_early: bool
    trained: int
    held_out: int
    gained: bool
    before: dict[float, float]
    after: dict[float, float]


def distil(
    student: Sam,
    teacher: Sam,
    photographs: Iterable[tuple[np.ndarray, Sequence[dict[str, Any]]]],
    minutes: float,
    keep_ratios: Sequence[float | str],
    folder: Path,
    seed: int = 0,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Distilled:
    """Train the little path of a fitted model, in place; started again, an interrupted run goes on.

    Where nothing has an object, or no photograph that is held out, all of the time goes to embeddings.

    Args:
        student: a big.LITTLE model whose big path is the teacher's. teacher: the original; frozen.
        photographs: uint8 RGB (H, W, 3), each with the COCO RLEs (H, W) of what the teacher finds in it. Every fifth is
            held out (`is_held_out`), to say when to stop; the student should not be fitted to it, either. They are gone
            through once and kept at the size that the encoder takes.
        minutes: for everything, all runs together; what is under way when they are over is a step and a check.
        keep_ratios: of which the numbers below 1 are trained, one drawn for each step.
        folder: for the state, `log.csv` and `val.csv` of each stage.
        progress: show a bar where stderr is a terminal.
        clock: seconds from any start.

    Raises:
        InputError: there are fewer than two photographs, no keep_ratio below 1, or no time.
    """
    numbers = {float(ratio) for ratio in keep_ratios if not isinstance(ratio, str)}
    ratios = tuple(sorted((ratio for ratio in numbers if ratio < 1), reverse=True))
    if not ratios:
        raise InputError("distillation trains keep_ratios below 1, and there is none: give some, or no minutes")
    if not minutes > 0:
        raise InputError(f"{minutes:g} minutes are no time to distil: give more than 0, or leave distillation out")
    source = _Frames(photographs, teacher, student.image_encoder.img_size)
    held_out = [key for place, key in enumerate(source.keys) if is_held_out(place)] or source.keys[-1:]
    trained = [key for key in source.keys if key not in held_out]
    if not trained:
        raise InputError(f"{len(source.keys)} photographs are too few to distil on: give at least 2")
    flags = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    keep_ratio = student.image_encoder.keep_ratio
    stages = (1, 2) if source.has_objects(trained) and source.has_objects(held_out) else (1,)
    runs: list[TimedDistiller] = []
    try:
        for stage in stages:
            share = 1.0 if len(stages) == 1 else STAGE_1 if stage == 1 else 1 - STAGE_1
            config = TimedConfig(
                stage=stage, seconds=60 * minutes * share, keep_ratios=ratios, seed=seed, cached=True,
                precision=_precision(student.device), teacher=fingerprint(teacher)[:12], data=source.mark, **RECIPE,
            )  # fmt: skip
            run = TimedDistiller(
                student, teacher, _Listed(source, trained), config, folder / f"stage{stage}",
                partial(source.batches, held_out, config), source, clock,
            )  # fmt: skip
            run.progress = progress
            if run.state_path.exists():
                run.resume()
            run.run()
            runs.append(run)
    finally:
        student.eval()
        student.image_encoder.keep_ratio = keep_ratio
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(flags[name])
    errors = [
        {ratio: figures["mse"] for ratio, figures in run.figures[which].items()}
        for run, which in ((runs[0], "start"), (runs[-1], "best"))
    ]
    return Distilled(
        tuple(run.step for run in runs), sum(run.elapsed for run in runs), runs[-1].stopped_early, len(trained),
        len(held_out), any(run.gained for run in runs), *errors,
    )  # fmt: skip


def _precision(device: torch.device) -> str:
    """bfloat16 where the processor multiplies it: elsewhere it is many times slower than float32."""
    if device.type == "cpu":
        fast = multiplies_bfloat16()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if fast else "float32"


class _Frames:
    """Photographs at the size of the encoder's input, and the teacher's embeddings of them, computed once each.

    The mirrored ones are photographs of their own, so that their embeddings are kept, too.
    """

    def __init__(
        self, photographs: Iterable[tuple[np.ndarray, Sequence[dict[str, Any]]]], teacher: Sam, side: int
    ) -> None:
        self.teacher, self.side = teacher, side
        self.photos: dict[str, Photo] = {}
        self._embeddings: dict[str, np.ndarray] = {}
        digest = hashlib.sha256()
        for number, (pixels, masks) in enumerate(photographs):
            pixels = ResizeLongestSide(side).apply_image(pixels)
            digest.update(pixels.tobytes())
            self.photos[str(number)] = Photo(str(number), pixels, masks)
        self.keys = list(self.photos)
        self.mark = digest.hexdigest()[:12]

    def has_objects(self, keys: Sequence[str]) -> bool:
        """Whether one of the photographs has an object that is large enough to be prompted."""
        frames = FrameConfig(self.side, prompts=1, flip=False)
        return any(make_frame(self.photos[key], frames, np.random.default_rng(0)) is not None for key in keys)

    def photo(self, key: str) -> Photo:
        """One by its name, mirrored where that says so."""
        photo = self.photos[key.removesuffix(_MIRRORED)]
        if not key.endswith(_MIRRORED):
            return photo
        masks = [coco_mask.encode(np.asfortranarray(coco_mask.decode(mask)[:, ::-1])) for mask in photo.masks]
        return Photo(key, np.ascontiguousarray(photo.pixels[:, ::-1]), masks)

    @torch.inference_mode()
    def get(self, key: str) -> np.ndarray:
        """The teacher's embedding (C, g, g), float32."""
        if key not in self._embeddings:
            embedding = self.teacher.image_encoder(preprocess(self.teacher, self.photo(key).pixels))
            self._embeddings[key] = embedding[0].float().cpu().numpy()
        return self._embeddings[key]

    def batches(self, keys: Sequence[str], config: TimedConfig) -> list[Batch]:
        """A batch for each of the photographs that has objects, or for all of them in stage 1."""
        frames = FrameConfig(self.side, config.prompts if config.stage == 2 else 0, config.rounds, flip=False)
        found = []
        for number, key in enumerate(keys):
            frame = make_frame(self.photos[key], frames, np.random.default_rng([config.seed, number]))
            if frame is not None:
                arrays = frame | {"embedding": self.get(key)}
                found.append({name: torch.from_numpy(array)[None] for name, array in arrays.items()})
        return found


class _Listed(ListedSource):
    """What is trained on."""

    def __init__(self, frames: _Frames, keys: Sequence[str]) -> None:
        super().__init__([(key + end, Path(key), None) for key in keys for end in ("", _MIRRORED)])
        self.frames = frames
        self.has_masks = True

    def _photo(self, key: str) -> Photo:
        return self.frames.photo(key)
