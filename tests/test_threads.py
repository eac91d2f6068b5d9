"""Predictors of one model in several threads answer as one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_sam

from sam_bigltl import SamPredictor, convert_sam
from sam_bigltl.modeling.routing import Route

SIZES = ((40, 52), (64, 64), (31, 90))
ROUNDS = 6


def together(functions: list[Callable[[], None]]) -> None:
    """All of them at once, each in a thread; raises what one of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        start.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def little_sam(keep_ratio: float | str):
    sam = convert_sam(dense_sam(), little_dim=16)
    sam.image_encoder.keep_ratio = keep_ratio
    return sam


def answer(predictor: SamPredictor, number: int) -> tuple[np.ndarray, np.ndarray, Route]:
    height, width = SIZES[number]
    predictor.set_image(picture(height, width, number))
    masks, ious, _ = predictor.predict(
        np.array([[width / 2, height / 3]]), np.array([1]), np.array([2, 2, width - 3, height - 3]), return_logits=True
    )
    return masks, ious, predictor.route


def assert_same(found: tuple, wanted: tuple) -> None:
    assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])
    for mine, its in zip(found[2].groups, wanted[2].groups, strict=True):
        assert torch.equal(mine.indices, its.indices)


@pytest.mark.parametrize("keep_ratio", [0.5, "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_answer_as_one_after_the_other(keep_ratio, dtype):
    sam = little_sam(keep_ratio).to(dtype)
    wanted = [answer(SamPredictor(sam), number) for number in range(len(SIZES))]
    routes = {tuple(wanted[number][2].groups[0].indices[0].tolist()) for number in range(len(SIZES))}
    assert len(routes) == len(SIZES)  # a mixed-up route would be seen

    def user(number: int) -> None:
        predictor = SamPredictor(sam)
        for _ in range(ROUNDS):
            assert_same(answer(predictor, number), wanted[number])

    together([lambda number=number: user(number) for number in range(len(SIZES))])
    assert {value.dtype for value in sam.prompt_encoder.state_dict().values()} == {dtype}


def test_the_route_is_that_of_the_own_call(monkeypatch):
    """Where the encoder's passes overlapped, the second one's route would be there when the first one ends."""
    sam = little_sam(0.5)
    encoder = type(sam.image_encoder)
    inside = threading.Event()
    original = encoder.forward

    def slow(self, images):
        found = original(self, images)
        if not inside.is_set():
            inside.set()
            time.sleep(0.3)  # long enough for the other thread's whole pass
        return found

    wanted = [answer(SamPredictor(sam), number) for number in range(2)]
    monkeypatch.setattr(encoder, "forward", slow)
    found = {}

    def first() -> None:
        found[0] = answer(SamPredictor(sam), 0)

    def second() -> None:
        inside.wait()
        found[1] = answer(SamPredictor(sam), 1)

    together([first, second])
    for number in range(2):
        assert_same(found[number], wanted[number])


def test_models_can_be_copied_after_a_prediction():
    """The locks are not part of the model."""
    import copy

    sam = little_sam(0.5)
    before = answer(SamPredictor(sam), 0)
    assert_same(answer(SamPredictor(copy.deepcopy(sam)), 0), before)
