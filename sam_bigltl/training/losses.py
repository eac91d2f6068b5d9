"""Losses: masks with SAM's rule for ambiguous prompts, predicted IoU, and embeddings for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Weight of a pixel outside the neighbourhood of its object. Far background is easy and is most of the frame: with equal
# weights a 16 px object would be a thousandth of its own loss.
FAR_WEIGHT = 0.05
NEAR_MARGIN = 0.3  # the neighbourhood: the object's box, this share of its side (and 8 px) larger on each side
# Share of the multimask loss that all three outputs get, for prompts without and with a box. With none, the outputs
# that were never the best of a prompt are arbitrary there, and picking by predicted IoU pays for it; more makes the
# three alike, which a box, hardly ever ambiguous, can bear.
SHARED, SHARED_WITH_BOX = 0.2, 0.6
MASK_STRIDE = 4  # pixels of the input frame a pixel of the decoder's masks


@dataclass
class MaskLoss:
    """Losses and the figures to log, each a scalar tensor (iou: (B, P), of the mask that SAM's argmax rule picks)."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    iou_head: Tensor
    iou: Tensor


def near_weight(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Pixel weights: 1 near the object, `FAR_WEIGHT` elsewhere.

    Args:
        boxes: (B, P, 4) x0, y0, x1, y1 in pixels of the crop.
        size: rows and columns of the masks, each `MASK_STRIDE` crop pixels.

    Returns:
        (B, P, rows, columns)
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    margin_x, margin_y = (NEAR_MARGIN * (x1 - x0)).clamp(min=8), (NEAR_MARGIN * (y1 - y0)).clamp(min=8)
    ys = (torch.arange(size[0], device=boxes.device) + 0.5) * MASK_STRIDE
    xs = (torch.arange(size[1], device=boxes.device) + 0.5) * MASK_STRIDE
    in_x = (xs > (x0 - margin_x)[..., None]) & (xs < (x1 + margin_x)[..., None])
    in_y = (ys > (y0 - margin_y)[..., None]) & (ys < (y1 + margin_y)[..., None])
    near = in_y[..., :, None] & in_x[..., None, :]
    return near.float() * (1 - FAR_WEIGHT) + FAR_WEIGHT


def mask_loss(
    logits: Tensor, iou_pred: Tensor, target: Tensor, boxes: Tensor, has_box: Tensor | None = None
) -> MaskLoss:
    """The loss of all four mask outputs.

    Output 0 is always trained; of outputs 1 to 3 mostly the one with the lowest loss (SAM's rule for ambiguity, relaxed
    by `SHARED`).
    Every output's predicted IoU is regressed to the IoU it really has.

    Args:
        logits: (B, P, 4, h, w); iou_pred: (B, P, 4).
        target: share of each mask pixel that the object covers, (B, P, h, w) in [0, 1].
        boxes: the objects' boxes (B, P, 4) in pixels of the crop.
        has_box: which prompts hold a box, boolean (B, P); None for none.
    """
    logits, iou_pred = logits.float(), iou_pred.float()
    target = target[:, :, None]
    weight = near_weight(boxes, logits.shape[-2:])[:, :, None]
    bce = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    bce = (bce * weight).sum((-2, -1)) / weight.sum((-2, -1))  # (B, P, 4)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    each = bce + dice  # (B, P, 4)
    best = each[..., 1:].argmin(dim=-1, keepdim=True) + 1
    with torch.no_grad():
        inside, truth = logits > 0, target > 0.5
        union = (inside | truth).sum((-2, -1))
        iou = (inside & truth).sum((-2, -1)) / union.clamp(min=1)  # (B, P, 4)
        picked = iou_pred[..., 1:].argmax(dim=-1, keepdim=True) + 1
    iou_head = F.mse_loss(iou_pred, iou)
    shared: Tensor | float = SHARED if has_box is None else torch.where(has_box, SHARED_WITH_BOX, SHARED)
    multimask = (1 - shared) * each.gather(-1, best).squeeze(-1) + shared * each[..., 1:].mean(dim=-1)
    masks = (each[..., 0] + multimask).mean() / 2
    return MaskLoss(
        total=masks + iou_head,
        bce=bce.gather(-1, best).mean(),
        dice=dice.gather(-1, best).mean(),
        iou_head=iou_head,
        iou=iou.gather(-1, picked).squeeze(-1),
    )


def embedding_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine distance (the paper's L_fd) and mean squared error, over the unpadded region only.

    Args:
        student, teacher: (B, C, gh, gw).
        valid: (B, gh, gw), true where the token shows any of the image.

    Returns:
        two scalars, means over the images: of 1 - cosine over an image's valid tokens, and of the squared error there
        relative to the teacher's square.
    """
    student, teacher = student.float(), teacher.float()
    valid = valid.to(student.dtype)
    cosine = ((1 - F.cosine_similarity(student, teacher, dim=1)) * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    return cosine.mean(), relative_error(student, teacher, valid)


def relative_error(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Squared error over an image's valid tokens relative to the teacher's square there, mean over the images.

    Args:
        student, teacher: (B, C, *grid); valid: (B, *grid).
    """
    student, teacher = student.float(), teacher.float()
    places = tuple(range(1, valid.dim()))
    error = ((student - teacher).square().mean(dim=1) * valid).sum(places)
    power = (teacher.square().mean(dim=1) * valid).sum(places)
    return (error / power.clamp(min=1e-12)).mean()


def router_loss(scores: Tensor, error: Tensor) -> Tensor:
    """Cross-entropy of a router's scores with the share that each token has of the little path's error.

    Args:
        scores: (B, N), summing to 1 over an image.
        error: squared error of every token where the big path does not help, (B, N); no gradient goes into it.
    """
    wanted = error.detach().float()
    wanted = wanted / wanted.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return -(wanted * scores.float().clamp(min=1e-12).log()).sum(dim=1).mean()


@dataclass
class TeacherMaskLoss:
    """Losses against a teacher's masks, and the share of prompts' mask pixels on which both agree (IoU), scalars."""

    bce: Tensor
    dice: Tensor
    iou_head: Tensor
    iou: Tensor


def teacher_mask_loss(
    logits: Tensor, iou_pred: Tensor, teacher_logits: Tensor, teacher_iou_pred: Tensor, valid: Tensor,
    soft: bool = False,
) -> TeacherMaskLoss:  # fmt: skip
    """Each mask output against the teacher's same output, thresholded (EdgeSAM, arXiv 2312.06660).

    Args:
        logits, teacher_logits: (B, P, 4, h, w); iou_pred, teacher_iou_pred: (B, P, 4).
        valid: mask pixels that show the photograph, boolean (B, h, w).
        soft: against its probabilities instead: `bce` is their divergence and `dice` has squares below, so that both
            are least, 0, where the two agree. Thresholded masks ask even a perfect student for larger logits.
    """
    logits, weight = logits.float(), valid[:, None, None].float()
    inside = teacher_logits > 0
    target = teacher_logits.float().sigmoid() if soft else inside.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if soft:
        bce = bce - F.binary_cross_entropy_with_logits(teacher_logits.float(), target, reduction="none")
    bce = (bce * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)
    probability, target = logits.sigmoid() * weight, target * weight
    sizes = probability.square() + target.square() if soft else probability + target
    dice = 1 - (2 * (probability * target).sum((-2, -1)) + 1) / (sizes.sum((-2, -1)) + 1)
    with torch.no_grad():
        ours, theirs = (logits > 0) & (weight > 0), inside & (weight > 0)
        iou = (ours & theirs).sum((-2, -1)) / (ours | theirs).sum((-2, -1)).clamp(min=1)
    iou_head = F.mse_loss(iou_pred.float(), teacher_iou_pred.float())
    return TeacherMaskLoss(bce.mean(), dice.mean(), iou_head, iou.mean())
