"""What distillation minimises: stage 1 compares embeddings, stage 2 the masks that prompts get from them.

Both take whole frames as inference makes them. All losses are means over the images of a batch, so that processes and
micro-batches average to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..modeling import unchanged
from ..modeling.decode import BACKGROUND, FOREGROUND, NOT_A_POINT
from ..modeling.trunk import Taps
from .engine import Batch
from .losses import embedding_loss, relative_error, router_loss, teacher_mask_loss
from .rounds import decode_with_masks, outputs_at


@dataclass(frozen=True)
class Weights:
    """Weights of the losses.

    Attributes:
        embedding: 1 - cosine (the paper's L_fd) plus relative squared error of the embedding.
        layers: relative squared error of the tokens after each stage, for students of the teacher's width.
        router: cross-entropy of the router's scores with the little path's error, likewise.
        padding: whether the embedding's losses count the padding beside the photograph, which the decoder sees, too.
        soft: whether stage 2 compares with the teacher's probabilities instead of its thresholded masks.
        masks: of stage 2: of `bce` and `dice`, 5 and 5 as EdgeSAM has them, and 1 of the IoU head.
    """

    embedding: float = 1.0
    layers: float = 0.0
    router: float = 0.0
    masks: float = 1.0
    padding: bool = False
    soft: bool = False


class EmbeddingObjective(nn.Module):
    """Stage 1.

    Args:
        student: its encoder is trained.
        teacher: frozen; not a submodule, since nothing of it is to be synchronised between processes.
    """

    def __init__(self, student: Sam, teacher: Sam, weights: Weights) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self.weights = weights

    @property
    def teacher(self) -> Sam:
        return self._teacher[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars "loss", "cosine", "mse" and, where they have a weight, "layers" and "router"."""
        return self.embeddings(batch)[0]

    def embeddings(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses, and the embeddings of student and teacher (B, C, g, g)."""
        images = self._preprocess(batch)
        encoder, weights = self.student.image_encoder, self.weights
        wants_layers = weights.layers > 0 or weights.router > 0
        encoder.taps = Taps() if wants_layers else None
        ours = encoder(images)
        taps, encoder.taps = encoder.taps, None
        theirs, layers = self._teach(batch, images, wants_layers)
        grid = ours.shape[-2:]
        patch = encoder.patch_size
        valid = _inside(batch["size"], grid, patch)
        counted = torch.ones_like(valid) if weights.padding else valid
        cosine, mse = embedding_loss(ours, theirs, counted)
        out = {"loss": weights.embedding * (cosine + mse), "cosine": cosine, "mse": mse}
        if wants_layers:
            out |= self._stages(taps, layers, valid.flatten(1))
            out["loss"] = out["loss"] + weights.layers * out["layers"] + weights.router * out["router"]
        return out, ours, theirs

    def _preprocess(self, batch: Batch) -> Tensor:
        """As `Sam.preprocess`: padding is 0 after normalisation."""
        images = (batch["image"].float() - self.student.pixel_mean) / self.student.pixel_std
        return images * _inside(batch["size"], images.shape[-2:], 1)[:, None]

    @torch.no_grad()
    def _teach(self, batch: Batch, images: Tensor, wants_layers: bool) -> tuple[Tensor, dict[int, Tensor]]:
        if "embedding" in batch and not wants_layers:
            return batch["embedding"], {}
        encoder = self.teacher.image_encoder
        encoder.taps = taps = Taps() if wants_layers else None
        embeddings = encoder(images)
        encoder.taps = None
        return embeddings, taps.layers if taps else {}

    def _stages(self, taps: Taps, teacher: dict[int, Tensor], valid: Tensor) -> dict[str, Tensor]:
        ends = [layers[-1] for layers in self.student.image_encoder.config.stages]
        errors = [relative_error(taps.layers[i].transpose(1, 2), teacher[i].transpose(1, 2), valid) for i in ends]
        routers = [
            router_loss(scores, (estimate - teacher[layer]).square().mean(dim=-1) * valid)
            for layer, (estimate, scores) in taps.little.items()
        ]  # fmt: skip
        router = torch.stack(routers).mean() if routers else errors[0].new_zeros(())  # none runs at keep_ratio 1.0
        return {"layers": torch.stack(errors).mean(), "router": router}


class PromptObjective(EmbeddingObjective):
    """Stage 2: prompts in the loop, with points where student and teacher disagree after the first one.

    Raises InputError for a prompt encoder or a mask decoder with something that is not SAM's: it would be left out.
    """

    def __init__(self, student: Sam, teacher: Sam, weights: Weights) -> None:
        for sam in (student, teacher):
            unchanged.check_plain(sam, "trained")
        super().__init__(student, teacher, weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars "loss", those of stage 1, "bce", "dice", "iou_head", "iou" (mean over the rounds)."""
        out, ours, theirs = self.embeddings(batch)
        coords, labels = batch["coords"], batch["labels"]
        low = 4 * ours.shape[-2], 4 * ours.shape[-1]
        pixel = self.student.image_encoder.img_size / low[0]
        valid = _inside(batch["size"], low, self.student.image_encoder.patch_size // 4)
        rounds = batch["noise"].shape[2] + 1
        sums: dict[str, Tensor] = {}
        for number in range(rounds):
            logits, iou_pred = _masks(self.student, ours, coords, labels)
            with torch.no_grad():
                wanted, wanted_iou = _masks(self.teacher, theirs.to(ours.dtype), coords, labels)
            losses = teacher_mask_loss(logits, iou_pred, wanted, wanted_iou, valid, self.weights.soft)
            for key in ("bce", "dice", "iou_head", "iou"):
                sums[key] = sums.get(key, 0.0) + getattr(losses, key) / rounds
            if number + 1 < rounds:
                best = 1 + wanted_iou[..., 1:].argmax(dim=-1)
                xy, label = _corrections(logits, wanted, best, valid, batch["noise"][..., number])
                coords = torch.cat([coords, xy[:, :, None] * pixel], dim=2)
                labels = torch.cat([labels, label[..., None]], dim=2)
        masks = 5 * sums["bce"] + 5 * sums["dice"] + sums["iou_head"]
        return out | sums | {"loss": out["loss"] + self.weights.masks * masks}


def _inside(size: Tensor, grid: tuple[int, int], step: int) -> Tensor:
    """Which cells of `step` pixels show any of a photograph of size (B, 2): boolean (B, *grid)."""
    rows = torch.arange(grid[0], device=size.device) * step < size[:, :1]
    columns = torch.arange(grid[1], device=size.device) * step < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def _masks(sam: Sam, embeddings: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    position = sam.prompt_encoder.get_dense_pe().expand(len(embeddings), -1, -1, -1)
    return decode_with_masks(sam, embeddings, position, coords, labels)


@torch.no_grad()
def _corrections(logits: Tensor, wanted: Tensor, best: Tensor, valid: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A point of each prompt's disagreement in the output `best` (B, P).

    Returns:
        x, y in mask pixels (B, P, 2), and labels (B, P): what the teacher says of the point, or NOT_A_POINT where the
        two agree everywhere. `noise` (B, P) in [0, 1) says which pixel, in row-major order.
    """
    ours, theirs = (outputs_at(x, best) > 0 for x in (logits, wanted))
    wrong = ((ours != theirs) & valid[:, None]).flatten(2)  # (B, P, h * w)
    count = wrong.sum(dim=-1)
    rank = (noise * count).long().clamp(max=(count - 1).clamp(min=0))
    place = ((wrong.cumsum(dim=-1) == (rank + 1)[..., None]) & wrong).long().argmax(dim=-1)
    label = torch.where(theirs.flatten(2).gather(-1, place[..., None]).squeeze(-1), FOREGROUND, BACKGROUND)
    width = logits.shape[-1]
    xy = torch.stack([place % width + 0.5, place // width + 0.5], dim=-1)
    return xy, torch.where(count > 0, label, NOT_A_POINT)
