"""The demo's page in Chromium with a backend for tests: sizes, light and dark, touch, and who cannot see or point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chromium import User, draw_disc

AXE = Path(__file__).parent.parent / "demo" / "web" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"wide": (1400, 1000), "middle": (800, 1000), "phone": (390, 844), "phone on its side": (844, 390)}


def is_phone(name: str) -> bool:
    return name.startswith("phone")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(300, 400), (60, 2000), (2000, 50)], ids=["photo", "panorama", "tower"])
def test_nothing_is_stretched_or_sticks_out(
    browser, address: str, tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:  # fmt: skip
    own = User(browser, address, SIZES[name], touch=is_phone(name))
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not own.js(wide)
    own.open(draw_disc(tmp_path / "shape.png", *shape))
    assert not own.js(wide)
    frame, view = own.find(".view").bounding_box(), own.view
    drawn = own.js("[find('.view').width / devicePixelRatio, find('.view').height / devicePixelRatio]")
    assert abs(drawn[0] - frame["width"]) <= 1 and abs(drawn[1] - frame["height"]) <= 1  # no stretch by CSS
    assert shape[1] * view["scale"] <= frame["width"] + 1 and shape[0] * view["scale"] <= frame["height"] + 1
    assert max(shape[1] * view["scale"] / frame["width"], shape[0] * view["scale"] / frame["height"]) > 0.85
    tools, stage = own.find(".toolbar").bounding_box(), own.find(".stage").bounding_box()
    for part in (tools, stage):  # all of it in the first screen
        assert part["y"] >= 0 and part["y"] + part["height"] <= SIZES[name][1] + 1
    own.close()


@pytest.mark.parametrize("name", ["phone", "phone on its side"])
def test_targets_are_large_enough_for_a_finger(browser, address: str, photo: Path, name: str) -> None:
    own = User(browser, address, SIZES[name], touch=True)
    own.open(photo)
    own.js("root.shadowRoot.querySelectorAll('details').forEach((each) => { each.open = true; })")
    small = own.js(
        "[...root.shadowRoot.querySelectorAll('button, select, summary, input:not([type=file])')]"
        ".map((e) => (e.type === 'checkbox' ? e.closest('label') : e)).filter((e) => e.checkVisibility())"
        ".map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
        ".filter(([, w, h]) => w < 40 || h < 40)"
    )
    assert small == []
    own.close()


class Fingers:
    """Touches as the browser itself gets them."""

    def __init__(self, user: User) -> None:
        self.client = user.context.new_cdp_session(user.page)

    def send(self, kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(places)]
        self.client.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def test_a_trembling_finger_a_pinch_and_a_drag(browser, address: str, photo: Path) -> None:
    own = User(browser, address, SIZES["phone"], touch=True)
    own.open(photo)
    fingers, (x, y) = Fingers(own), own.at(200, 150)
    fingers.send("Start", (x, y))
    fingers.send("Move", (x + 5, y + 5))
    fingers.send("Move", (x + 7, y))
    fingers.send("End")
    own.idle()
    prompt = own.scene["objects"][0]["prompt"]
    assert prompt["box"] is None and abs(prompt["points"][0][0] - 200) < 1
    before = own.view["scale"]
    fingers.send("Start", (x - 20, y))
    fingers.send("Start", (x - 20, y), (x + 20, y))
    for step in range(1, 9):
        fingers.send("Move", (x - 20 - 8 * step, y), (x + 20 + 8 * step, y))
    fingers.send("End", (x - 84, y))
    fingers.send("End")
    own.idle()
    assert own.view["scale"] > 2.5 * before and own.scene["objects"][0]["prompt"] == prompt
    assert own.page.evaluate("visualViewport.scale") == 1 and own.notice == ""
    own.find("[title*='whole photograph']").click()
    own.find("[data-mode=box]").click()
    fingers.send("Start", own.at(100, 80))
    fingers.send("Move", own.at(180, 160))
    fingers.send("Move", own.at(280, 220))
    fingers.send("End")
    own.idle()
    box = own.scene["objects"][0]["prompt"]["box"]
    assert all(abs(a - b) < 1.5 for a, b in zip(box, [100, 80, 280, 220]))
    own.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", SIZES)
def test_axe_finds_nothing_serious(browser, address: str, photo: Path, name: str, dark: bool) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core here: npm ci in demo/web installs it")
    own = User(browser, address, SIZES[name], dark=dark, touch=is_phone(name))
    own.page.add_script_tag(path=AXE)

    def check() -> None:
        found = own.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        serious = [
            (each["id"], [node["html"][:120] for node in each["nodes"]])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []

    check()
    own.open(photo)
    own.click(200, 150)
    own.press("n")
    own.js("root.shadowRoot.querySelectorAll('details').forEach((each) => { each.open = true; })")
    own.js("root.shadowRoot.querySelectorAll('.help').forEach((each) => each.click())")
    own.find("summary >> text=Encoder").scroll_into_view_if_needed()
    own.find("aside .check input").nth(1).check()
    own.js("root.app.work.say('Something went wrong.', true, () => {})")
    own.idle()
    check()
    own.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_tick_and_an_arrow_can_be_seen(browser, address: str, photo: Path, dark: bool) -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    own = User(browser, address, dark=dark)
    own.open(photo)

    def look(locator) -> np.ndarray:
        own.page.mouse.move(0, 0)
        return np.asarray(Image.open(BytesIO(locator.screenshot())).convert("L")).astype(int)

    box = own.find("aside .check input").first
    empty = look(box)
    box.check()
    own.idle()
    ticked = look(box)
    assert np.abs(ticked - empty).max() > 80 and np.ptp(ticked[4:-4, 4:-4]) > 80  # the tick stands out from its ground
    select = look(own.find("aside select").first)
    arrow = select[8:-8, -26:-6]
    assert np.ptp(arrow) > 80
    own.close()


def test_roles_names_and_words_that_are_explained(browser, address: str, photo: Path) -> None:
    own = User(browser, address)
    own.open(photo)
    own.click(200, 150)
    page = own.page
    assert page.get_by_role("application", name="Photograph").count() == 1
    assert page.get_by_role("radiogroup", name="What a click does").get_by_role("radio").count() == 6
    assert page.get_by_role("radio", name="Mask 1, IoU 0.91").is_checked()
    assert page.get_by_role("textbox", name="Name of the object").input_value() == "object 1"
    assert page.get_by_role("link", name="About the project").get_attribute("href").startswith("https://")
    assert "Click on an object and get its mask" in page.get_by_role("banner").inner_text()
    words = ("keep_ratio", "GMACs", "big tokens and importance", "the comparison", "the predicted IoU", "stability")
    for word in words:
        mark = page.get_by_role("button", name=f"What is {word}?", include_hidden=True)
        assert mark.count() == 1 and len(mark.get_attribute("title")) > 40, word
    gmacs = page.get_by_role("button", name="What is GMACs?")
    gmacs.click()
    assert page.get_by_text("billions of multiplications").is_visible()
    own.close()


def test_colours_of_many_objects(browser, address: str, photo: Path) -> None:
    own = User(browser, address)
    own.open(photo)
    for index in range(22):
        own.click(20 + 17 * index, 150, wait=False)
        own.press("n")
    own.idle()
    assert len({item["colour"] for item in own.scene["objects"]}) == 23
    assert json.loads(json.dumps(own.scene))["objects"][22]["name"] == "object 23"
    own.close()
