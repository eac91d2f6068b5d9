"""The demo in a real Chromium: `make test-browser`. Screenshots go to the folder that SCREENSHOTS names, if it does."""

# ruff: noqa: E402 - what needs an optional package is imported after the check for it
from __future__ import annotations

import json
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: make test-browser installs it")

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.cli.demo import example_photos
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.demo.app import CSS, THEME, build_app
from sam_bigltl.demo.engine import Engine


def find_chromium() -> str | None:
    """The system's, or else the one that playwright has installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    with playwright.sync_playwright() as driver:
        path = driver.chromium.executable_path
    return path if Path(path).is_file() else None


CHROMIUM = find_chromium()
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: make test-browser installs it")
PHOTO = (300, 400)  # H, W


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark disc on noise, as a file."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: PHOTO[0], : PHOTO[1]]
    image = rng.integers(120, 200, (*PHOTO, 3)).astype(np.uint8)
    image[(rows - 150) ** 2 + (columns - 200) ** 2 < 80**2] = (30, 40, 90)
    path = tmp_path_factory.mktemp("photos") / "disc.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = build_app(Engine(default_checkpoint(), torch.device("cpu")), 0.5, example_photos(), 1280)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, theme=THEME, css=CSS, footer_links=[])
    yield url
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        own = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield own
        own.close()


class Page:
    """One user at the demo."""

    def __init__(self, browser, address: str, width: int = 1400, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 1000}, accept_downloads=True,
            permissions=["clipboard-read", "clipboard-write", "camera"],
        )  # fmt: skip
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address + ("?__theme=dark" if dark else "?__theme=light"))
        self.page.wait_for_selector("#canvas .stage")

    def answered(self, act: Callable[[], object]) -> None:
        """Do something and wait until the page shows what came of it."""
        before = self.answer
        act()
        self.page.wait_for_function(
            "before => (document.querySelector('#canvas [data-answer], #canvas[data-answer]')?.dataset.answer || '') "
            "!== before",
            arg=before, timeout=20000,
        )  # fmt: skip

    @property
    def answer(self) -> str:
        return self.data("answer")

    def data(self, name: str) -> str:
        return self.page.evaluate(
            "name => document.querySelector(`#canvas [data-${name}], #canvas[data-${name}]`)?.dataset[name] || ''", name
        )

    def open(self, path: Path) -> None:
        self.answered(lambda: self.page.set_input_files("#canvas input[type=file]", path))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photograph is on the page."""
        frame = self.page.locator("#canvas .view").bounding_box()
        size = self.page.evaluate(
            "(() => { const v = document.querySelector('#canvas .view'); return [v.width, v.height]; })()"
        )
        return frame["x"] + x * frame["width"] / size[0], frame["y"] + y * frame["height"] / size[1]

    def click(self, x: float, y: float) -> None:
        self.answered(lambda: self.page.mouse.click(*self.at(x, y)))

    def key(self, name: str) -> None:
        self.answered(lambda: self.page.keyboard.press(name))

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        def run() -> None:
            self.page.mouse.move(*self.at(x0, y0))
            self.page.mouse.down()
            self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2), steps=3)
            self.page.mouse.move(*self.at(x1, y1), steps=3)
            self.page.mouse.up()

        self.answered(run)

    def download(self, kind: str) -> Path:
        with self.page.expect_download() as waiting:
            self.page.click(f"#download-{kind}")
        return waiting.value.path()

    def coco(self) -> dict:
        return json.loads(self.download("coco").read_text())

    def colour_at(self, x: float, y: float) -> list[int]:
        return self.page.evaluate(
            "([x, y]) => [...document.querySelector('#canvas .view').getContext('2d').getImageData(x, y, 1, 1).data]",
            [x, y],
        )

    def toast(self) -> str:
        found = self.page.wait_for_selector(".toast-body, .toast-text", timeout=10000)
        return found.inner_text()


@pytest.fixture
def page(browser, address: str) -> Iterator[Page]:
    own = Page(browser, address)
    yield own
    own.context.close()
    assert own.errors == []


def predicted(photo: Path, prompt: dict, keep_ratio: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Masks and IoUs of SamPredictor for the prompt of a COCO download."""
    predictor = SamPredictor(load_sam(default_checkpoint()))
    predictor.model.image_encoder.keep_ratio = keep_ratio
    predictor.set_image(np.asarray(Image.open(photo)))
    masks, ious, _ = predictor.predict(**{key: np.array(value) for key, value in prompt.items()})
    return masks, ious


def screenshot(page: Page, name: str, photo_folder: Path) -> None:
    folder = Path(os.environ.get("SCREENSHOTS", photo_folder))
    page.page.wait_for_timeout(300)
    shot = page.page.screenshot(full_page=name == "tokens")
    Image.open(BytesIO(shot)).convert("RGB").save(folder / f"demo_{name}.jpg", quality=88)


def test_clicks_boxes_and_what_is_downloaded(page: Page, photo: Path, tmp_path: Path) -> None:
    page.open(photo)
    untouched = page.colour_at(200, 120)
    page.click(200, 150)
    assert page.colour_at(200, 120) != untouched  # the mask is on the photograph
    page.page.keyboard.press("b")
    page.click(30, 30)
    prompt = page.coco()["annotations"][0]["prompt"]
    assert prompt["point_labels"] == [1, 0] and np.allclose(prompt["point_coords"], [[200, 150], [30, 30]], atol=1.5)
    masks, ious = predicted(photo, prompt)
    png = np.asarray(Image.open(page.download("mask")))
    assert np.array_equal(png > 0, masks[ious.argmax()])
    shown = page.page.locator("#canvas .candidates button").all_inner_texts()
    assert [text.split()[-1] for text in shown] == [f"{value:.3f}" for value in ious]
    for index in range(3):
        page.key(str(index + 1)) if index != ious.argmax() else None
        if index != ious.argmax():
            assert np.array_equal(np.asarray(Image.open(page.download("mask"))) > 0, masks[index])
    # another object, by a box
    page.page.click("#canvas [data-mode='1']")
    page.answered(lambda: page.page.click("#canvas [data-do=new]"))
    page.drag(110, 60, 290, 240)
    found = page.coco()
    assert [entry["name"] for entry in found["categories"]] == ["object 1", "object 2"]
    box = found["annotations"][1]["prompt"]
    assert np.allclose(box["box"], [110, 60, 290, 240], atol=2)
    masks, ious = predicted(photo, box)
    cut = np.asarray(Image.open(page.download("cutout")))
    assert cut.shape[2] == 4 and (cut[..., 3] > 0).sum() == masks[ious.argmax()].sum()
    # two clicks are a box as well; points and box together
    page.page.keyboard.press("n")
    page.page.wait_for_function("document.querySelectorAll('#canvas .chip').length === 3")
    page.page.keyboard.press("r")
    page.page.mouse.click(*page.at(120, 70))
    page.click(280, 230)
    page.page.keyboard.press("o")
    page.click(200, 150)
    last = page.coco()["annotations"][2]["prompt"]
    assert np.allclose(last["box"], [120, 70, 280, 230], atol=2) and last["point_labels"] == [1]
    # undo, redo, clear
    page.key("z")
    assert "point_coords" not in page.coco()["annotations"][2]["prompt"]
    page.answered(lambda: page.page.click("#canvas [data-do=redo]"))
    assert page.coco()["annotations"][2]["prompt"] == last
    page.answered(lambda: page.page.click("#canvas [data-do=clear]"))
    assert page.page.locator("#canvas .chip").count() == 1 and page.colour_at(200, 120) == untouched
    page.key("z")
    assert len(page.coco()["annotations"]) == 3


def test_code_that_gives_the_same_mask(page: Page, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.open(photo)
    page.click(200, 150)
    page.page.click("#python")
    page.page.wait_for_selector("#code", state="visible")
    page.page.wait_for_timeout(300)
    text = page.page.evaluate("navigator.clipboard.readText()")
    assert "predictor.predict(" in text and "keep_ratio = 0.5" in text
    monkeypatch.chdir(photo.parent)
    names: dict = {}
    exec(text, names)
    assert np.array_equal(names["mask"], np.asarray(Image.open(page.download("mask"))) > 0)


def test_keep_ratio_and_what_the_encoder_did(page: Page, photo: Path, tmp_path: Path) -> None:
    page.open(photo)
    page.click(200, 150)
    prompt = page.coco()["annotations"][0]["prompt"]

    def slide(value: float) -> None:
        page.page.fill("#ratio input[type=number]", str(value))
        page.page.locator("#ratio input[type=number]").blur()

    page.answered(lambda: slide(0.25))
    status = page.page.inner_text("#canvas .status")
    spent, dense = map(float, re.search(r"([\d.]+) of ([\d.]+) GMACs", status).groups())
    assert "encoder" in status and 0 < spent < dense
    masks, ious = predicted(photo, prompt, 0.25)
    assert np.array_equal(np.asarray(Image.open(page.download("mask"))) > 0, masks[ious.argmax()])
    corner = page.colour_at(5, 5)
    page.page.select_option("#canvas .overlay", "tokens")
    assert "25 % big" in page.page.inner_text("#canvas .stages")
    page.page.wait_for_timeout(300)
    tokens = page.page.evaluate("document.querySelector('#canvas .view').toDataURL()")
    page.page.select_option("#canvas .overlay", "heat")
    page.page.wait_for_timeout(300)
    assert page.page.evaluate("document.querySelector('#canvas .view').toDataURL()") != tokens
    assert page.colour_at(5, 5) != corner
    page.page.select_option("#canvas .overlay", "")
    page.page.check("#canvas .compare")
    page.page.wait_for_selector("#canvas .comparison:not([hidden])")
    captions = page.page.locator("#canvas .comparison figcaption").all_inner_texts()
    assert "keep_ratio 0.25" in captions[0] and "dense" in captions[1] and "object 1" in captions[1]
    page.answered(lambda: page.page.check("#auto input"))
    full, dense_again = map(
        float, re.search(r"([\d.]+) of ([\d.]+) GMACs", page.page.inner_text("#canvas .status")).groups()
    )
    assert dense_again == dense and full <= dense


def test_two_users_do_not_see_each_other(browser, address: str, photo: Path) -> None:
    one, other = Page(browser, address), Page(browser, address)
    one.open(photo)
    other.open(photo)
    for step in range(3):
        one.page.mouse.click(*one.at(200 + step, 150))
        other.page.mouse.click(*other.at(30 + step, 40))
    for user in (one, other):
        user.page.wait_for_function("document.querySelector('#canvas .candidates').children.length === 3")
        user.page.wait_for_timeout(1500)
    mine, theirs = one.coco()["annotations"], other.coco()["annotations"]
    assert len(mine) == len(theirs) == 1
    assert np.allclose(sorted(mine[0]["prompt"]["point_coords"]), [[200, 150], [201, 150], [202, 150]], atol=1.5)
    assert np.allclose(sorted(theirs[0]["prompt"]["point_coords"]), [[30, 40], [31, 40], [32, 40]], atol=1.5)
    assert one.errors == other.errors == []
    one.context.close()
    other.context.close()


def test_broken_photographs_leave_the_page_alive(page: Page, photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photograph at all")
    page.answered(lambda: page.page.set_input_files("#canvas input[type=file]", broken))
    assert "not an image" in page.toast()
    half = tmp_path / "half.png"
    half.write_bytes(photo.read_bytes()[:3000])
    page.answered(lambda: page.page.set_input_files("#canvas input[type=file]", half))
    page.page.click("#download-mask")
    page.page.wait_for_function(
        "[...document.querySelectorAll('.toast-body')].some((e) => e.innerText.includes('no photograph'))"
    )
    page.open(photo)
    page.click(200, 150)
    assert page.page.locator("#canvas .candidates button").count() == 3


def test_everything_mode_and_its_stop(page: Page, photo: Path) -> None:
    page.open(photo)
    page.page.click("#everything > button")
    page.page.fill("#everything input[type=number] >> nth=0", "32")
    page.page.locator("#everything input[type=number] >> nth=0").blur()
    page.page.click("#start")
    page.page.wait_for_function("Number(document.querySelector('#bar').getAttribute('aria-valuenow')) > 0")
    page.page.click("#stop")
    page.page.wait_for_function(
        "Number(document.querySelector('#bar').getAttribute('aria-valuenow')) === 0", timeout=20000
    )
    assert "regions" not in page.page.inner_text("#canvas .status")
    for index, value in enumerate(("6", "0.3", "0.3")):
        page.page.fill(f"#everything input[type=number] >> nth={index}", value)
        page.page.locator(f"#everything input[type=number] >> nth={index}").blur()
    page.page.click("#start")
    page.page.wait_for_function(
        "/[1-9]\\d* regions/.test(document.querySelector('#canvas .status').innerText)", timeout=60000
    )
    assert {entry["name"] for entry in page.coco()["categories"]} == {"region"}


def test_drop_paste_webcam_and_examples(page: Page, photo: Path) -> None:
    hand_in = """async ([bytes, kind]) => {
        const file = new File([new Uint8Array(bytes)], kind + '.png', { type: 'image/png' }), data = new DataTransfer();
        data.items.add(file);
        const stage = document.querySelector('#canvas .stage');
        if (kind === 'drop') stage.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }));
        else document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
    }"""
    for kind in ("drop", "paste"):
        page.answered(lambda kind=kind: page.page.evaluate(hand_in, [list(photo.read_bytes()), kind]))
        assert f"{kind}.png, 400 x 300 px" in page.page.inner_text("#canvas .status")
    page.page.click("#canvas [data-file=webcam]")
    page.page.wait_for_function("document.querySelector('#canvas .camera').videoWidth > 0")
    page.answered(lambda: page.page.click("#canvas .camera"))
    assert "webcam.jpg" in page.page.inner_text("#canvas .status")


def test_no_file_of_the_server_can_be_fetched(page: Page, address: str, photo: Path) -> None:
    page.open(photo)
    for path in ("/etc/passwd", str(Path(__file__).resolve()), str(default_checkpoint().resolve()), str(photo)):
        for route in ("gradio_api/file=", "file="):
            assert page.context.request.get(f"{address}{route}{path}").status in (403, 404), path


def test_a_click_is_quick(page: Page, photo: Path, capsys: pytest.CaptureFixture) -> None:
    page.open(photo)
    for index in range(12):
        page.click(150 + 8 * index, 120 + 5 * index)
    times = [float(value) for value in page.data("latencies").split()]
    with capsys.disabled():
        print(f"\nclick to new mask on the page: median {statistics.median(times):.0f} ms of {len(times)} clicks "
              f"(slowest {max(times):.0f})")  # fmt: skip
    assert len(times) == 12


@pytest.mark.skipif(not example_photos(), reason="the photographs come with scikit-image")
def test_how_it_looks(browser, address: str, tmp_path: Path) -> None:
    for name, width, dark in (
        ("empty", 1400, False),
        ("objects", 1400, False),
        ("tokens", 1400, True),
        ("narrow", 800, False),
    ):
        user = Page(browser, address, width, dark)
        if name != "empty":
            user.answered(lambda user=user: user.page.click("#canvas .examples button >> nth=0"))
            user.drag(285, 340, 505, 511)
            user.answered(lambda user=user: user.page.click("#canvas [data-do=new]"))
            user.click(189, 384)
            user.page.keyboard.press("b")
            user.click(130, 384)
        if name == "tokens":
            user.answered(lambda user=user: user.page.fill("#ratio input[type=number]", "0.25"))
            user.page.select_option("#canvas .overlay", "tokens")
            user.page.check("#canvas .compare")
            user.page.wait_for_selector("#canvas .comparison:not([hidden])")
            user.page.mouse.move(0, 0)
        screenshot(user, name, tmp_path)
        wide = user.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, f"{name} scrolls sideways at {width} px"
        user.context.close()
