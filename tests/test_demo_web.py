"""The page without a server, built by `make demo-web`, in Chromium: `make test-browser`."""

# ruff: noqa: E402 - what needs an optional package is imported after the check for it
from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: make test-browser installs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")

from sam_bigltl import SamAutomaticMaskGenerator, load_sam
from sam_bigltl.convert.export import export_onnx
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.data.images import decode_image
from sam_bigltl.predict.onnx_predictor import OnnxSamPredictor
from sam_bigltl.predict.samples import sample_photos

WEB = Path(__file__).resolve().parents[1] / "demo" / "web"
from serve import Handler, open_server

DIST = WEB / "dist"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,  # `make test-browser` runs it
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: make test-browser installs it"),
    pytest.mark.skipif(not (DIST / "sw.js").is_file(), reason="the page is not built: make demo-web"),
]
PATIENCE = 240_000  # milliseconds: a loaded machine is no fault
KEEP_RATIOS = (0.25, 0.5, 1.0)
CALL = """async ([name, args]) => {
    try { return { value: await document.getElementById('app').backend[name](...args) }; }
    catch (error) { return { error: error.message }; }
}"""
OPEN = """async ([content, name]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    try { return { value: await document.getElementById('app').backend.open(new Blob([bytes]), name) }; }
    catch (error) { return { error: error.message }; }
}"""


class Site:
    """The built page in a sub-folder of a host that sends no headers of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "some").mkdir()
        shutil.copytree(DIST, folder / "some" / "folder")
        (folder / "index.html").touch()
        self.folder = folder
        self.requests: list[str] = []
        self.start()

    def start(self, port: int | None = None) -> None:
        self.server = open_server(self.folder, port)
        requests = self.requests

        class Noting(Handler):
            def log_message(self, format: str, *args: object) -> None:
                requests.append(str(args[0]))

        self.server.RequestHandlerClass = partial(Noting, directory=str(self.folder))
        self.port = self.server.server_port
        self.address = f"http://127.0.0.1:{self.port}/some/folder/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    own = Site(tmp_path_factory.mktemp("site"))
    yield own
    own.stop()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(PATIENCE)
        yield context
        browser.close()


def visit(context, site: Site):
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(site.address)
    page.wait_for_function("document.getElementById('said')?.textContent.includes('offline')")
    return page


@pytest.fixture(scope="module")
def page(context, site: Site) -> Iterator:
    page = visit(context, site)
    yield page
    assert not page.errors


def pixels(rle: dict) -> np.ndarray:
    return coco_mask.decode({"size": [rle["height"], rle["width"]], "counts": rle["counts"].encode()}).astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def call(page, name: str, *arguments: object):
    """What the page's backend answers."""
    answer = page.evaluate(CALL, [name, arguments])
    assert "error" not in answer, answer["error"]
    return answer["value"]


def opening(page, content: bytes, name: str) -> dict:
    return page.evaluate(OPEN, [base64.b64encode(content).decode(), name])


def encoded(image: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def as_prompt(prompt) -> dict:
    return {"points": prompt.points, "labels": prompt.labels, "box": prompt.box}


@pytest.fixture(scope="module", params=KEEP_RATIOS)
def reference(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, OnnxSamPredictor]:
    """The predictor in Python, with float32 weights."""
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(load_sam(default_checkpoint()), folder, request.param)
    return request.param, OnnxSamPredictor(folder)


def test_masks_are_those_of_the_predictor_in_python(page, reference) -> None:
    ratio, predictor = reference
    for photo in sample_photos():
        key = call(page, "openExample", photo.name)["photo"]["key"]
        predictor.set_image(photo.image)
        for name, prompt in photo.objects.items():
            answer = call(page, "masks", key, ratio, as_prompt(prompt))
            masks, ious, _ = predictor.predict(**prompt.arguments())
            overlaps = [iou(pixels(rle), mask) for rle, mask in zip(answer["masks"], masks)]
            print(photo.name, name, ratio, [round(value, 4) for value in overlaps])
            assert min(overlaps) >= 0.99
            assert np.abs(np.array(answer["ious"]) - ious).max() < 0.01


def test_a_small_view_and_the_full_size(page, reference) -> None:
    """A photograph that the page shows reduced: masks of its size, and of the original's."""
    ratio, predictor = reference
    photo = sample_photos()[2]
    image = np.asarray(Image.fromarray(photo.image).resize((2706, 1800)))
    opened = opening(page, encoded(image), "large.png")["value"]
    assert (opened["width"], opened["height"]) == (2706, 1800)
    prompt = {"points": [[1500, 900]], "labels": [1], "box": None}
    shown = call(page, "masks", opened["key"], ratio, prompt)
    assert (shown["masks"][0]["width"], shown["masks"][0]["height"]) == (1280, 851)
    predictor.set_image(image)
    masks, _, _ = predictor.predict(np.array(prompt["points"]), np.array(prompt["labels"]))
    for choice, mask in enumerate(masks):
        full = call(page, "fullMask", opened["key"], ratio, prompt, choice)["mask"]
        assert iou(pixels(full), mask) >= 0.99


def test_a_jpeg_is_upright_as_the_camera_says(page, reference) -> None:
    ratio, predictor = reference
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(sample_photos()[1].image, "JPEG", quality=90, exif=exif)
    opened = opening(page, content, "turned.jpg")["value"]
    assert (opened["width"], opened["height"]) == (400, 600)
    predictor.set_image(decode_image(content, "turned.jpg"))
    answer = call(
        page, "masks", opened["key"], ratio, {"points": [[260, 300]], "labels": [1], "box": [155, 168, 385, 425]}
    )
    masks, _, _ = predictor.predict(np.array([[260, 300]]), np.array([1]), np.array([155, 168, 385, 425]))
    overlaps = [iou(pixels(rle), mask) for rle, mask in zip(answer["masks"], masks)]
    print("turned JPEG", ratio, [round(value, 4) for value in overlaps])
    assert min(overlaps) >= 0.99  # though another decoder has rounded


@pytest.mark.parametrize(("content", "name", "said"), [
    (b"", "a.jpg", "a.jpg is empty (0 bytes)"),
    (b"no image", "a.heic", "a.heic is not an image that this browser can read: HEIC: export it as JPEG"),
    (encoded(np.zeros((4, 4, 3), np.uint8))[:-30], "a.txt", "a.txt is not an image that this browser can read"),
])  # fmt: skip
def test_what_is_no_photograph_is_said_in_one_line(page, content: bytes, name: str, said: str) -> None:
    answer = opening(page, content, name)
    assert said in answer["error"] and "\n" not in answer["error"]


def test_an_unknown_photograph_is_gone(page) -> None:
    gone = page.evaluate(
        "() => document.getElementById('app').backend.encode('nothing', 0.5).catch((error) => [error.name, error.gone])"
    )
    assert gone == ["BackendError", True]


def test_what_the_encoder_chose(page) -> None:
    key = call(page, "openExample", "coffee")["photo"]["key"]
    half, auto, dense = (call(page, "encode", key, ratio) for ratio in (0.5, "auto", 1))
    assert [stage["layers"] for stage in half["stages"]] == ["layers 1 to 2", "layers 3 to 4", "layers 5 to 6"]
    assert [stage["share"] for stage in half["stages"]] == [0.5] * 3 and half["stages"][0]["heat"]
    assert all(0.25 < stage["share"] < 1 for stage in auto["stages"])
    assert [stage["share"] for stage in dense["stages"]] == [1] * 3 and dense["stages"][0]["heat"] is None
    assert half["gmacs"] < dense["gmacs"] == dense["dense_gmacs"]
    small = Image.open(BytesIO(base64.b64decode(half["stages"][0]["tokens"].split(",")[1])))
    assert small.size == (40, 40) and np.asarray(small.convert("RGBA"))[..., 3].mean() == pytest.approx(127.5)
    assert call(page, "encode", key, 0.5)["cached"]


def test_everything_is_what_the_generator_finds(page) -> None:
    photo, sam = sample_photos()[1], load_sam(default_checkpoint())
    sam.image_encoder.keep_ratio = 0.5
    options = {"points_per_side": 6, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}
    wanted = SamAutomaticMaskGenerator(sam, **options).generate(photo.image)
    key = call(page, "openExample", photo.name)["photo"]["key"]
    found, progress = page.evaluate("""async ([key, options]) => {
        const { backend } = document.getElementById('app'), progress = [];
        const found = await backend.everything(key, 0.5, options, (each) => progress.push(each));
        return [found, progress];
    }""", [key, options])  # fmt: skip
    assert progress[-1]["done"] == 1 and progress[-1]["found"] >= len(found) and len(progress) > 1
    assert abs(len(found) - len(wanted)) <= 1 and len(wanted) > 3
    masks = [pixels(region["mask"]) for region in found]
    matched = [max(iou(record["segmentation"], mask) for mask in masks) for record in wanted]
    assert np.mean(np.array(matched) > 0.98) >= 0.9, matched


def test_everything_stops(page) -> None:
    key = call(page, "openExample", "coffee")["photo"]["key"]
    stopped = page.evaluate("""async (key) => {
        const { backend } = document.getElementById('app'), stop = new AbortController();
        const options = { points_per_side: 32, pred_iou_thresh: 0.7, stability_score_thresh: 0.8 };
        const all = backend.everything(key, 0.5, options, () => stop.abort(), stop.signal);
        const failed = await all.catch((error) => error.name);
        await backend.masks(key, 0.5, { points: [[300, 140]], labels: [1], box: null });
        return failed;
    }""", key)  # fmt: skip
    assert stopped == "AbortError"


def test_no_file_is_fetched_twice(page, site: Site) -> None:
    """Neither by the page and the service worker, nor before and after the page is isolated."""
    for name in ("weights.bin", "encoder.onnx", "ort-wasm-simd-threaded"):
        fetched = [line for line in site.requests if name in line]
        assert len(fetched) == len(set(fetched)) > 0, fetched


def test_threads_without_headers_from_the_host(page) -> None:
    assert page.evaluate("crossOriginIsolated")
    said = page.inner_text("#said")
    assert "WebAssembly, 1 thread" not in said and "photographs stay on this machine" in said


def test_a_photograph_to_its_first_mask_and_offline(context, site: Site, tmp_path: Path) -> None:
    """In a new tab while the host is gone: the page, an example, and a click."""
    visit(context, site).close()
    site.stop()
    try:
        page = visit(context, site)
        (tmp_path / "cat.png").write_bytes(encoded(sample_photos()[2].image))
        page.set_input_files("#app input[type=file]", tmp_path / "cat.png")
        page.wait_for_function("document.getElementById('app').dataset.photo === 'cat.png'")
        page.wait_for_function("document.getElementById('app').dataset.state === 'idle'")
        frame = page.locator("#app canvas.view").bounding_box()
        page.mouse.click(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
        page.wait_for_function("document.getElementById('app').dataset.latencies")
        assert not page.errors
        page.close()
    finally:
        site.start(site.port)


@pytest.mark.parametrize("name", ["wide", "phone"])
def test_axe_finds_nothing_serious_and_how_it_looks(context, site: Site, tmp_path: Path, name: str) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core here: npm ci in demo/web installs it")
    page = visit(context, site)
    page.set_viewport_size({"width": 1400, "height": 1000} if name == "wide" else {"width": 390, "height": 844})
    page.locator("#app .example").nth(1).click()
    page.wait_for_function("document.getElementById('app').dataset.photo !== ''")
    page.wait_for_function("document.getElementById('app').dataset.state === 'idle'")
    frame = page.locator("#app canvas.view").bounding_box()
    page.mouse.click(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    page.wait_for_function("document.getElementById('app').dataset.latencies")
    page.wait_for_function("document.getElementById('app').dataset.state === 'idle'")
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]])
        for each in found["violations"] if each["impact"] in ("serious", "critical")
    ]  # fmt: skip
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"demo_web_{name}.png")
    page.close()
    assert serious == []
