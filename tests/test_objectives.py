"""What distillation minimises, against independent computations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from little_models import dense_sam, enliven
from torch import nn

from sam_bigltl.convert import convert_sam
from sam_bigltl.modeling.decode import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT
from sam_bigltl.modeling.trunk import Taps
from sam_bigltl.training.losses import router_loss, teacher_mask_loss
from sam_bigltl.training.objectives import EmbeddingObjective, PromptObjective, Weights, _corrections

SIZES = [[64, 48], [40, 64]]


def pair():
    """A dense teacher, and its student with every weight of the little path alive."""
    teacher = dense_sam()
    student = convert_sam(teacher)
    enliven(student.image_encoder, seed=1)
    student.image_encoder.keep_ratio = 0.5
    return teacher.requires_grad_(False), student


def frames(seed: int = 0, prompts: int = 0, rounds: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(SIZES)
    batch = {"image": torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8), "size": size}
    if prompts:
        corners = torch.rand(2, prompts, 2, 2, generator=generator).sort(dim=2).values * 40
        labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT]).repeat(2, prompts, 1)
        labels[:, ::2] = torch.tensor([FOREGROUND, NOT_A_POINT])
        noise = torch.rand(2, prompts, rounds, generator=generator)
        batch |= {"coords": corners, "labels": labels, "noise": noise}
    return batch


def padded(image: torch.Tensor, size: list[int], sam) -> torch.Tensor:
    """As `Sam.preprocess` has it."""
    return sam.preprocess(image[:, : size[0], : size[1]])[None]


def test_stage_1_is_cosine_and_relative_error_on_the_photograph():
    teacher, student = pair()
    batch = frames()
    out = EmbeddingObjective(student, teacher, Weights(embedding=2.0))(batch)
    cosines, errors = [], []
    with torch.no_grad():
        for image, size in zip(batch["image"], SIZES):
            ours, theirs = (sam.image_encoder(padded(image, size, sam))[0] for sam in (student, teacher))
            rows, columns = -(-size[0] // 16), -(-size[1] // 16)
            ours, theirs = (x[:, :rows, :columns].flatten(1).T.double().numpy() for x in (ours, theirs))
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            cosines.append(np.mean(1 - (ours * theirs).sum(1) / norms))
            errors.append(((ours - theirs) ** 2).sum() / (theirs**2).sum())
    assert out["cosine"].item() == pytest.approx(np.mean(cosines), abs=1e-5) and np.mean(cosines) > 0.01
    assert out["mse"].item() == pytest.approx(np.mean(errors), abs=1e-5)
    assert out["loss"].item() == pytest.approx(2 * (np.mean(cosines) + np.mean(errors)), abs=1e-5)
    out["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    grads = {name: p.grad for name, p in student.image_encoder.named_parameters()}
    assert all(grad is not None and grad.any() for grad in grads.values()), [k for k, g in grads.items() if g is None]


def test_a_cached_embedding_stands_for_the_teacher():
    teacher, student = pair()
    batch = frames()
    objective = EmbeddingObjective(student, teacher, Weights())
    _, _, theirs = objective.embeddings(batch)
    objective._teacher = (None,)  # not to be asked
    again = objective(batch | {"embedding": theirs.half()})
    assert again["mse"].item() == pytest.approx(
        EmbeddingObjective(student, teacher, Weights())(batch)["mse"].item(), rel=1e-3
    )


def test_layers_and_router_against_a_slow_computation():
    teacher, student = pair()
    batch = frames()
    out = EmbeddingObjective(student, teacher, Weights(embedding=0.0, layers=1.0, router=0.5))(batch)
    layers, routers = [], []
    with torch.no_grad():
        for image, size in zip(batch["image"], SIZES):
            taps = []
            for sam in (student, teacher):
                sam.image_encoder.taps = Taps()
                sam.image_encoder(padded(image, size, sam))
                taps.append(sam.image_encoder.taps)
                sam.image_encoder.taps = None
            ours, theirs = taps
            assert sorted(ours.layers) == [1, 3] and sorted(theirs.layers) == [0, 1, 2, 3]
            seen = [r * 4 + c for r in range(-(-size[0] // 16)) for c in range(-(-size[1] // 16))]
            for layer in (1, 3):
                a, b = (t.layers[layer][0, seen].double() for t in (ours, theirs))
                layers.append(((a - b) ** 2).sum() / (b**2).sum())
                estimate, scores = ours.little[layer]
                error = ((estimate[0, seen] - theirs.layers[layer][0, seen]) ** 2).mean(1).double()
                routers.append(-(error / error.sum() * scores[0, seen].double().log()).sum())
    assert out["layers"].item() == pytest.approx(np.mean(layers), rel=1e-4)
    assert out["router"].item() == pytest.approx(np.mean(routers), rel=1e-4)
    assert out["loss"].item() == pytest.approx(np.mean(layers) + 0.5 * np.mean(routers), rel=1e-4)


def test_at_1_the_student_is_the_teacher_and_no_router_runs():
    teacher, student = pair()
    student.image_encoder.load_state_dict(convert_sam(teacher).image_encoder.state_dict())
    student.image_encoder.keep_ratio = 1.0
    out = EmbeddingObjective(student, teacher, Weights(layers=1.0, router=1.0))(frames())
    assert out["loss"].item() == pytest.approx(0, abs=1e-5) and out["router"] == 0


def test_the_router_learns_where_the_little_path_is_wrong():
    torch.manual_seed(0)
    logits = torch.zeros(2, 9, requires_grad=True)
    error = torch.rand(2, 9)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        router_loss(logits.softmax(dim=1), error).backward()
        optimizer.step()
    assert torch.allclose(logits.softmax(dim=1), error / error.sum(dim=1, keepdim=True), atol=1e-3)


# ---------------------------------------------------------------- stage 2
def test_soft_masks_are_divergences_that_end_where_the_two_agree():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = torch.randn(2, 1, 2, 4, 5, 6, generator=generator)
    scores, valid = torch.rand(1, 2, 4, generator=generator), torch.ones(1, 5, 6, dtype=torch.bool)
    found = teacher_mask_loss(ours, scores, theirs, scores, valid, soft=True)
    q, y = (1 / (1 + np.exp(-x.double().numpy())) for x in (ours, theirs))
    divergence = y * np.log(y / q) + (1 - y) * np.log((1 - y) / (1 - q))
    dice = 1 - (2 * (q * y).sum((-2, -1)) + 1) / ((q**2).sum((-2, -1)) + (y**2).sum((-2, -1)) + 1)
    assert found.bce.item() == pytest.approx(divergence.mean(), abs=1e-5)
    assert found.dice.item() == pytest.approx(dice.mean(), abs=1e-5)

    same = theirs.clone().requires_grad_()
    for soft in (True, False):
        losses = teacher_mask_loss(same, scores, theirs, scores, valid, soft=soft)
        (slope,) = torch.autograd.grad(losses.bce + losses.dice, same)
        if soft:
            assert (losses.bce + losses.dice).item() == pytest.approx(0, abs=1e-6)
            assert slope.abs().max() < 1e-6
        else:
            assert slope.abs().max() > 1e-4  # thresholded masks ask for larger logits


def test_masks_against_the_teachers():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 2, 3, 4, 5, 6, generator=generator)
    scores, wanted = torch.rand(2, 2, 3, 4, generator=generator)
    valid = torch.ones(2, 5, 6, dtype=torch.bool)
    valid[1, 3:] = False
    found = teacher_mask_loss(ours, scores, theirs, wanted, valid)
    bce, dice, iou = [], [], []
    for b in range(2):
        rows = 5 if b == 0 else 3
        for p in range(3):
            for k in range(4):
                x = ours[b, p, k, :rows].double().numpy()
                y = (theirs[b, p, k, :rows] > 0).double().numpy()
                q = 1 / (1 + np.exp(-x))
                bce.append(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean())
                dice.append(1 - (2 * (q * y).sum() + 1) / (q.sum() + y.sum() + 1))
                iou.append(((x > 0) & (y > 0)).sum() / max(1, ((x > 0) | (y > 0)).sum()))
    assert found.bce.item() == pytest.approx(np.mean(bce), abs=1e-5)
    assert found.dice.item() == pytest.approx(np.mean(dice), abs=1e-5)
    assert found.iou.item() == pytest.approx(np.mean(iou), abs=1e-5)
    assert found.iou_head.item() == pytest.approx(((scores - wanted) ** 2).mean().item(), abs=1e-6)


def test_corrections_are_points_of_the_disagreement():
    generator = torch.Generator().manual_seed(3)
    ours, theirs = torch.randn(2, 2, 3, 4, 6, 7, generator=generator)
    ours[1, 2, 1] = theirs[1, 2, 1]  # nothing to correct
    best = torch.ones(2, 3, dtype=torch.long)
    valid = torch.ones(2, 6, 7, dtype=torch.bool)
    valid[0, :, 4:] = False
    seen = {key: set() for key in np.ndindex(2, 3)}
    for noise in torch.linspace(0, 0.9999, 60):
        xy, label = _corrections(ours, theirs, best, valid, noise.expand(2, 3))
        for b, p in np.ndindex(2, 3):
            if (b, p) == (1, 2):
                assert label[b, p] == NOT_A_POINT
                continue
            x, y = (int(v) for v in xy[b, p] - 0.5)
            assert valid[b, y, x] and (ours[b, p, 1, y, x] > 0) != (theirs[b, p, 1, y, x] > 0)
            assert label[b, p] == (FOREGROUND if theirs[b, p, 1, y, x] > 0 else BACKGROUND)
            seen[b, p].add((x, y))
    for b, p in np.ndindex(2, 3):  # every wrong pixel can be drawn
        wrong = ((ours[b, p, 1] > 0) != (theirs[b, p, 1] > 0)) & valid[b]
        assert len(seen[b, p]) == int(wrong.sum())


def test_stage_2_prompts_both_with_the_same_points():
    teacher, student = pair()
    batch = frames(prompts=3, rounds=2)
    out = PromptObjective(student, teacher, Weights(embedding=0.0))(batch)
    assert out["loss"].item() == pytest.approx((5 * (out["bce"] + out["dice"]) + out["iou_head"]).item(), rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is not None for name, p in student.image_encoder.named_parameters())
    student.image_encoder.load_state_dict(convert_sam(teacher).image_encoder.state_dict())
    student.image_encoder.keep_ratio = 1.0
    same = PromptObjective(student, teacher, Weights())(batch)
    assert same["iou"].item() == pytest.approx(1, abs=1e-3) and same["iou_head"].item() == pytest.approx(0, abs=1e-6)
    assert out["iou"].item() < 0.95


def test_checkpointing_changes_no_gradient():
    teacher, student = pair()
    batch, grads = frames(), []
    for checkpointing in (False, True):
        copied = copy.deepcopy(student)
        copied.image_encoder.gradient_checkpointing = checkpointing
        EmbeddingObjective(copied, teacher, Weights())(batch)["loss"].backward()
        grads.append({name: p.grad for name, p in copied.image_encoder.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-7), name


def test_nothing_of_the_teacher_is_in_the_module():
    teacher, student = pair()
    objective = EmbeddingObjective(student, teacher, Weights())
    assert isinstance(objective, nn.Module) and len(list(objective.parameters())) == len(list(student.parameters()))
