"""Decoding against segment_anything's own classes, crops against whole frames, losses against slow computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import picture, tiny_sam
from little_models import dense_config, dense_sam, small_reference_sam

from sam_bigltl.modeling.decode import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    NOT_A_POINT,
    TOP_LEFT,
    decode,
    dense_position,
    embed_prompts,
)
from sam_bigltl.training.loop import encode_crop
from sam_bigltl.training.losses import embedding_loss, mask_loss, near_weight

BOX = torch.tensor([[[5.0, 9.0], [40.0, 60.0]], [[0.0, 1.0], [30.5, 22.0]]])  # (P, 2, 2) of two prompts
POINTS = torch.tensor([[[12.0, 30.0], [50.0, 7.5]], [[3.0, 3.0], [60.0, 61.0]]])
POINT_LABELS = torch.tensor([[FOREGROUND, BACKGROUND], [FOREGROUND, FOREGROUND]])


@pytest.mark.parametrize("build", [tiny_sam, small_reference_sam])
@pytest.mark.parametrize("prompt", ["box", "points", "both"])
@torch.no_grad()
def test_decoding_equals_segment_anything(prompt: str, build):
    sam = build()
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 32, 4, 4, generator=generator)
    corners = torch.tensor([[TOP_LEFT, BOTTOM_RIGHT]] * 2)
    if prompt == "box":
        coords, labels = torch.cat([torch.zeros(2, 1, 2), BOX], 1)[:, 1:], corners
    elif prompt == "points":  # any coordinates beside NOT_A_POINT
        coords, labels = torch.cat([POINTS, torch.full((2, 1, 2), 33.0)], 1), torch.full((2, 3), NOT_A_POINT)
        labels[:, :2] = POINT_LABELS
    else:
        coords, labels = torch.cat([POINTS, BOX], 1), torch.cat([POINT_LABELS, corners], 1)
    # Each image has its prompts elsewhere.
    shift = torch.tensor([0.0, 2.0, -1.5]).view(3, 1, 1, 1)
    position = dense_position(sam.prompt_encoder, torch.zeros(3, 2, dtype=torch.long), (4, 4))
    sparse = embed_prompts(sam.prompt_encoder, coords + shift, labels.expand(3, -1, -1))
    logits, iou = decode(sam.mask_decoder, sam.prompt_encoder, embeddings, position, sparse)
    assert logits.shape == (3, 2, 4, 16, 16) and iou.shape == (3, 2, 4)
    for image in range(3):
        points = None if prompt == "box" else (POINTS + shift[image], POINT_LABELS)
        boxes = None if prompt == "points" else (BOX + shift[image]).flatten(1)
        theirs_sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        assert torch.allclose(sparse[image], theirs_sparse, atol=1e-6)
        for multimask, outputs in ((True, slice(1, 4)), (False, slice(0, 1))):
            masks, quality = sam.mask_decoder(
                image_embeddings=embeddings[image : image + 1], image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=theirs_sparse, dense_prompt_embeddings=dense, multimask_output=multimask,
            )  # fmt: skip
            assert torch.allclose(logits[image, :, outputs], masks, atol=1e-4)
            assert torch.allclose(iou[image, :, outputs], quality, atol=1e-4)


@torch.no_grad()
def test_decoding_makes_only_the_masks_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sam_bigltl.decode._TOKENS", 40)  # two prompts of 16 tokens at once, then the third
    sam = tiny_sam()
    generator = torch.Generator().manual_seed(0)
    embeddings, position = torch.randn(2, 2, 32, 4, 4, generator=generator)
    sparse = torch.randn(2, 3, 2, 32, generator=generator)
    every, iou = decode(sam.mask_decoder, sam.prompt_encoder, embeddings, position, sparse)
    worst_first = [0, 3]

    def choose(predicted: torch.Tensor) -> torch.Tensor:
        assert torch.equal(predicted, iou)
        return predicted.argsort(dim=-1)[..., worst_first]

    some, again = decode(sam.mask_decoder, sam.prompt_encoder, embeddings, position, sparse, choose)
    assert torch.equal(again, iou) and some.shape == (2, 3, 2, 16, 16)
    for image in range(2):
        for prompt in range(3):
            for place, output in enumerate(iou[image, prompt].argsort()[worst_first]):
                assert torch.allclose(some[image, prompt, place], every[image, prompt, output], atol=1e-5)


def test_positions_of_a_part_are_those_of_the_frame():
    encoder = tiny_sam().prompt_encoder
    whole = encoder.get_dense_pe()
    part = dense_position(encoder, torch.tensor([[1, 2], [2, 0]]), (2, 1))
    assert torch.equal(part[0], whole[0, :, 1:3, 2:3])
    assert torch.equal(part[1], whole[0, :, 2:4, 0:1])


@torch.no_grad()
def test_encoding_the_whole_frame_as_a_crop():
    for config in (dense_config(), dense_config(little_dim=8), dense_config(stem=(4, 8, 8, 16))):
        sam = dense_sam(config)
        image = sam.preprocess(torch.from_numpy(picture(52, 64)).permute(2, 0, 1))[None]
        if config.little_dim:
            sam.image_encoder.keep_ratio = 0.5
        ours = encode_crop(sam, image, torch.zeros(1, 2, dtype=torch.long))
        assert torch.equal(ours, sam.image_encoder(image))


@torch.no_grad()
def test_a_crop_takes_the_positions_of_its_place():
    sam = dense_sam()
    encoder = sam.image_encoder
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = encode_crop(sam, images, torch.tensor([[1, 2], [0, 0]]))
    tokens = encoder.patch_embed(images)
    tokens[0] += encoder.pos_embed[0, 1:3, 2:4]
    tokens[1] += encoder.pos_embed[0, :2, :2]
    assert torch.equal(ours, encoder.encode_tokens(tokens))


# ---------------------------------------------------------------- losses
def slow_near(box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    x0, y0, x1, y1 = box
    weight = np.full((rows, columns), 0.05)
    for i in range(rows):
        for j in range(columns):
            margin_x, margin_y = max(8, 0.3 * (x1 - x0)), max(8, 0.3 * (y1 - y0))
            x, y = 4 * j + 2, 4 * i + 2  # centre of the pixel
            if x0 - margin_x < x < x1 + margin_x and y0 - margin_y < y < y1 + margin_y:
                weight[i, j] = 1
    return weight


def slow_mask_loss(logits: np.ndarray, iou_pred: np.ndarray, target: np.ndarray, boxes: np.ndarray) -> dict[str, float]:
    batch, prompts, outputs, rows, columns = logits.shape
    total, bces, dices, heads, picked = 0.0, [], [], [], np.zeros((batch, prompts))
    for b in range(batch):
        for p in range(prompts):
            weight, losses, bce, dice, iou = slow_near(boxes[b, p], rows, columns), [], [], [], []
            for o in range(outputs):
                cross = area = overlap = 0.0
                inside = either = 0
                for i in range(rows):
                    for j in range(columns):
                        q, t = 1 / (1 + math.exp(-logits[b, p, o, i, j])), target[b, p, i, j]
                        cross -= weight[i, j] * (t * math.log(q) + (1 - t) * math.log(1 - q))
                        overlap += q * t
                        area += q + t
                        inside += q > 0.5 and t > 0.5
                        either += q > 0.5 or t > 0.5
                bce.append(cross / weight.sum())
                dice.append(1 - (2 * overlap + 1) / (area + 1))
                iou.append(inside / max(either, 1))
                losses.append(bce[-1] + dice[-1])
                heads.append((iou_pred[b, p, o] - iou[-1]) ** 2)
            best = 1 + int(np.argmin(losses[1:]))
            total += (losses[0] + 0.8 * losses[best] + 0.2 * sum(losses[1:]) / 3) / 2
            bces.append(bce[best])
            dices.append(dice[best])
            picked[b, p] = iou[1 + int(np.argmax(iou_pred[b, p, 1:]))]
    head = float(np.mean(heads))
    return {
        "total": total / (batch * prompts) + head, "bce": np.mean(bces), "dice": np.mean(dices), "iou_head": head,
        "iou": picked,
    }  # fmt: skip


def loss_inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 3, 4, 7, 9, generator=generator)
    iou_pred = torch.rand(2, 3, 4, generator=generator)
    target = torch.rand(2, 3, 7, 9, generator=generator).mul(1.6).sub(0.3).clamp(0, 1)
    target[1, 2] = 0
    logits[1, 2] = -4
    corners = torch.rand(2, 3, 2, generator=generator) * 10
    boxes = torch.cat([corners, corners + torch.rand(2, 3, 2, generator=generator) * 30], -1)
    return logits, iou_pred, target, boxes


def test_mask_loss_equals_a_slow_one():
    inputs = loss_inputs()
    loss = mask_loss(*inputs)
    expected = slow_mask_loss(*(x.double().numpy() for x in inputs))
    for name, value in expected.items():
        assert np.allclose(getattr(loss, name).numpy(), value, atol=1e-5), name


def test_output_0_and_the_best_of_the_others_learn_most():
    logits, iou_pred, target, boxes = loss_inputs()
    logits.requires_grad_()
    mask_loss(logits, iou_pred, target, boxes).total.backward()
    alone = []  # the gradient of each output's own loss: that of a loss in which all outputs are that one
    for output in range(4):
        same = logits.detach()[:, :, output : output + 1].expand(-1, -1, 4, -1, -1).clone().requires_grad_()
        mask_loss(same, iou_pred, target, boxes).total.backward()
        alone.append(same.grad.sum(dim=2))
    share = (logits.grad / torch.stack(alone, dim=2)).flatten(3).median(dim=3).values  # (B, P, 4)
    assert torch.allclose(share[..., 0], torch.tensor(0.5), atol=1e-4)
    others = share[..., 1:].sort(dim=-1).values
    expected = torch.tensor([0.1 / 3, 0.1 / 3, 0.4 + 0.1 / 3])
    assert torch.allclose(others, expected.expand_as(others), atol=1e-4)


def test_weights_near_the_object():
    boxes = torch.tensor([[[10.0, 4.0, 30.0, 50.0], [0.0, 0.0, 4.0, 4.0]]])
    weight = near_weight(boxes, (16, 11))
    for p in range(2):
        assert np.allclose(weight[0, p].numpy(), slow_near(boxes[0, p].numpy(), 16, 11))
    assert 0 < (weight[0, 1] == 1).sum() < (weight[0, 0] == 1).sum() < 16 * 11


def test_embedding_loss_sees_the_photograph_only():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 2, 5, 3, 4, generator=generator)
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[0, 2], valid[1, :, 1:] = False, False
    cosine, error = embedding_loss(student, teacher, valid)
    cosines, ratios = [], []
    for b in range(2):  # images count alike, whatever their padding
        places = [(i, j) for i, j in np.argwhere(valid[b].numpy())]
        s = np.array([student[b, :, i, j].double().numpy() for i, j in places])
        t = np.array([teacher[b, :, i, j].double().numpy() for i, j in places])
        cosines.append(np.mean([1 - x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(s, t)]))
        ratios.append(((s - t) ** 2).mean() / (t**2).mean())
    assert cosine.item() == pytest.approx(np.mean(cosines), abs=1e-5)
    assert error.item() == pytest.approx(np.mean(ratios), abs=1e-5)
    padding = (~valid)[:, None].expand_as(student)
    assert embedding_loss(student + 9 * padding, teacher - 7 * padding, valid) == (cosine, error)
    assert embedding_loss(teacher, teacher, valid)[0].item() == pytest.approx(0, abs=1e-6)
