"""Training a Sam end to end from masks, with or without a teacher, on CPU or one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import Subset

from ..decode import TOP_LEFT, decode, dense_position, embed_prompts
from ..errors import InputError
from .config import LoopConfig
from .data import MaskBatches, SampleConfig
from .engine import Batch, Loop
from .losses import embedding_loss, mask_loss
from .workers import load


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """Settings of a run on masks.

    Attributes:
        prompts: masks an image; crop: side of the training crops, pixels.
        scale, as_is, box_share, box_jitter: see `SampleConfig`.
        distill_weight: weight of embedding cosine + MSE to the teacher, where there is one; the masks weigh 1.
    """

    prompts: int = 8
    crop: int = 448
    scale: tuple[float, float] = (0.5, 1.5)
    as_is: float = 0.4
    box_share: float = 0.65
    box_jitter: float = 0.2
    distill_weight: float = 0.0


class Forward(nn.Module):
    """One forward pass over a batch, whole, so that it compiles as one graph."""

    def __init__(self, sam: Sam, teacher: Sam | None, distill_weight: float = 0.0) -> None:
        super().__init__()
        self.sam = sam
        self.teacher = teacher
        self.distill_weight = distill_weight

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = (batch["image"].float() - self.sam.pixel_mean) / self.sam.pixel_std
        embeddings = encode_crop(self.sam, images, batch["offset"])
        prompt_encoder = self.sam.prompt_encoder
        position = dense_position(prompt_encoder, batch["offset"], embeddings.shape[-2:])
        sparse = embed_prompts(prompt_encoder, batch["coords"], batch["labels"])
        logits, iou_pred = decode(self.sam.mask_decoder, prompt_encoder, embeddings, position, sparse)
        has_box = (batch["labels"] == TOP_LEFT).any(dim=-1)
        masks = mask_loss(logits, iou_pred, batch["target"].float() / 255, batch["boxes"], has_box)
        cosine = mse = masks.total.new_zeros(())
        if self.teacher is not None:
            with torch.no_grad():
                wanted = encode_crop(self.teacher, images, batch["offset"])
            cosine, mse = embedding_loss(embeddings, wanted, batch["valid"])
        return {
            "loss": masks.total + self.distill_weight * (cosine + mse), "bce": masks.bce, "dice": masks.dice, "iou_head": masks.iou_head,
            "iou": masks.iou, "cosine": cosine, "mse": mse,
        }  # fmt: skip


def encode_crop(sam: Sam, images: Tensor, offsets: Tensor) -> Tensor:
    """Embeddings of parts of the frame: images (B, 3, S, S) normalised, offsets (B, 2) in tokens -> (B, C, g, g)."""
    encoder = sam.image_encoder
    tokens = encoder.patch_embed(images)  # (B, g, g, C)
    rows = offsets[:, 0, None] + torch.arange(tokens.shape[1], device=tokens.device)
    columns = offsets[:, 1, None] + torch.arange(tokens.shape[2], device=tokens.device)
    return encoder.encode_tokens(tokens + encoder.pos_embed[0][rows[:, :, None], columns[:, None, :]])


class Trainer(Loop):
    """A run on the masks of `batches`.

    Args:
        teacher: frozen Sam whose embeddings are distilled, or None.
        sam, output, validate: see `Loop`.
    """

    def __init__(
        self,
        sam: Sam,
        batches: MaskBatches,
        config: TrainConfig,
        output: Path,
        teacher: Sam | None = None,
        validate: Callable[[dict[str, Tensor]], list[dict]] | None = None,
    ) -> None:
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        super().__init__(sam, Forward(sam, teacher, config.distill_weight), config, output, validate)
        if self.accelerator.num_processes > 1:
            raise InputError("`train` runs as one process; `sam-bigltl distill` shares its batches over several")
        self.batches = batches
        self.keep_statistics = teacher is not None

    def micro_batches(self) -> Iterator[list[Batch]]:
        rest = Subset(self.batches, range(self.step, self.config.steps))
        for batch in load(rest, self.config.workers, ahead=4):
            yield [batch]


def make_batches(
    annotations: Path, images: Path, sam: Sam, config: TrainConfig, ignore_exif: bool = False
) -> MaskBatches:
    """The batches that `config` asks for, in the frame of `sam`."""
    encoder = sam.image_encoder
    if config.crop % encoder.patch_size or not 0 < config.crop <= encoder.img_size:
        raise InputError(
            f"crop is a multiple of {encoder.patch_size} up to {encoder.img_size} pixels, not {config.crop}"
        )
    sample = SampleConfig(
        encoder.img_size,
        config.crop,
        encoder.patch_size,
        config.prompts,
        config.scale,
        config.as_is,
        config.box_share,
        config.box_jitter,
    )
    return MaskBatches(annotations, images, sample, config.batch_size, config.seed, config.steps, ignore_exif)
