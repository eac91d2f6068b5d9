"""Whatever `segment_anything` answers is answered the same way; what it fails on is one line; `strict` refuses more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture, tiny_sam
from segment_anything.modeling import Sam

from sam_bigltl import InputError, SamAutomaticMaskGenerator, SamPredictor
from sam_bigltl.predict.prompt_checks import MOST_POINTS

KINDS = (SamPredictor, segment_anything.SamPredictor)
RNG = np.random.default_rng(0)
POINTS = np.array([[10.0, 12], [30, 20]])
MASK = RNG.normal(0, 5, (1, 16, 16)).astype(np.float32)
BOX = np.array([5.0, 5, 40, 25])


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Both predictors, on one image of 40 x 52."""
    sam = tiny_sam()
    predictors = tuple(kind(sam) for kind in KINDS)
    for predictor in predictors:
        predictor.set_image(picture())
    return predictors


@pytest.fixture(autouse=True)
def _few_at_once(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bigltl.predict.predictor._TOKENS", 32)  # two prompts of a grid of 16


def assert_close(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b) and a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a), np.asarray(b)
        assert np.array_equal(a, b) if a.dtype == bool else np.allclose(a, b, atol=5e-5, equal_nan=True)


# name: the prompt, and whether `strict` refuses it
ANSWERED: dict[str, tuple[dict[str, Any], bool]] = {
    "no width": (dict(box=np.array([50, 5, 50, 28])), True),
    "no height": (dict(box=np.array([5, 20, 30, 20])), True),
    "no area at all": (dict(box=np.array([9, 9, 9, 9])), True),
    "reversed": (dict(box=np.array([40, 25, 5, 5])), True),
    "reversed in x": (dict(box=np.array([40, 5, 5, 25])), True),
    "right of the image": (dict(box=np.array([100, 5, 140, 25])), True),
    "left of the image": (dict(box=np.array([-40, 5, -1, 25])), True),
    "far away": (dict(box=np.array([1e4, 1e4, 2e4, 2e4])), True),
    "half outside": (dict(box=np.array([-10, -10, 20, 60])), False),
    "two corners": (dict(box=np.array([[5, 5], [40, 25]])), True),
    "one row": (dict(box=BOX[None]), False),
    "one column": (dict(box=BOX[:, None]), True),
    "bool box": (dict(box=np.array([False, False, True, True])), False),
    "box of objects": (dict(box=np.array([5, 5, 40, 25], dtype=object)), True),
    "box as text": (dict(box=np.array(["5", "5", "40", "25"])), True),
    "float16 box": (dict(box=BOX.astype(np.float16)), False),
    "uint8 box": (dict(box=BOX.astype(np.uint8)), False),
    "box back to front": (dict(box=np.array([25.0, 40, 5, 5])[::-1]), False),
    "NaN in a box": (dict(box=np.array([5, np.nan, 40, 25])), True),
    "infinite box": (dict(box=np.array([5, 5, np.inf, 25])), True),
    "bool labels": (dict(point_coords=POINTS, point_labels=np.array([True, False])), False),
    "labels 2 and 3": (dict(point_coords=POINTS, point_labels=np.array([2, 3])), True),
    "labels 2 and 3, box": (dict(point_coords=POINTS, point_labels=np.array([2, 3]), box=BOX), True),
    "labels that nobody knows": (dict(point_coords=POINTS, point_labels=np.array([7, -5])), True),
    "labels of a list": (dict(point_coords=POINTS, point_labels=[1, 0]), False),
    "labels of a tuple": (dict(point_coords=POINTS, point_labels=(1, 0)), False),
    "labels of a tensor": (dict(point_coords=POINTS, point_labels=torch.tensor([1, 0])), False),
    "float labels": (dict(point_coords=POINTS, point_labels=np.array([0.7, 1.2])), True),
    "uint8 labels": (dict(point_coords=POINTS, point_labels=np.array([1, 0], np.uint8)), False),
    "labels alone": (dict(point_labels=np.array([1])), False),
    "padding points": (dict(point_coords=POINTS, point_labels=np.array([1, -1])), False),
    "no points": (dict(point_coords=np.zeros((0, 2)), point_labels=np.zeros(0)), False),
    "no points, box": (dict(point_coords=np.zeros((0, 2)), point_labels=np.zeros(0), box=BOX), False),
    "int points": (dict(point_coords=POINTS.astype(int), point_labels=[1, 1]), False),
    "uint8 points": (dict(point_coords=POINTS.astype(np.uint8), point_labels=[1, 1]), False),
    "big-endian points": (dict(point_coords=POINTS.astype(">f8"), point_labels=[1, 1]), False),
    "columns of points": (dict(point_coords=np.asfortranarray(POINTS), point_labels=[1, 1]), False),
    "points back to front": (dict(point_coords=POINTS[::-1, ::-1], point_labels=[1, 1]), False),
    "points outside": (dict(point_coords=POINTS * 100 - 500, point_labels=[1, 1]), False),
    "NaN point": (dict(point_coords=POINTS * np.nan, point_labels=[1, 1]), True),
    "bool mask": (dict(mask_input=MASK > 0), False),
    "bool mask, box": (dict(mask_input=MASK > 0, box=BOX), False),
    "uint8 mask": (dict(mask_input=(MASK > 0).astype(np.uint8)), False),
    "float64 mask": (dict(mask_input=MASK.astype(np.float64)), False),
    "mask of a tensor": (dict(mask_input=torch.from_numpy(MASK)), False),
    "mask with a gradient": (dict(mask_input=torch.from_numpy(MASK).requires_grad_()), False),
    "bfloat16 mask": (dict(mask_input=torch.from_numpy(MASK).bfloat16()), False),
    "mask of a list": (dict(mask_input=MASK.tolist()), False),
    "mask that is a little larger": (dict(mask_input=RNG.normal(0, 5, (1, 19, 17))), True),
    "mask of one pixel of the embedding": (dict(mask_input=MASK[:, :4, :4]), True),
    "NaN mask": (dict(mask_input=MASK * np.nan), True),
    "everything": (dict(point_coords=POINTS, point_labels=[2, True], box=BOX[[2, 3, 0, 1]], mask_input=MASK > 0), True),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_prompts(pair: tuple[Any, Any], name: str) -> None:
    prompt, refused = ANSWERED[name]
    for more in (dict(), dict(return_logits=True, multimask_output=False)):
        assert_close(*(predictor.predict(**prompt, **more) for predictor in pair))
    strict = SamPredictor(pair[0].model, strict=True)
    strict.set_image(picture())
    if refused:
        with pytest.raises(InputError) as error:
            strict.predict(**prompt)
        assert "\n" not in str(error.value)
    else:
        strict.predict(**prompt)


def test_prompts_are_not_changed(pair: tuple[Any, Any]) -> None:
    given = POINTS.copy(), BOX.copy()
    pair[0].predict(given[0], [2, 3], given[1])
    assert np.array_equal(given[0], POINTS) and np.array_equal(given[1], BOX)


B, N = 5, 3
COORDS = torch.from_numpy(RNG.uniform(0, 40, (B, N, 2))).float()
LABELS = torch.from_numpy(RNG.integers(0, 2, (B, N)))
BOXES = torch.tensor([5.0, 5, 40, 25]) + torch.from_numpy(RNG.uniform(0, 1, (B, 4))).float()
MASKS = torch.from_numpy(RNG.normal(0, 1, (B, 1, 16, 16))).float()
BATCHES: dict[str, tuple] = {
    "boxes (B, 1, 4)": (None, None, BOXES[:, None]),
    "boxes (B, 2, 2)": (None, None, BOXES.reshape(B, 2, 2)),
    "reversed boxes": (None, None, BOXES.flip(1)),
    "float64 boxes": (None, None, BOXES.double()),
    "float16 boxes": (None, None, BOXES.half()),
    "int boxes": (None, None, BOXES.int()),
    "a flat box for one point": (COORDS[:1], LABELS[:1], BOXES[0]),
    "flat boxes for points": (COORDS, LABELS, BOXES.flatten()),
    "NaN in one box": (None, None, BOXES * torch.tensor([1, 1, torch.nan, 1, 1])[:, None]),
    "labels alone": (None, LABELS, BOXES),
    "bool labels": (COORDS, LABELS.bool()),
    "bool labels and boxes": (COORDS, LABELS.bool(), BOXES),
    "uint8 labels": (COORDS, LABELS.byte()),
    "any labels": (COORDS, LABELS * 9 - 3),
    "float labels": (COORDS, LABELS.float()),
    "bool points": (COORDS > 20, LABELS),
    "int points": (COORDS.long(), LABELS),
    "no points": (COORDS[:, :0], LABELS[:, :0]),
    "one mask for all boxes": (None, None, BOXES, MASKS[:1]),
    "one mask for all points": (COORDS, LABELS, None, MASKS[:1]),
    "one mask (1, h, w) for all boxes": (None, None, BOXES, MASKS[0]),
    "one mask (1, h, w)": (None, None, None, MASKS[0]),
    "one box for all masks": (None, None, BOXES[:1], MASKS),
    "one point for all masks": (COORDS[:1], LABELS[:1], None, MASKS),
    "masks of one pixel": (None, None, BOXES, MASKS[..., :4, :4]),
    "everything": (COORDS, LABELS, BOXES, MASKS),
    "everything, one mask": (COORDS, LABELS, BOXES, MASKS[:1]),
    "nothing": (None, None),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(pair: tuple[Any, Any], name: str) -> None:
    for more in (dict(return_logits=True), dict(multimask_output=False)):
        assert_close(*(predictor.predict_torch(*BATCHES[name], **more) for predictor in pair))


def test_batches_with_a_hook(pair: tuple[Any, Any]) -> None:
    """Where SAM's own decoder is called, too."""
    handle = pair[0].model.mask_decoder.register_forward_hook(lambda _module, _args, output: (output[0], -output[1]))
    try:
        for arguments in BATCHES.values():
            assert_close(*(predictor.predict_torch(*arguments, return_logits=True) for predictor in pair))
    finally:
        handle.remove()


REFUSED: dict[str, tuple] = {
    "flat boxes": (None, None, BOXES[0]),
    "two boxes a prompt": (None, None, BOXES.reshape(1, B, 4)),
    "five numbers": (None, None, torch.ones(B, 5)),
    "more boxes than points": (COORDS[:1], LABELS[:1], BOXES),
    "more masks than boxes": (None, None, BOXES[:2], MASKS),
    "fewer masks than boxes": (None, None, BOXES, MASKS[:2]),
    "labels of one prompt": (COORDS, LABELS[:1]),
    "no labels": (COORDS, None),
    "no prompts": (COORDS[:0], LABELS[:0]),
    "no boxes": (None, None, BOXES[:0]),
    "no masks": (None, None, None, MASKS[:0]),
    "no masks for a box": (None, None, BOXES[:1], MASKS[:0]),
    "bool mask": (None, None, None, MASKS > 0),
    "two channels": (None, None, None, MASKS.expand(-1, 2, -1, -1)),
    "mask of another size": (None, None, None, MASKS[..., :8, :8]),
    "flat points": (COORDS[0], LABELS[0]),
    "three coordinates": (torch.ones(B, N, 3), LABELS),
    "numpy": (None, None, BOXES.numpy()),
    "a number": (None, None, torch.tensor(4.0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_sam_fails_on_is_one_line(pair: tuple[Any, Any], name: str) -> None:
    ours, theirs = pair
    with pytest.raises(Exception):  # noqa: B017 - of many kinds
        theirs.predict_torch(*REFUSED[name])
    with pytest.raises(InputError) as error:
        ours.predict_torch(*REFUSED[name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(8,), (2, 4), (3,), (0, 4)])
def test_boxes_that_sam_fails_on(pair: tuple[Any, Any], shape: tuple[int, ...]) -> None:
    ours, theirs = pair
    with pytest.raises(Exception):  # noqa: B017
        theirs.predict(box=np.ones(shape))
    with pytest.raises(InputError, match="box must hold 4 numbers"):
        ours.predict(box=np.ones(shape))


def test_too_many_points_are_too_many_without_strict() -> None:
    sam = tiny_sam()
    for _ in range(2):
        predictor = SamPredictor(sam)
        predictor.set_image(picture())
        with pytest.raises(InputError, match="is too large"):
            predictor.predict_torch(torch.ones(1, MOST_POINTS + 1, 2), torch.ones(1, MOST_POINTS + 1))
        sam.prompt_encoder.register_forward_hook(lambda *_: None)  # now SAM's own way


IMAGE = picture()
IMAGES: dict[str, np.ndarray] = {
    "float64": IMAGE / 255,
    "float32": (IMAGE / 255).astype(np.float32),
    "float16": (IMAGE / 255).astype(np.float16),
    "black": np.zeros((9, 12, 3)),
    "upside down": IMAGE[::-1],
    "mirrored, BGR": IMAGE[:, ::-1, ::-1],
    "every third": IMAGE[::2, ::3],
    "transposed": IMAGE.transpose(1, 0, 2),
    "read only": np.frombuffer(IMAGE.tobytes(), np.uint8).reshape(IMAGE.shape),
    "mirrored floats": (IMAGE / 255)[:, ::-1],
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_images(name: str, image_format: str) -> None:
    image = IMAGES[name]
    sam = tiny_sam()
    ours, theirs = (kind(sam) for kind in KINDS)
    for predictor in (ours, theirs):
        predictor.set_image(image, image_format)
    assert torch.equal(ours.features, theirs.features) and ours.original_size == theirs.original_size
    ours.set_images([image, image], image_format)
    assert torch.allclose(ours.features[1:], theirs.features, atol=1e-5)
    strict = SamPredictor(sam, strict=True)
    if image.dtype != np.uint8:
        with pytest.raises(InputError, match="must be uint8"):
            strict.set_image(image, image_format)
    else:
        strict.set_image(image, image_format)


def test_images_that_are_refused() -> None:
    predictor = SamPredictor(tiny_sam())
    for image, message in (
        (IMAGE.astype(np.float32), "values from 0 to 1"), (IMAGE / 255 - 0.5, "values from 0 to 1"),
        (np.full((9, 9, 3), np.nan), "values from 0 to 1"), (IMAGE.astype(np.int32), "must be uint8"),
        (IMAGE > 9, "must be uint8"), (IMAGE[..., 0] / 255, "shape"),
    ):  # fmt: skip
        for call in (predictor.set_image, SamAutomaticMaskGenerator(predictor.model).generate):
            with pytest.raises(InputError, match=message) as error:
                call(image)
            assert "\n" not in str(error.value)


def test_an_older_torchvision_takes_no_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_image: np.ndarray) -> None:
        raise TypeError("Input type float64 is not supported")

    predictor = SamPredictor(tiny_sam())
    monkeypatch.setattr(predictor.transform, "apply_image", refuse)
    with pytest.raises(InputError, match="torchvision"):
        predictor.set_image(IMAGE / 255)
    with pytest.raises(TypeError):
        predictor.set_image(IMAGE)


def test_boxes_of_set_image_are_checked() -> None:
    from little_models import dense_sam

    from sam_bigltl import convert_sam

    predictor = SamPredictor(convert_sam(dense_sam()))
    for box, message in (([9, 9, 9, 20], "no area"), ([90, 9, 99, 20], "outside")):
        with pytest.raises(InputError, match=message):
            predictor.set_image(picture(), boxes=[box])


def test_strict_is_by_keyword(pair: tuple[Sam, Any]) -> None:
    assert pair[0].strict is False and SamPredictor(pair[0].model, strict=True).strict is True
    with pytest.raises(TypeError):
        SamPredictor(pair[0].model, True)
