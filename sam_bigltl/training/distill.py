"""Distillation of a big.LITTLE student from a Sam, from photographs in any number, on any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from segment_anything.modeling import Sam
from torch import Tensor

from ..data.photos import preprocess
from ..data.skipped import write_skipped
from ..data.sources import START, Cursor, Photo, Source
from ..data.workers import load
from ..errors import InputError
from .cache import EmbeddingCache
from .config import LoopConfig
from .engine import Batch, Loop
from .frames import Embeddings, FrameConfig, FrameStreams, Part
from .objectives import EmbeddingObjective, PromptObjective, Weights


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """Settings of a stage.

    Attributes:
        stage: 1 (embeddings) or 2 (prompts in the loop).
        streams: that the photographs are read as, a divisor of `batch_size` and a multiple of the number of processes.
        accumulate: micro-batches a process and step.
        prompts, rounds: objects an image and corrective points each, of stage 2.
        weight_embedding, weight_layers, weight_router, weight_masks: see `Weights`.
        checkpointing: compute blocks again in the backward pass instead of storing them.
        cached: whether the teacher's embeddings come from a cache; frames are then never mirrored.
        teacher, data: fingerprints, so that a run is not continued with others.
    """

    stage: int
    streams: int = 1
    accumulate: int = 1
    prompts: int = 16
    rounds: int = 1
    weight_embedding: float = 1.0
    weight_layers: float = 0.0
    weight_router: float = 0.0
    weight_masks: float = 1.0
    checkpointing: bool = False
    cached: bool = False
    teacher: str = ""
    data: str = ""


class Distiller(Loop):
    """One stage of distillation in a folder; `skipped.csv` there names what could not be used, and why.

    Args:
        student: on its device; teacher: likewise, frozen here.
        source: of photographs.
        cache: of the teacher's embeddings, filled; or None to run the teacher.
        output, validate: see `Loop`.
    """

    config: DistillConfig
    keep_statistics = True

    def __init__(
        self,
        student: Sam,
        teacher: Sam,
        source: Source,
        config: DistillConfig,
        output: Path,
        cache: Embeddings | None = None,
        validate: Callable[[dict[str, Tensor]], list[dict]] | None = None,
    ) -> None:
        teacher.eval().requires_grad_(False)
        weights = Weights(config.weight_embedding, config.weight_layers, config.weight_router, config.weight_masks)
        objective = (EmbeddingObjective if config.stage == 1 else PromptObjective)(student, teacher, weights)
        super().__init__(student, objective, config, output, validate)
        student.image_encoder.gradient_checkpointing = config.checkpointing
        self.source, self.cache = source, cache
        self.frames = FrameConfig(
            student.image_encoder.img_size, config.prompts if config.stage == 2 else 0, config.rounds,
            flip=not config.cached,
        )  # fmt: skip
        self.skipped: dict[str, str] = {}
        processes = self.accelerator.num_processes
        if config.streams % processes:
            raise InputError(f"--streams {config.streams} is no multiple of the {processes} processes")
        if config.batch_size % config.streams:
            raise InputError(f"--batch-size {config.batch_size} is no multiple of --streams {config.streams}")
        if config.batch_size // processes % config.accumulate:
            raise InputError(
                f"--accumulate {config.accumulate} does not divide "
                f"the {config.batch_size // processes} images of a process"
            )
        self.mine = list(range(config.streams))[self.accelerator.process_index :: processes]
        self.cursors: dict[int, Cursor] = dict.fromkeys(self.mine, START)

    def micro_batches(self) -> Generator[list[Batch], None, None]:
        config = self.config
        streams = FrameStreams(
            self.source, self.frames, self.mine, config.streams, config.batch_size // config.streams, config.seed,
            dict(self.cursors), self.step, self.cache,
        )  # fmt: skip
        # Workers take streams in turn, which keeps their order only where they have equally many.
        workers = max(n for n in range(config.workers + 1) if n == 0 or len(self.mine) % n == 0)
        parts: list[Part] = []
        for part in load(streams, workers, ahead=2):
            parts.append(part)
            if len(parts) < len(self.mine):
                continue
            for each in parts:
                self.cursors[each.stream] = each.cursor
                self.skipped |= {skipped.key: skipped.reason for skipped in each.skipped}
            whole = {key: torch.cat([each.arrays[key] for each in parts]) for key in parts[0].arrays}
            chunks = {key: value.chunk(config.accumulate) for key, value in whole.items()}
            parts = []
            yield [{key: chunks[key][i] for key in chunks} for i in range(config.accumulate)]

    def extra_state(self) -> dict[str, Any]:
        gathered = gather_object([(self.cursors, self.skipped)])
        cursors = {stream: cursor for own, _ in gathered for stream, cursor in own.items()}
        skipped = {key: reason for _, own in gathered for key, reason in own.items()}
        if self.first and skipped:
            write_skipped(self.output / "skipped.csv", skipped)
        return {"cursors": cursors, "skipped": skipped}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.cursors = {stream: tuple(state["cursors"][stream]) for stream in self.mine}
        self.skipped = dict(state["skipped"])


def fingerprint(sam: Sam) -> str:
    """SHA-256 of a Sam's encoder: all of the weights and the shape of its input.

    Unlike that of saved embeddings, which samples the weights, it tells a teacher that was trained a little further.
    """
    digest = hashlib.sha256(str(sam.image_encoder.img_size).encode())
    for name, value in sorted(sam.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fill_cache(folder: Path, source: Source, teacher: Sam, precision: str) -> EmbeddingCache:
    """The cache in `folder` with an embedding of every photograph that can be read, verified.

    The processes share the work.
    """
    processes = PartialState()
    name, part = f"{fingerprint(teacher)} {precision}", (processes.process_index, processes.num_processes)
    cache = EmbeddingCache(folder, name, part)
    cache.verify()
    processes.wait_for_everyone()  # nobody writes before everybody has read

    @torch.inference_mode()
    def embed(photo: Photo) -> np.ndarray:
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return teacher.image_encoder(preprocess(teacher, photo.pixels))[0].float().cpu().numpy()

    config = teacher.image_encoder.config
    cache.fill(source, embed, (config.out_chans, config.side, config.side))
    processes.wait_for_everyone()
    return EmbeddingCache(folder, name, part)  # with what the others wrote
