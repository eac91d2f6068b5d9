"""What the demo's page must not send: each ends in one line that says what is wrong, whatever the bytes are."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")

from demo_toy import POINT, ROOT, client, opened, tiny_engine

from sam_bigltl.demo.messages import MOST_POINTS, Message
from sam_bigltl.errors import InputError
from sam_bigltl.predict.prompt import Prompt

DIGITS = int("9" * 400)
KEY = "a" * 64


@pytest.fixture(scope="module")
def page():
    return client(tiny_engine())


@pytest.fixture(scope="module")
def key(page) -> str:
    return opened(page)["key"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"a"', b"\xff\xfe", b'{"key": NaN}', b'{"key": Infinity}', b"[" * 30_000,
        b'{"keep_ratio": ' + b"9" * 5000 + b"}", b"{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["encode", "masks", "full_mask", "everything"])
def test_bodies_that_are_no_message(page, route, body):
    answer = page.post(ROOT + route, content=body)
    assert answer.status_code == 400 and list(answer.json()) == ["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "value", [None, 5, True, [], {}, "", "a" * 63, "A" * 64, "a" * 65, "../" * 10, "\ud800" * 64, "a" * 64 + "\n"]
)
def test_keys(value):
    with pytest.raises(InputError, match="wrong key"):
        _ = Message({"key": value}).key
    assert Message({"key": KEY}).key == KEY


@pytest.mark.parametrize("value", [None, True, "0.5", "Auto", [0.5], {}, 0, -1, 1.01, 1e999, DIGITS, float("nan")])
def test_keep_ratios(value):
    with pytest.raises(InputError, match="wrong keep_ratio"):
        _ = Message({"keep_ratio": value}).keep_ratio
    assert [Message({"keep_ratio": good}).keep_ratio for good in (1, 0.01, "auto")] == [1.0, 0.01, "auto"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "no prompt"), ([], "no prompt"), ({}, "empty prompt"), ({"points": [], "labels": []}, "empty prompt"),
        ({"points": 5, "labels": []}, "label for every point"), ({"points": [[1, 2]]}, "label for every point"),
        ({"points": {"0": [1, 2]}, "labels": [1]}, "label for every point"),
        ({"points": [[1, 2]], "labels": [True]}, "wrong label"), ({"points": [[1, 2]], "labels": [2]}, "wrong label"),
        ({"points": [[1, 2]], "labels": ["1"]}, "wrong label"), ({"points": [[1, 2]], "labels": [[1]]}, "wrong label"),
        ({"points": [[1, 2]], "labels": [{}]}, "wrong label"),
        ({"points": [[1]], "labels": [1]}, "wrong point"), ({"points": [[1, 2, 3]], "labels": [1]}, "wrong point"),
        ({"points": ["ab"], "labels": [1]}, "wrong point"), ({"points": [[1, None]], "labels": [1]}, "wrong point"),
        ({"points": [[1, "2"]], "labels": [1]}, "wrong point"), ({"points": [[True, 2]], "labels": [1]}, "wrong point"),
        ({"points": [[1, DIGITS]], "labels": [1]}, "wrong point"),
        ({"points": [[1, float("nan")]], "labels": [1]}, "wrong point"),
        ({"box": [1, 2, 3]}, "wrong box"), ({"box": "1234"}, "wrong box"), ({"box": {}}, "wrong box"),
        ({"box": [1, 2, 3, -DIGITS]}, "wrong point"), ({"box": [1, 2, 1, 9]}, "no area"),
        ({"box": [90, 2, 99, 9]}, "no area"),  # beside the photograph
        ({"points": [[1, 2]] * 65, "labels": [1] * 65}, "64 points at most"),
    ],
)  # fmt: skip
def test_prompts(prompt, message):
    with pytest.raises(InputError, match=message) as error:
        Message({"prompt": prompt}).prompt((60, 80))
    assert "\n" not in str(error.value)


def test_prompts_that_are_right():
    given = {"points": [[-5, 1e300], [10.125, 20]], "labels": [1.0, 0], "box": [30, 40, 3, 4.5]}
    found = Message({"prompt": given}).prompt((60, 80))
    assert found == Prompt((3.0, 4.5, 30.0, 40.0), ((0.0, 60.0), (10.125, 20.0)), (1, 0))
    many = {"points": [[1, 2]] * MOST_POINTS, "labels": [0] * MOST_POINTS, "box": None}
    assert len(Message({"prompt": many}).prompt((60, 80)).points) == MOST_POINTS


@pytest.mark.parametrize("value", [None, True, 1.0, "1", [1], -1, 3, DIGITS])
def test_choices(page, key, value):
    asked = {"key": key, "keep_ratio": 0.5, "prompt": POINT, "choice": value}
    answer = page.post(ROOT + "full_mask", content=json.dumps(asked))
    assert answer.status_code == 400 and "wrong choice" in answer.json()["error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0), ("points_per_side", 65), ("points_per_side", 4.5), ("points_per_side", DIGITS),
        ("points_per_side", True), ("pred_iou_thresh", "0.5"), ("pred_iou_thresh", -0.1), ("pred_iou_thresh", None),
        ("stability_score_thresh", DIGITS), ("stability_score_thresh", [0.5]), ("stability_score_thresh", False),
    ],
)  # fmt: skip
def test_options_of_everything_mode(page, key, name, value):
    options = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, name: value}
    answer = page.post(ROOT + "everything", content=json.dumps({"key": key, "keep_ratio": 0.5, **options}))
    assert answer.status_code == 400 and f"wrong {name}" in answer.json()["error"]
