"""Protocols B and C and single ingredients against slow, independent computations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_toy import HEIGHT, TARGETS, WIDTH, slow_distance, slow_iou, toy
from PIL import Image

from sam_bigltl.data.coco import Annotation, CocoImage
from sam_bigltl.evaluation import PROTOCOLS, Plan, Protocol, evaluate, load_coco
from sam_bigltl.evaluation.prompts import instance_rng

SIDE = 16  # of the fake model's frame, pixels; the photograph covers 12 rows of it
LOGITS = 8


class Recorder:
    """Masks and logits that depend on every prompt, and a log of the prompts."""

    device = torch.device("cpu")
    transform = SimpleNamespace(target_length=SIDE)
    model = SimpleNamespace(image_encoder=SimpleNamespace())

    def __init__(self) -> None:
        self.prompts: list[dict] = []

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        self.image = int(image[0, 0, 0])

    def predict(self, **prompt):
        self.prompts.append({"image": self.image, **prompt})
        return answer(self.image, **prompt)


def answer(image, point_coords=None, point_labels=None, box=None, mask_input=None, multimask_output=True):
    """(masks, scores, logits) of a prompt, the same whenever it is asked again."""
    numbers = [image * 1.0]
    for part in (point_coords, point_labels, box, None if mask_input is None else mask_input[0, :2, :2]):
        numbers += [-3.0] if part is None else np.asarray(part, float).ravel().tolist()
    rng = np.random.default_rng([int(abs(value) * 1000) for value in numbers])
    count = 3 if multimask_output else 1
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    for mask in masks:
        y, x = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 10)
        mask[y : y + rng.integers(6, 18), x : x + rng.integers(6, 24)] = True
    return masks, rng.random(count).astype(np.float32), rng.normal(size=(count, LOGITS, LOGITS)).astype(np.float32)


def slow_frame(target: np.ndarray) -> np.ndarray:
    """The nearest pixel for each of the frame's 12 x 16 (24 x 32 halved)."""
    return np.array([[target[2 * i, 2 * j] for j in range(SIDE)] for i in range(HEIGHT * SIDE // WIDTH)])


def slow_bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sampling between the four nearest centres, by its definition."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * plane.shape[0] / height - 0.5, 0), plane.shape[0] - 1)
            x = min(max((j + 0.5) * plane.shape[1] / width - 0.5, 0), plane.shape[1] - 1)
            for v, wy in ((int(y), 1 - y % 1), (min(int(y) + 1, plane.shape[0] - 1), y % 1)):
                for u, wx in ((int(x), 1 - x % 1), (min(int(x) + 1, plane.shape[1] - 1), x % 1)):
                    out[i, j] += wy * wx * plane[v, u]
    return out


def padded(plane: np.ndarray) -> np.ndarray:
    out = np.zeros((SIDE, SIDE))
    out[: plane.shape[0], : plane.shape[1]] = plane
    return out


def slow_b_click(target: np.ndarray, logits: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int] | None:
    """EdgeSAM's corrective point: any wrong pixel of the logits inside the photograph, or none below ten."""
    frame = slow_frame(target)
    wanted = slow_bilinear(padded(frame), LOGITS, LOGITS) > 0
    share = slow_bilinear(padded(np.ones_like(frame, float)), LOGITS, LOGITS)
    wrong = []
    for y in range(LOGITS):
        for x in range(LOGITS):
            spilled = logits[y, x] > 0 and not wanted[y, x] and share[y, x] > 0
            missed = logits[y, x] <= 0 and wanted[y, x] and share[y, x] == 1
            if spilled or missed:
                wrong.append((x, y))
    if len(wrong) < 10:
        return None
    x, y = wrong[rng.integers(len(wrong))]
    return x * SIDE / LOGITS * WIDTH / SIDE, y * SIDE / LOGITS * WIDTH / SIDE, int(wanted[y, x])


def expected_b(annotation: dict, prompt: str) -> list[float]:
    """IoU after the box, one and two corrections; or after 1, 2 and 3 clicks."""
    target, image = TARGETS[annotation["id"]], annotation["image_id"]
    rng = instance_rng(0, image, annotation["id"])
    x, y, w, h = annotation["bbox"]
    box = np.array([x, y, x + w, y + h]) if prompt == "box" else None
    clicks: list[tuple[float, float, int]] = []
    if prompt == "point":
        frame = slow_frame(target)
        cells = [(slow_distance(frame, i, j), -i, -j) for i in range(frame.shape[0]) for j in range(frame.shape[1])]
        _, row, column = max(cells)
        clicks.append((-column * 2.0, -row * 2.0, 1))
    scored = slow_bilinear(slow_frame(target), HEIGHT, WIDTH) > 0
    ious = []
    for _ in range(3):
        coords = np.array([c[:2] for c in clicks], np.float32) if clicks else None
        labels = np.array([c[2] for c in clicks]) if clicks else None
        masks, _, logits = answer(image, coords, labels, box, multimask_output=False)
        ious.append(slow_iou(masks[0], scored))
        click = slow_b_click(target, logits[0], rng)
        clicks += [click] if click else []
    return ious


def test_protocol_b_against_slow_computation(data: SimpleNamespace) -> None:
    plan = Plan(protocol=PROTOCOLS["B"], prompts=("box", "point"), clicks=(1, 2, 3))
    images = load_coco(data.json, crowds=False, min_area=0.6)
    records = evaluate(Recorder(), images, data.images, plan)
    found = {(r.prompt, r.clicks, r.annotation_id): r.iou for record in records for r in record.results}
    annotations = [each for each in toy()["annotations"] if each["id"] in TARGETS and not each["iscrowd"]]
    assert len(found) == 2 * 3 * len(annotations) == 24
    for annotation in annotations:
        for prompt, counts in (("box", (0, 1, 2)), ("point", (1, 2, 3))):
            for count, iou in zip(counts, expected_b(annotation, prompt), strict=True):
                assert found[prompt, count, annotation["id"]] == pytest.approx(iou, abs=1e-6), (annotation["id"], count)


def test_protocol_c_against_slow_computation(data: SimpleNamespace) -> None:
    predictor, plan = Recorder(), Plan(protocol=PROTOCOLS["C"], prompts=("box", "point"), clicks=(1, 3))
    records = evaluate(predictor, load_coco(data.json, crowds=False), data.images, plan)
    found = {(r.prompt, r.clicks, r.annotation_id): r.iou for record in records for r in record.results}
    assert len(found) == 3 * 4
    for annotation in toy()["annotations"]:
        if annotation["id"] not in TARGETS or annotation["iscrowd"]:
            continue
        target, image = TARGETS[annotation["id"]], annotation["image_id"]
        pixels = [(x, y) for y in range(HEIGHT) for x in range(WIDTH) if target[y, x]]
        xs, ys = zip(*pixels)
        box = np.array([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
        rng = instance_rng(0, image, annotation["id"])
        clicks = np.array([pixels[rng.integers(len(pixels))] for _ in range(3)], np.float32)
        for prompt, count in (("box", 0), ("point", 1), ("point", 3)):
            asked = {"box": box} if prompt == "box" else {
                "point_coords": clicks[:count], "point_labels": np.ones(count)
            }  # fmt: skip
            masks, scores, _ = answer(image, **asked)
            iou = slow_iou(masks[max(range(3), key=lambda i: scores[i])], target)
            assert found[prompt, count, annotation["id"]] == pytest.approx(iou, abs=1e-6)
    assert len(predictor.prompts) == 3 * 4  # no prediction after the second of three clicks


def custom(**changes) -> Protocol:
    return Protocol(**({"name": "A", "source": "", "mask_select": "argmax", "box": "json", "click_policy": "ritm",
                        "crowds": True} | changes))  # fmt: skip


@pytest.mark.parametrize(("protocol", "count"), [("A", 1), ("B", 0)])
def test_an_empty_mask_of_an_empty_target(tmp_path: Path, protocol: str, count: int) -> None:
    """B's published code averages without what divides 0 by 0; the others count it as 0."""

    class Empty(Recorder):
        def predict(self, **prompt):
            masks, scores, logits = super().predict(**prompt)
            return np.zeros_like(masks), scores, logits

    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "1.png")
    annotation = Annotation(1, 5.0, (2.0, 2.0, 4.0, 4.0), [[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]], (HEIGHT, WIDTH))
    assert not annotation.mask().any()
    image = CocoImage(1, "1.png", (HEIGHT, WIDTH), [annotation])
    (record,) = evaluate(Empty(), [image], tmp_path, Plan(protocol=PROTOCOLS[protocol]))
    steps = len(PROTOCOLS[protocol].refine)
    assert [result.iou for result in record.results] == [0.0] * steps * count


def test_oracle_takes_the_best_fitting_mask(data: SimpleNamespace) -> None:
    predictor = Recorder()
    records = evaluate(predictor, load_coco(data.json), data.images, Plan(protocol=custom(mask_select="oracle")))
    for record in records:
        for result in record.results:
            box = next(a["bbox"] for a in toy()["annotations"] if a["id"] == result.annotation_id)
            box = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
            masks, scores, _ = answer(record.image_id, box=box)
            ious = [slow_iou(mask, TARGETS[result.annotation_id]) for mask in masks]
            assert result.iou == pytest.approx(max(ious), abs=1e-9)
            assert result.predicted_iou == pytest.approx(float(scores[int(np.argmax(ious))]))


def test_mask_feedback_hands_on_the_chosen_logits(data: SimpleNamespace) -> None:
    predictor = Recorder()
    plan = Plan(protocol=custom(mask_feedback=True, refine=(0, 2)))
    evaluate(predictor, load_coco(data.json)[:1], data.images, plan)
    assert len(predictor.prompts) == 2 * 3
    first, second, third = predictor.prompts[0::2]  # of one of the two instances
    assert "mask_input" not in first and len(second["point_coords"]) == 1 and len(third["point_coords"]) == 2
    for before, after in ((first, second), (second, third)):
        _, scores, logits = answer(**before)
        assert np.array_equal(after["mask_input"], logits[scores.argmax()][None])
        assert np.array_equal(after["box"], first["box"])


def test_random_clicks_depend_on_the_instance_and_seed_only() -> None:
    draws = [instance_rng(seed, image, number).random() for seed, image, number in
             ((0, 1, 2), (0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))]  # fmt: skip
    assert draws[0] == draws[1] and len(set(draws)) == 4
