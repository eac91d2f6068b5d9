"""The demo's page in Chromium with a backend for tests: prompts, objects, and what must never be lost or mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import User


@pytest.fixture
def user(browser, address: str, photo: Path) -> Iterator[User]:
    own = User(browser, address)
    own.open(photo)
    yield own
    own.close()


def prompts(user: User) -> list[dict]:
    return [item["prompt"] for item in user.scene["objects"]]


def near(found: list, wanted: list, most: float = 0.6) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) <= most for a, b in zip(found, wanted))


def test_points_boxes_and_both(user: User) -> None:
    plain = user.colour_at(200, 140)
    user.click(200, 150)
    assert user.colour_at(200, 140) != plain
    user.click(30, 30, button="right")
    user.drag(100, 60, 290, 240)
    (prompt,) = prompts(user)
    assert prompt["labels"] == [1, 0] and near(prompt["points"][0], [200, 150]) and near(prompt["points"][1], [30, 30])
    assert near(prompt["box"], [100, 60, 290, 240])
    user.press("r")
    user.click(350, 20, wait=False)
    user.frames()
    corner = user.colour_at(350, 20)
    assert corner[:3] == [0, 114, 255], "the first corner of a box leaves its mark"
    user.page.keyboard.press("Escape")
    user.frames()
    assert user.colour_at(350, 20) != corner and near(prompts(user)[0]["box"], [100, 60, 290, 240])
    user.press("r")
    user.click(110, 70, wait=False)
    user.click(280, 230)
    assert near(prompts(user)[0]["box"], [110, 70, 280, 230])


def test_points_are_dragged_and_deleted(user: User) -> None:
    user.click(200, 150)
    user.click(60, 60)
    user.drag(60, 60, 90, 80)
    assert near(prompts(user)[0]["points"][1], [90, 80]) and prompts(user)[0]["box"] is None
    user.click(90, 80)
    button = user.find(".bin")
    assert button.inner_text() == "Delete point"
    button.click()
    user.idle()
    assert len(prompts(user)[0]["points"]) == 1 and not button.is_visible()
    user.press("z")
    assert len(prompts(user)[0]["points"]) == 2
    user.drag(100, 100, 300, 250)
    user.drag(300, 250, 350, 280)  # a corner of the box
    assert near(prompts(user)[0]["box"], [100, 100, 350, 280])


@pytest.mark.parametrize("steps", [3, 14])
def test_points_are_exact_at_any_zoom(user: User, steps: int) -> None:
    target = (237.25, 121.5)
    user.page.mouse.move(*user.at(*target))
    for _ in range(steps):
        user.page.mouse.wheel(0, -200)
        user.frames()
    x, y = user.at(*target)
    user.page.mouse.click(round(x), round(y))
    user.idle()
    assert user.view["scale"] > 3
    assert near(prompts(user)[0]["points"][0], target, 0.6 / user.view["scale"] + 0.01)
    user.page.keyboard.down("Space")
    before = user.view
    user.page.mouse.down()
    user.page.mouse.move(x + 60, y + 40, steps=3)
    user.page.mouse.up()
    user.page.keyboard.up("Space")
    user.frames()
    assert user.view["left"] > before["left"] + 30 and len(prompts(user)[0]["points"]) == 1
    user.press("0")
    assert user.view["scale"] < 3


def test_brush_and_eraser(user: User) -> None:
    user.click(200, 150)
    user.press("d")
    user.drag(300, 50, 340, 50)
    user.press("e")
    user.click(200, 150)
    (item,) = user.scene["objects"]
    assert [stroke["erase"] for stroke in item["strokes"]] == [False, True]
    assert near(item["strokes"][0]["points"][0], [300, 50]) and near(item["strokes"][0]["points"][-1], [340, 50])
    assert len(item["prompt"]["points"]) == 1
    user.press("h")
    user.page.mouse.move(0, 0)
    assert abs(user.colour_at(320, 52)[2] - user.colour_at(150, 20)[2]) > 20  # painted
    user.press("z")
    user.press("z")
    assert user.scene["objects"][0]["strokes"] == []


@pytest.mark.parametrize("pause", [0, 150, 450])
def test_quick_actions_stay_in_order(browser, address: str, photo: Path, pause: int) -> None:
    own = User(browser, f"{address}?random=300")
    own.open(photo)
    for x in (60, 200, 330):
        own.click(x, 150, wait=False)
        own.page.wait_for_timeout(pause)
        own.page.keyboard.press("n")
    own.idle()
    found = prompts(own)
    assert [len(each["points"]) for each in found] == [1, 1, 1, 0]
    assert all(near(each["points"][0], [x, 150]) for each, x in zip(found, (60, 200, 330)))
    for x in (60, 200, 330):  # the masks belong to them
        assert own.colour_at(x, 136) != own.colour_at(x, 90)
    own.close()


def test_an_answer_leaves_a_name_that_is_typed_alone(browser, address: str, photo: Path) -> None:
    own = User(browser, f"{address}?delay=400")
    own.open(photo)
    own.click(200, 150)
    own.click(100, 100, wait=False)
    name = own.find(".objects input")
    name.click()
    own.page.keyboard.press("Control+a")
    own.page.keyboard.type("nob", delay=80)
    own.idle()  # the answer is there
    own.page.keyboard.type("zx", delay=30)
    own.page.keyboard.press("Backspace")
    own.page.keyboard.press("Enter")
    own.frames()
    (item,) = own.scene["objects"]
    assert item["name"] == "nobz" and len(item["prompt"]["points"]) == 2
    own.close()


def test_no_bare_key_takes_anything_away(user: User) -> None:
    user.click(200, 150)
    user.press("n")
    user.click(100, 100)
    user.click(100, 100)  # chosen
    before = user.scene["objects"]
    for key in ("Backspace", "Delete", "x", "c", "Escape", "Backspace"):
        user.press(key)
        assert user.scene["objects"] == before, key
    user.press("Shift+Backspace")
    assert prompts(user) == [{"points": [], "labels": [], "box": None}] and "Undo" in user.notice
    user.press("z")
    assert user.scene["objects"] == before


def test_keys_after_a_checkbox_and_a_slider(user: User) -> None:
    user.click(200, 150)
    user.find(".look input[type=checkbox]").first.click()
    user.press("n")
    assert len(prompts(user)) == 2
    user.find("aside input[type=range]").first.click()
    user.idle()
    user.press("z")
    assert len(prompts(user)) == 1
    user.find(".objects input").first.click()
    user.press("n")
    assert len(prompts(user)) == 1


def test_a_point_by_keyboard(user: User) -> None:
    user.find(".view").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowLeft", "Enter"):
        user.press(key)
    scale = user.view["scale"]
    assert near(prompts(user)[0]["points"][0], [200 + 30 / scale, 150 + 16 / scale], 0.1)
    user.press("r")
    user.press("Enter")
    for _ in range(4):
        user.press("ArrowDown")
        user.press("ArrowRight")
    user.press("Enter")
    box = prompts(user)[0]["box"]
    assert near([box[2] - box[0], box[3] - box[1]], [64 / scale, 64 / scale], 0.1)


def test_the_three_masks_and_the_choice(user: User) -> None:
    user.click(200, 150)
    texts = user.find(".candidates button").all_inner_texts()
    assert [text.split()[-1] for text in texts] == ["0.910", "0.850", "0.720"]
    user.press("2")
    assert user.scene["objects"][0]["choice"] == 1
    user.find(".candidates button").nth(2).click()
    assert user.scene["objects"][0]["choice"] == 2
    user.press("z")
    user.frames()
    assert user.find(".candidates button[aria-checked=true]").get_attribute("aria-label") == "Mask 2, IoU 0.85"


def test_hover_shows_the_mask_of_a_click_only_where_the_decoder_is_quick(browser, address: str, photo: Path) -> None:
    own = User(browser, address)
    own.open(photo)
    plain = own.colour_at(200, 140)
    own.page.mouse.move(*own.at(200, 150))
    own.wait("root.app.work.hover.mask !== null")
    assert own.colour_at(200, 140) != plain and prompts(own)[0]["points"] == []
    began = own.js("performance.now()")
    asked = own.js("control.calls.filter((name) => name === 'masks').length")
    for step in range(40):
        own.page.mouse.move(*own.at(150 + step, 150))
    took = own.js("performance.now()") - began
    assert own.js("control.calls.filter((name) => name === 'masks').length") - asked <= took / 80 + 2
    own.find(".preview input").click()
    own.page.mouse.move(*own.at(220, 150))
    own.page.wait_for_timeout(250)
    assert own.js("root.app.work.hover.mask") is None
    own.close()
    slow = User(browser, f"{address}?decoder=400")
    slow.open(photo)
    slow.click(200, 150)
    slow.page.mouse.move(*slow.at(100, 100))
    slow.page.wait_for_timeout(250)
    assert slow.js("root.app.work.hover.mask") is None and slow.find(".preview input").is_disabled()
    slow.close()
