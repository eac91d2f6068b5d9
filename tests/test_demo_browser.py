"""The demo as it is served, in a real Chromium: `make test-browser`. Screenshots go to the folder of SCREENSHOTS."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from chromium import User, draw_disc
from pycocotools import mask as mask_utils

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.predict.samples import sample_photos

ROOT = "#sam_bigltl .sam-bigltl"
# As the command line starts it.
SERVER = """
import sys, torch
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.demo.api import Settings
from sam_bigltl.demo.app import Demo
from sam_bigltl.demo.engine import Engine
from sam_bigltl.demo.everything import find_options
from sam_bigltl.demo.examples import examples
from sam_bigltl.demo.guard import Hosts
engine = Engine(default_checkpoint(), torch.device("cpu"))
photos = examples()
options = find_options(engine.sam, (each.image for each in photos))
demo = Demo(engine, Settings(0.5, 1280, options), photos, Hosts(["127.0.0.1"]))
demo.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]))
print("ready", flush=True)
demo.blocks.block_thread()
"""


class Served:
    """The demo in a process of its own, which can be ended and started again at the same address."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = ""
        for line in self.process.stdout:
            said += line
            if line == "ready\n":
                return
        raise RuntimeError(f"the demo did not start: {said}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    own = Served()
    yield own
    own.stop()


@pytest.fixture
def user(browser, served: Served) -> Iterator[User]:
    own = User(browser, served.address, root=ROOT)
    yield own
    own.close()


def predicted(image: np.ndarray, prompt: dict, keep_ratio: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Masks and IoUs of SamPredictor for a prompt of the page."""
    predictor = SamPredictor(load_sam(default_checkpoint()))
    predictor.model.image_encoder.keep_ratio = keep_ratio
    predictor.set_image(image)
    given: dict[str, np.ndarray] = {}
    if prompt["points"]:
        given = {"point_coords": np.array(prompt["points"]), "point_labels": np.array(prompt["labels"])}
    if prompt["box"]:
        given["box"] = np.array(prompt["box"])
    masks, ious, _ = predictor.predict(**given)
    return masks, ious


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_masks_are_those_of_the_predictor(user: User, photo: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    user.click(30, 30, button="right")
    masks, ious = predicted(png(photo), user.scene["objects"][0]["prompt"])
    shown = [text.split()[-1] for text in user.find(".candidates button").all_inner_texts()]
    assert shown == [f"{value:.3f}" for value in ious]
    for index in range(3):
        user.press(str(index + 1))
        assert np.array_equal(png(user.export("mask")) > 0, masks[index]), index
    user.press("n")
    user.drag(110, 60, 290, 240)
    masks, ious = predicted(png(photo), user.scene["objects"][1]["prompt"])
    assert (png(user.export("cutout"))[..., 3] > 0).sum() == masks[ious.argmax()].sum()
    found = json.loads(user.export("coco").read_text())
    assert [entry["name"] for entry in found["categories"]] == ["object 1", "object 2"]
    rle = found["annotations"][1]["segmentation"]
    assert np.array_equal(mask_utils.decode(rle) > 0, masks[ious.argmax()])


def test_the_code_gives_the_same_mask(user: User, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user.open(photo)
    user.click(200, 150)
    user.find(".python summary").click()
    user.wait("find('.code').innerText.includes('predict(')")
    user.press("2")
    user.wait("find('.code').innerText.includes('masks[1]')")  # it never goes stale
    text = user.find(".code").inner_text()
    assert str(default_checkpoint().parent) not in text  # where the weights lie is nobody's business
    monkeypatch.chdir(photo.parent)
    names: dict = {}
    exec(text.replace('"bigltl_mini.safetensors"', repr(str(default_checkpoint()))), names)
    assert np.array_equal(names["mask"], png(user.export("mask")) > 0)


def test_a_restart_of_the_server_loses_nothing(browser, served: Served, photo: Path) -> None:
    own = User(browser, served.address, root=ROOT)
    own.open(photo)
    own.click(200, 150)
    served.stop()
    own.click(60, 60, wait=False)
    own.wait("!find('.busy-sign').hidden && find('.busy-sign').innerText.includes('does not answer')")
    own.press("n")
    own.click(330, 220, wait=False)
    served.start()
    # Gradio loads its page anew once its server is back, at any moment.
    deadline = time.time() + 60
    while time.time() < deadline:
        try:
            own.wait("root.dataset.state === 'idle' && root.dataset.photo === 'disc.png'", 20000)
            own.page.wait_for_timeout(1500)
            if own.js("root.dataset.state") == "idle" and own.find(".candidates button").first.is_enabled():
                break
        except Exception:
            continue
    assert [len(item["prompt"]["points"]) for item in own.scene["objects"]] == [2, 1]
    assert not own.find(".busy-sign").is_visible()
    own.reload()
    own.wait("root.dataset.photo === 'disc.png'")
    own.idle()
    assert [len(item["prompt"]["points"]) for item in own.scene["objects"]] == [2, 1]
    own.close()


def test_upright_originals_and_files_that_no_browser_shows(user: User, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    image = Image.open(draw_disc(tmp_path / "wide.png", 1500, 2400))
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    image.save(turned, exif=exif, quality=95)
    user.open(turned)
    user.click(750, 1200)
    assert png(user.export("mask")).shape == (2400, 1500)
    plain = tmp_path / "scan.tiff"
    image.save(plain)
    user.open(plain)
    user.wait("true")
    user.click(1200, 750)
    middle = user.colour_at(1200, 700)
    assert middle[:3] != [0, 0, 0] and png(user.export("mask")).shape == (1500, 2400)


def test_everything_mode_by_the_server(user: User) -> None:
    user.find(".example").nth(1).click()
    user.wait("root.dataset.photo !== ''")
    user.idle()
    user.find("summary >> text=Everything").click()
    user.find(".start").click()
    user.wait("/found so far/.test(find('.found').innerText)")
    user.find("aside .stop").first.click()
    user.wait("find('.notice').innerText.includes('was stopped')")
    user.find(".start").click()
    user.wait("/^[1-9]\\d* regions?$/.test(find('.found').innerText)", 90000)


@pytest.mark.parametrize("index", [0, 2])
def test_everything_mode_finds_something_on_the_other_examples(user: User, index: int) -> None:
    """With the thresholds that the shipped weights give; SAM's own found nothing on any of the three."""
    user.find(".example").nth(index).click()
    user.wait("root.dataset.photo !== ''")
    user.idle()
    user.find("summary >> text=Everything").click()
    user.find(".start").click()
    user.wait("/^[1-9]\\d* regions?$/.test(find('.found').innerText)", 90000)


def test_two_users_do_not_see_each_other(browser, served: Served, photo: Path) -> None:
    users = [User(browser, served.address, root=ROOT) for _ in range(2)]
    for own in users:
        own.open(photo)
    for step in range(3):
        users[0].click(200 + 20 * step, 150, wait=False)
        users[1].click(30 + 20 * step, 40, wait=False)
    for own, x in zip(users, (200, 30)):
        own.idle()
        found = json.loads(own.export("coco").read_text())["annotations"]
        assert len(found) == 1
        points = [point[0] for point in own.scene["objects"][0]["prompt"]["points"]]
        assert np.allclose(points, [x, x + 20, x + 40], atol=1.5)
        own.close()


def test_keep_ratio_encodes_again_and_the_cost_is_told(user: User, photo: Path) -> None:
    user.open(photo)
    user.click(200, 150)
    ratio = user.find("[aria-label=keep_ratio]")
    ratio.fill("0.25")
    ratio.dispatch_event("change")
    user.idle()
    text = user.find(".panel >> text=GMACs").first.inner_text()
    spent, dense = map(float, re.search(r"([\d.]+) of ([\d.]+) GMACs", text).groups())
    assert 0 < spent < dense
    masks, ious = predicted(png(photo), user.scene["objects"][0]["prompt"], 0.25)
    assert np.array_equal(png(user.export("mask")) > 0, masks[ious.argmax()])
    ratio.fill("0.5")
    ratio.dispatch_event("change")
    user.idle()
    assert "kept from before" in user.find(".spent").first.inner_text()


def test_no_file_of_the_server_can_be_fetched(user: User, served: Served, photo: Path) -> None:
    user.open(photo)
    for path in ("/etc/passwd", str(Path(__file__).resolve()), str(default_checkpoint().resolve()), str(photo)):
        for route in ("gradio_api/file=", "file=", "sam_bigltl/page/"):
            assert user.context.request.get(f"{served.address}{route}{path}").status in (403, 404), path


def test_a_click_is_quick(user: User, photo: Path, capsys: pytest.CaptureFixture) -> None:
    user.open(photo)
    for index in range(12):
        user.click(150 + 8 * index, 80 + 11 * index)
    times = [float(value) for value in user.js("root.dataset.latencies").split()]
    with capsys.disabled():
        print(f"\nclick to new mask on the page: median {statistics.median(times):.0f} ms of {len(times)} clicks "
              f"(slowest {max(times):.0f})")  # fmt: skip
    assert len(times) == 12


def test_how_often_a_preview_comes(user: User, photo: Path, capsys: pytest.CaptureFixture) -> None:
    """While the pointer moves for three seconds; a decoder that is too slow for previews shows none."""
    user.open(photo)
    user.page.mouse.move(*user.at(150, 100))
    before, began = user.js("root.app.work.hover.count"), time.monotonic()
    while (seconds := time.monotonic() - began) < 3:
        user.page.mouse.move(*user.at(150 + 30 * seconds, 100 + 20 * seconds))
    count = user.js("root.app.work.hover.count") - before
    with capsys.disabled():
        print(f"\nhover previews: {count / seconds:.1f} a second")
    assert count or not user.js("root.app.work.hover.quick")


@pytest.mark.skipif(not sample_photos(), reason="the photographs come with scikit-image")
@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [
        ("empty", (1400, 1000), False), ("objects", (1400, 1000), False), ("tokens", (1400, 1000), True),
        ("narrow", (800, 1000), False), ("phone", (390, 844), True),
    ],
)  # fmt: skip
def test_how_it_looks(browser, served: Served, tmp_path: Path, name: str, size: tuple[int, int], dark: bool) -> None:
    own = User(browser, f"{served.address}?__theme={'dark' if dark else 'light'}", size, dark, name == "phone", ROOT)
    if name != "empty":
        own.find(".example").first.click()
        own.wait("root.dataset.photo !== ''")
        own.idle()
        own.drag(285, 340, 505, 511)
        own.press("n")
        own.click(189, 384)
        own.press("b")
        own.click(130, 384)
        own.press("o")
    if name == "tokens":
        ratio = own.find("[aria-label=keep_ratio]")
        ratio.fill("0.25")
        ratio.dispatch_event("change")
        own.find("aside select").first.select_option("tokens")
        own.find("aside .check input").nth(1).check()
        own.wait("!find('.comparison').hidden && /IoU/.test(find('.comparison').innerText)")
        own.idle()
    own.js("document.activeElement.blur(), root.shadowRoot.activeElement?.blur()")
    own.page.mouse.move(0, 0)
    own.page.wait_for_timeout(300)
    shot = own.page.screenshot(full_page=name == "tokens")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    Image.open(BytesIO(shot)).convert("RGB").save(folder / f"demo_{name}.jpg", quality=80)
    assert not own.js("document.documentElement.scrollWidth > innerWidth")
    own.close()
