"""Training a Sam end to end from masks, with or without a teacher, on CPU or GPUs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import Subset

from ..data.workers import load
from ..errors import InputError
from ..modeling import unchanged
from ..modeling.decode import TOP_LEFT, dense_position
from .config import LoopConfig
from .data import MaskBatches, SampleConfig
from .engine import Batch, Loop
from .losses import MaskLoss, embedding_loss, mask_loss
from .rounds import CLICK, MASK, best_masks, decode_with_masks, next_clicks


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """Settings of a run on masks.

    Attributes:
        prompts: masks an image; crop: side of the training crops, pixels.
        scale, as_is, box_share, box_jitter: see `SampleConfig`.
        rounds: most rounds of prompts a step; after the first, clicks into the error and masks fed back, see `rounds`.
        round_prompts: masks an image in these later rounds.
        balance: "source" to draw photographs so that each `source` of the JSON counts as the square root of its size;
            None for all alike.
        paste, degrade: shares of photographs that get objects of others pasted in, and that are blurred, compressed
            or noisy: see `augment`.
        distill_weight: weight of embedding cosine + MSE to the teacher, where there is one; the masks weigh 1.
    """

    prompts: int = 8
    crop: int = 448
    scale: tuple[float, float] = (0.5, 1.5)
    as_is: float = 0.4
    box_share: float = 0.65
    box_jitter: float = 0.2
    rounds: int = 1
    round_prompts: int = 4
    balance: str | None = None
    paste: float = 0.0
    degrade: float = 0.0
    distill_weight: float = 0.0


class Forward(nn.Module):
    """One forward pass over a batch, whole, so that it compiles as one graph.

    Raises InputError for a prompt encoder or a mask decoder with something that is not SAM's: it would be left out.
    """

    def __init__(self, sam: Sam, teacher: Sam | None, distill_weight: float = 0.0) -> None:
        super().__init__()
        unchanged.check_plain(sam, "trained")
        self.sam = sam
        self.teacher = teacher
        self.distill_weight = distill_weight

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = (batch["image"].float() - self.sam.pixel_mean) / self.sam.pixel_std
        embeddings = encode_crop(self.sam, images, batch["offset"])
        height, width = embeddings.shape[-2:]
        position = dense_position(self.sam.prompt_encoder, batch["offset"], (height, width))
        masks = self._rounds(batch, embeddings, position)
        cosine = mse = masks["loss"].new_zeros(())
        if self.teacher is not None:
            with torch.no_grad():
                wanted = encode_crop(self.teacher, images, batch["offset"])
            cosine, mse = embedding_loss(embeddings, wanted, batch["valid"])
        loss = masks["loss"] + self.distill_weight * (cosine + mse)
        return masks | {"loss": loss, "cosine": cosine, "mse": mse}

    def _rounds(self, batch: Batch, embeddings: Tensor, position: Tensor) -> dict[str, Tensor]:
        """Mean loss over the rounds; the figures of the first, and the IoU after the last."""
        coords, labels, boxes = batch["coords"], batch["labels"], batch["boxes"]
        target = batch["target"].float() / 255
        shift = (batch["offset"].flip(1) * self.sam.image_encoder.patch_size)[:, None]  # x, y of the crop in the frame
        kinds = batch["rounds"].tolist() if "rounds" in batch else []
        losses: list[MaskLoss] = []
        fed_back = None
        for number in range(len(kinds) + 1):
            logits, iou_pred = decode_with_masks(self.sam, embeddings, position, coords, labels, fed_back)
            has_box = (labels == TOP_LEFT).any(dim=-1)
            losses.append(mask_loss(logits, iou_pred, target, boxes, has_box))
            if number == len(kinds):
                break
            count = batch["noise"].shape[1]
            coords, labels, boxes, target = (x[:, :count] for x in (coords, labels, boxes, target))
            masks = best_masks(logits[:, :count], iou_pred[:, :count])
            if kinds[number] != MASK:
                xy, label = next_clicks(masks, target, batch["valid"], batch["noise"][number])
                coords = torch.cat([coords, (xy + shift)[:, :, None]], dim=2)
                labels = torch.cat([labels, label[..., None]], dim=2)
            fed_back = None if kinds[number] == CLICK else masks
        first, last = losses[0], losses[-1]
        return {
            "loss": torch.stack([each.total for each in losses]).mean(), "bce": first.bce, "dice": first.dice,
            "iou_head": first.iou_head, "iou": first.iou, "last_iou": last.iou,
        }  # fmt: skip


def encode_crop(sam: Sam, images: Tensor, offsets: Tensor) -> Tensor:
    """Embeddings of parts of the frame: images (B, 3, S, S) normalised, offsets (B, 2) in tokens -> (B, C, g, g)."""
    return sam.image_encoder.encode_tokens(embed_crop(sam, images, offsets))


def embed_crop(sam: Sam, images: Tensor, offsets: Tensor) -> Tensor:
    """Patch and position embedding of parts of the frame: (B, 3, S, S), (B, 2) -> tokens (B, g, g, C)."""
    encoder = sam.image_encoder
    tokens = encoder.project_patches(images)  # (B, g, g, C)
    rows = offsets[:, 0, None] + torch.arange(tokens.shape[1], device=tokens.device)
    columns = offsets[:, 1, None] + torch.arange(tokens.shape[2], device=tokens.device)
    return tokens + encoder.pos_embed[0][rows[:, :, None], columns[:, None, :]]


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
        batches.share(self.accelerator.process_index, self.accelerator.num_processes)
        self.batches = batches
        self.keep_statistics = teacher is not None
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in sam.modules())
        if norms and not self.keep_statistics and self.accelerator.num_processes > 1:
            raise InputError(
                "the batch norms of this model would see the images of one process only: "
                "train it as one process, or with --teacher"
            )

    def micro_batches(self) -> Generator[list[Batch], None, None]:
        rest = Subset(self.batches, range(self.step, self.config.end))
        for batch in load(rest, self.config.workers, ahead=4):
            yield [batch]


def make_batches(
    annotations: Sequence[Path], images: Path, sam: Sam, config: TrainConfig, ignore_exif: bool = False
) -> MaskBatches:
    """The batches that `config` asks for, in the frame of `sam`."""
    encoder = sam.image_encoder
    if config.crop % encoder.patch_size or not 0 < config.crop <= encoder.img_size:
        raise InputError(
            f"crop is a multiple of {encoder.patch_size} up to {encoder.img_size} pixels, not {config.crop}"
        )
    shared = {field.name: getattr(config, field.name) for field in fields(SampleConfig) if hasattr(config, field.name)}
    sample = SampleConfig(frame=encoder.img_size, patch=encoder.patch_size, **shared)
    return MaskBatches(annotations, images, sample, config.batch_size, config.seed, config.steps, ignore_exif)
