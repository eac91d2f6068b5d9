"""The demo's page in Chromium with a backend for tests: photographs come in every way, and no work is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import User, draw_disc

HAND_IN = """([bytes, kind, selector]) => {
    const file = new File([new Uint8Array(bytes)], kind + '.png', { type: 'image/png' }), data = new DataTransfer();
    data.items.add(file);
    const at = selector ? document.querySelector(selector) : document.body;
    const how = { bubbles: true, cancelable: true };
    const event = kind === 'paste' ? new ClipboardEvent('paste', { clipboardData: data, ...how })
      : new DragEvent('drop', { dataTransfer: data, ...how });
    at.dispatchEvent(event);
    return event.defaultPrevented;
}"""


@pytest.fixture
def user(browser, address: str) -> Iterator[User]:
    own = User(browser, address)
    yield own
    own.close()


@pytest.mark.parametrize(("kind", "where"), [("drop", "#page"), ("drop", None), ("paste", None)])
def test_drop_anywhere_and_paste(user: User, photo: Path, kind: str, where: str | None) -> None:
    assert user.page.evaluate(HAND_IN, [list(photo.read_bytes()), kind, where]), "the browser would leave the page"
    user.wait(f"root.dataset.photo === '{kind}.png'")
    user.idle()
    assert "400 x 300 px" in user.find(".status").inner_text()


def test_a_reload_brings_everything_back(user: User, photo: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    user.press("n")
    user.click(100, 100)
    user.press("e")
    user.click(105, 100)
    user.find(".objects input").first.fill("disc")
    user.page.keyboard.press("Enter")
    user.find("aside .check input").first.check()  # keep_ratio auto
    user.idle()
    before = user.scene
    for _ in range(2):  # the second time with a server that knows nothing: the fake one starts anew with the page
        user.page.wait_for_timeout(300)
        user.reload()
        user.wait("root.dataset.photo === 'disc.png'")
        user.idle()
        assert user.scene == before
        assert user.js("root.app.work.settings.keepRatio") == "auto"
        assert user.js("control.calls.includes('open')"), "the photograph was not sent again"
    user.press("z")
    assert user.scene["objects"][0]["name"] == "object 1"  # the history comes back as well
    assert user.find(".candidates button[aria-checked=true]").count() == 1


def test_a_new_tab_goes_on_with_what_a_closed_one_has_left(browser, address: str, photo: Path) -> None:
    own = User(browser, address)
    own.open(photo)
    own.click(200, 150)
    other = own.context.new_page()
    own.page.wait_for_timeout(400)
    own.page.close(run_before_unload=False)
    own.page = other
    own.go(address)
    own.find(".go-on").click()
    own.wait("root.dataset.photo === 'disc.png'")
    own.idle()
    assert len(own.scene["objects"][0]["prompt"]["points"]) == 1
    own.close()


def test_a_server_that_forgets_and_one_that_is_away(user: User, photo: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    user.js("control.known.clear()")
    user.click(100, 100)
    assert user.scene["objects"][0]["prompt"]["labels"] == [1, 1] and user.notice == ""
    user.js("control.offline = true")
    user.click(60, 60, wait=False)
    user.wait("!find('.busy-sign').hidden && find('.busy-sign').innerText.includes('does not answer')")
    user.press("n")
    user.click(300, 220, wait=False)
    user.js("control.offline = false")
    user.js("control.known.clear()")
    user.idle()
    assert [len(item["prompt"]["points"]) for item in user.scene["objects"]] == [3, 1]
    assert user.colour_at(300, 206) != user.colour_at(300, 260)


def test_a_failed_open_leaves_the_photograph_before(user: User, photo: Path, tmp_path: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photograph at all")
    user.find("input[type=file]").first.set_input_files(broken)
    user.wait("!find('.notice').hidden && find('.notice').innerText.includes('not an image')")
    user.idle()
    assert not user.find(".busy-sign").is_visible()
    user.click(100, 100)
    assert len(user.scene["objects"][0]["prompt"]["points"]) == 2 and user.js("root.dataset.photo") == "disc.png"


def test_a_failed_click_leaves_a_word_and_a_slow_one_a_sign(user: User, photo: Path) -> None:
    user.open(photo)
    user.js("control.fail = 'masks'")
    user.click(200, 150)
    assert "No mask came. The model is out of memory." in user.notice
    user.js("control.fail = ''")
    user.js("control.delay = 600")
    user.find(".again").click()
    user.wait("!find('.busy-sign').hidden && find('.busy-sign').innerText.includes('computing the mask')")
    user.idle()
    assert user.notice == "" and not user.find(".busy-sign").is_visible()


def test_webcam_is_cancelled_taken_and_never_left_on(user: User, photo: Path) -> None:
    user.open(photo)
    live = "(find('video').srcObject?.getTracks() ?? []).some((track) => track.readyState === 'live')"
    start = user.find("[title*=camera]").first
    start.click()
    user.wait("find('video').videoWidth > 0")
    user.js("window.track = find('video').srcObject.getTracks()[0]")
    user.find(".camera button >> text=Cancel").click()
    user.frames()
    assert user.js("window.track.readyState") == "ended" and user.find(".view").is_visible()
    start.click()
    user.wait("find('video').videoWidth > 0")
    user.js("window.track = find('video').srcObject.getTracks()[0]")
    user.page.evaluate(HAND_IN, [list(photo.read_bytes()), "paste", None])
    user.wait("root.dataset.photo === 'paste.png'")
    assert user.js("window.track.readyState") == "ended" and not user.js(live)
    start.click()
    user.wait("find('video').videoWidth > 0")
    user.find(".camera button >> text=Take").click()
    user.wait("root.dataset.photo === 'webcam.jpg'")
    user.idle()
    assert not user.js(live)


def test_webcam_on_an_insecure_origin_is_named(browser, address: str) -> None:
    own = User(browser, address)
    own.js("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    own.find("[title*=camera]").first.click()
    assert "needs a secure address" in own.notice
    own.close()


def test_everything_counts_stops_and_says_what_to_lower(browser, address: str, photo: Path) -> None:
    own = User(browser, f"{address}?step=80&regions=5")
    own.open(photo)
    own.find("summary >> text=Everything").click()
    own.find(".start").click()
    own.wait("/[1-9] found so far/.test(find('.found').innerText)")
    own.find("aside .stop").first.click()
    own.wait("find('.notice').innerText.includes('was stopped')")
    assert own.scene["regions"] == []
    slider = own.find("[aria-label='Least predicted IoU']")
    slider.fill("0.9")
    own.find(".start").click()
    own.wait("find('.notice').innerText.includes('Nothing was found. Lower the least predicted IoU (0.90) to 0.70')")
    slider.fill("0.5")
    plain = own.colour_at(400 / 6, 150)
    own.find(".start").click()
    own.idle()
    assert own.find(".found").inner_text() == "5 regions" and own.colour_at(400 / 6, 150) != plain
    own.press("Shift+Backspace")
    assert own.scene["regions"] == [] and own.colour_at(400 / 6, 150) == plain
    own.press("z")
    assert len(own.scene["regions"]) == 5
    own.find(".pick").click()
    own.click(400 / 6, 150)
    assert len(own.scene["regions"]) == 4 and own.scene["objects"][0]["base"]
    own.close()


def test_keep_ratio_auto_cost_and_comparison(user: User, photo: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    ratio, auto = user.find("[aria-label=keep_ratio]"), user.find("aside .check input").first
    user.js("control.delay = 400")
    ratio.fill("0.25")
    ratio.dispatch_event("change")
    user.wait("find('aside .busy') && !find('aside .busy').hidden")
    user.idle()
    assert "25 % of the tokens big" in user.find(".spent").first.inner_text()
    assert user.js("control.last.ratio") == 0.25
    auto.check()
    user.frames()
    assert ratio.is_disabled()
    user.idle()
    assert user.js("control.last.ratio") == "auto"
    user.find("aside select").first.select_option("tokens")
    user.page.wait_for_timeout(200)
    dark = user.colour_at(20, 20)
    user.find("aside select").first.select_option("")
    user.page.wait_for_timeout(200)
    assert sum(dark[:3]) < sum(user.colour_at(20, 20)[:3]) - 100
    user.find("aside .check input").nth(1).check()
    user.wait("!find('.comparison').hidden && /object 1 0\\.\\d+/.test(find('.comparison').innerText)")
    captions = user.find("figcaption").all_inner_texts()
    assert "keep_ratio auto" in captions[0] and "Dense, encoder 120 ms" in captions[1]


def test_masks_are_exported_at_the_size_of_the_original(browser, address: str, tmp_path: Path) -> None:
    own = User(browser, address)
    own.open(draw_disc(tmp_path / "large.png", 1800, 2600))
    own.click(1300, 900)
    text = json.loads(own.export("coco").read_text())
    assert [text["images"][0][key] for key in ("width", "height", "file_name")] == [2600, 1800, "large.png"]
    assert text["annotations"][0]["segmentation"]["size"] == [1800, 2600]
    own.close()
