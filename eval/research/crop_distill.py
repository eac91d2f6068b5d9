"""Distillation on crops of photographs: the teacher's embeddings of the same crop, at a quarter of a frame's cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sam_bigltl.training.engine import Batch
from sam_bigltl.training.loop import TrainConfig, Trainer, embed_crop, encode_crop, make_batches
from sam_bigltl.training.losses import embedding_loss


class CropObjective(nn.Module):
    """1 - cosine (the paper's L_fd) plus relative squared error of the embeddings of a crop.

    A student of lower resolution gets the crop at its own, and is compared with the teacher's embedding resized.

    Args:
        student: its encoder is trained.
        teacher: frozen; not a submodule, since nothing of it is to be synchronised between processes.
        cosine_only: leave the squared error out, as the paper does.
    """

    def __init__(self, student: Sam, teacher: Sam, cosine_only: bool = False) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.cosine_only = cosine_only

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars "loss", "cosine" and "mse"."""
        (teacher,) = self._teacher
        images = (batch["image"].float() - self.student.pixel_mean) / self.student.pixel_std
        with torch.no_grad():
            wanted = teacher.image_encoder.encode_tokens(embed_crop(teacher, images, batch["offset"]))
        valid, offset = batch["valid"], batch["offset"]
        share = self.student.image_encoder.img_size / teacher.image_encoder.img_size
        if share != 1:
            side = round(images.shape[-1] * share)
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
            grid = (side // self.student.image_encoder.patch_size,) * 2
            wanted = F.interpolate(wanted, grid, mode="bilinear", antialias=True, align_corners=False)
            valid = F.interpolate(valid[:, None].float(), grid, mode="area")[:, 0] > 0.5
            offset = (offset * share).round().long()
        cosine, mse = embedding_loss(encode_crop(self.student, images, offset), wanted, valid)
        loss = cosine if self.cosine_only else cosine + mse
        return {"loss": loss, "cosine": cosine, "mse": mse}


def crop_trainer(
    student: Sam,
    objective: nn.Module,
    annotations: Sequence[Path],
    images: Path,
    config: TrainConfig,
    output: Path,
    frame: Sam,
) -> Trainer:
    """A run that trains `student` by `objective` on crops of the frame of `frame`."""
    trainer = Trainer(student, make_batches(annotations, images, frame, config), config, output)
    trainer.forward = objective
    return trainer
