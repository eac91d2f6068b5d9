"""Prompt-aware routing: which tokens a box touches, what the predictor does with it, and that nothing of it stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, tiny_sam
from little_models import dense_config, dense_sam
from PIL import Image

from sam_bigltl import SamPredictor
from sam_bigltl.data.coco import Annotation, CocoImage
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.runner import Plan, encode_masks, evaluate
from sam_bigltl.predict.focus import box_weights


def test_tokens_that_boxes_touch() -> None:
    boxes = torch.tensor([[20.0, 33.0, 40.0, 47.0], [60.0, 0.0, 70.0, 16.0]])
    expected = np.ones((4, 5))
    for x0, y0, x1, y1 in boxes.tolist():  # pixel by pixel
        for row in range(4):
            for column in range(5):
                inside = x0 < 16 * column + 16 and x1 > 16 * column and y0 < 16 * row + 16 and y1 > 16 * row
                expected[row, column] = 3.0 if inside else expected[row, column]
    assert np.array_equal(box_weights(boxes, (4, 5), 16, 3.0, 0.0).numpy(), expected)
    grown = box_weights(boxes[:1], (4, 5), 16, 3.0, 0.25)  # 15 to 45, 29.5 to 50.5
    assert (grown > 1).nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (0, 1, 2)]
    assert (box_weights(torch.zeros(0, 4), (2, 2), 16) == 1).all()


@pytest.fixture
def predictor() -> SamPredictor:
    sam = dense_sam(dense_config(little_dim=8))
    sam.image_encoder.keep_ratio = 0.25  # 4 of 16 tokens
    return SamPredictor(sam)


def chosen(predictor: SamPredictor, index: int = 0) -> list[list[int]]:
    return [group.indices[index].tolist() for group in predictor.route.groups]


def test_big_tokens_are_sought_in_the_boxes(predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bigltl.focus.box_weights.__defaults__", (1e6, 0.0))
    image = picture(64, 64)
    predictor.set_image(image)
    plain = chosen(predictor)
    predictor.set_image(image, boxes=[[34, 34, 62, 62]])  # the lower right quarter
    assert chosen(predictor) == [[10, 11, 14, 15]] * 2 != plain
    assert predictor.model.image_encoder.focus is None
    predictor.set_image(image)
    assert chosen(predictor) == plain  # nothing of it stays
    predictor.set_image(image, boxes=np.zeros((0, 4)))
    assert chosen(predictor) == plain
    predictor.set_images([image, image[:32]], boxes=[[[0, 0, 30, 30]], [[32, 0, 64, 16]]])
    assert chosen(predictor, 0) == [[0, 1, 4, 5]] * 2
    assert set(chosen(predictor, 1)[0]) >= {2, 3}  # its own box


def test_everything_big_needs_no_boxes(predictor: SamPredictor) -> None:
    predictor.model.image_encoder.keep_ratio = 1.0
    predictor.set_image(picture(64, 64))
    plain = predictor.features
    predictor.set_image(picture(64, 64), boxes=[[0, 0, 20, 20]])
    assert torch.equal(predictor.features, plain)


def test_an_encoder_that_fails_forgets_the_boxes(predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = predictor.model.image_encoder
    monkeypatch.setattr(encoder, "neck", None)
    with pytest.raises(TypeError):
        predictor.set_image(picture(64, 64), boxes=[[0, 0, 20, 20]])
    assert encoder.focus is None


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([[5, 5, 1, 1]], "no area"), ([[0, 0, float("nan"), 9]], "NaN"), ([[900, 0, 990, 9]], "outside"), ([[1, 2, 3]],
                                                                                                        "4 numbers")],
)  # fmt: skip
def test_bad_boxes_are_one_line(predictor: SamPredictor, boxes: list, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        predictor.set_image(picture(64, 64), boxes=boxes)
    assert "\n" not in str(error.value)


def test_who_cannot_seek() -> None:
    for sam in (tiny_sam(), dense_sam()):
        with pytest.raises(InputError, match="computes every token"):
            SamPredictor(sam).set_image(picture(64, 64), boxes=[[0, 0, 20, 20]])
    routed = SamPredictor(dense_sam(dense_config(little_dim=8)))
    with pytest.raises(InputError, match="each of the 2 images"):
        routed.set_images([picture(), picture()], boxes=[[[0, 0, 20, 20]]])


def polygon(number: int, box: list[float]) -> Annotation:
    x, y, w, h = box
    return Annotation(number, w * h, tuple(box), [[x, y, x + w, y, x + w, y + h, x, y + h]], (64, 64))


@pytest.mark.parametrize("focus", ["image", "box"])
def test_evaluation_prompts_encodings_that_know_the_boxes(focus: str, tmp_path: Path) -> None:
    sam = dense_sam(dense_config(little_dim=8))
    predictor = SamPredictor(sam)
    annotations = [polygon(i, box) for i, box in enumerate([[2, 3, 30, 20], [34, 30, 25, 28]], 1)]
    image = CocoImage(7, "a.png", (64, 64), annotations)
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    plan = Plan(keep_ratios=(0.25, 0.5), focus=focus)
    (record,) = evaluate(predictor, [image], tmp_path, plan, progress=False)
    boxes = [np.array([x, y, x + w, y + h]) for x, y, w, h in (annotation.bbox for annotation in annotations)]
    expected = []
    for sam.image_encoder.keep_ratio in plan.keep_ratios:
        for box in boxes:
            predictor.set_image(picture(64, 64), boxes=[box] if focus == "box" else boxes)
            masks, scores, _ = predictor.predict(box=box)
            expected.append(encode_masks([masks[scores.argmax()]])[0])
    assert [result.counts for result in record.results] == expected
    assert len(record.encode_seconds) == 2 and set(record.decode_seconds) == {"0.25/box/0", "0.5/box/0"}
