"""The demo's HTTP protocol: every route, what it refuses, and what the server keeps."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

pytest.importorskip("gradio")

from demo_toy import POINT, ROOT, application, client, encoded, opened, tiny_engine
from helpers import picture

from sam_bigltl import SamPredictor
from sam_bigltl.demo import page_files, photos
from sam_bigltl.demo.engine import Engine
from sam_bigltl.demo.everything import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def page(engine):
    return client(engine)


def decoded(rle: dict) -> np.ndarray:
    return mask_utils.decode({"size": [rle["height"], rle["width"]], "counts": rle["counts"]}).astype(bool)


def test_what_the_page_is_told(engine, page):
    told = page.get(ROOT + "info").json()
    assert told["model"] == "tiny" and told["routed"] and told["keep_ratio"] == 0.5 and told["min_keep_ratio"] == 0.05
    assert told["max_bytes"] == photos.MOST_BYTES and told["max_side"] == 1280 and told["local"] is False
    assert told["examples"] == [{"name": "cat", "title": "A cat", "thumbnail": "data:,"}]
    assert told["everything"] == {"points_per_side": 4, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}
    assert told["home"].startswith("https://") and "folder" not in json.dumps(told)  # no path of the server
    assert client(engine, keep_ratio=0.02).get(ROOT + "info").json()["min_keep_ratio"] == 0.02
    assert client(engine, keep_ratio="auto").get(ROOT + "info").json()["keep_ratio"] == "auto"


def test_photographs(page):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    found = page.post(
        ROOT + "photos?name=C:%5Cphotos%5Ca%20b.jpg", content=encoded(picture(), "JPEG", exif=exif)
    ).json()
    assert (
        found["name"] == "a b.jpg" and (found["width"], found["height"]) == (40, 52) and found["note"] == "40 x 52 px"
    )
    preview = page.get(f"{ROOT}photos/{found['key']}/preview")
    assert preview.headers["content-type"] == "image/jpeg"
    shown = Image.open(BytesIO(preview.content))
    assert shown.size == (40, 52) and 274 not in shown.getexif()
    again, other = opened(page, name="b.png"), opened(page, picture(seed=1))
    assert again["key"] == opened(page)["key"] != other["key"] and again["name"] == "b.png"
    example = page.post(ROOT + "examples/cat").json()
    assert example["key"] == again["key"] and example["name"] == "cat.png"
    assert page.get(ROOT + "examples/cat").content == encoded(picture())
    for name in ("dog", "..%2F..%2Fetc%2Fpasswd"):
        assert "no such example" in page.post(f"{ROOT}examples/{name}").text or name != "dog"
        assert page.get(f"{ROOT}examples/{name}").status_code in (400, 404)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"hello", "not an image"), (encoded(picture())[:900], "damaged")],
)
def test_files_that_are_no_photographs(page, content, message):
    answer = page.post(ROOT + "photos?name=x%00%0Ay.png", content=content)
    assert answer.status_code == 400 and message in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_names_that_no_file_could_hold(page):
    found = page.post(ROOT + "photos?name=%ED%A0%80%E5%9B%BE.png", content=encoded(picture()))
    assert found.status_code == 200 and found.json()["name"].endswith("图.png")
    assert opened(page, name="<img src=x onerror=alert(1)>")["name"] == "<img src=x onerror=alert(1)>"
    assert opened(page, name="")["name"] == "photo"


def test_masks_are_the_predictors(engine):
    """Of the photograph as it came, at the view's size; and one of them at the photograph's own."""
    image = picture(150, 211, seed=3)
    page = client(engine, max_side=100)
    photo = opened(page, image)
    assert photo["note"] == "211 x 150 px, shown with masks of 100 x 71"
    prompt = {"points": [[120.5, 80], [10, 10]], "labels": [1, 0], "box": [150, 30, 40, 140.25]}
    asked = {"key": photo["key"], "keep_ratio": 0.5, "prompt": prompt}
    found = page.post(ROOT + "masks", json=asked).json()
    predictor = SamPredictor(engine.sam)
    engine.sam.image_encoder.keep_ratio = 0.5
    predictor.set_image(image)
    masks, ious, low_res = predictor.predict(
        np.array([[120.5, 80], [10, 10]]), np.array([1, 0]), np.array([40, 30, 150, 140.25])
    )
    assert found["ious"] == ious.tolist() and found["milliseconds"] > 0
    view = engine.sam.postprocess_masks(torch.from_numpy(low_res)[None], predictor.input_size, (71, 100))[0] > 0
    assert masks.any() and not masks.all()
    for rle, mask in zip(found["masks"], view.numpy()):
        assert np.array_equal(decoded(rle), mask)
    for choice in range(3):
        full = page.post(ROOT + "full_mask", json={**asked, "choice": choice}).json()
        assert full["iou"] == ious[choice] and np.array_equal(decoded(full["mask"]), masks[choice])


def test_what_the_encoder_spent(engine, page):
    key = opened(page, picture(seed=4))["key"]
    half = page.post(ROOT + "encode", json={"key": key, "keep_ratio": 0.5}).json()
    assert half["cached"] is False and half["keep_ratio"] == 0.5 and half["milliseconds"] > 0
    assert half["gmacs"] <= half["dense_gmacs"] and len(half["stages"]) == 2
    assert [stage["share"] for stage in half["stages"]] == [0.5, 0.5]
    assert all(stage["tokens"].startswith("data:image/png;base64,") for stage in half["stages"])
    again = page.post(ROOT + "encode", json={"key": key, "keep_ratio": 0.5}).json()
    assert again == half | {"cached": True}
    assert page.post(ROOT + "encode", json={"key": key, "keep_ratio": 1}).json()["stages"][0]["heat"] is None
    assert page.post(ROOT + "encode", json={"key": key, "keep_ratio": "auto"}).json()["keep_ratio"] == "auto"


def asked_everything(key: str, **changes) -> dict:
    options = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    return {"key": key, "keep_ratio": 0.5, **options, **changes}


def test_everything_counts_as_it_goes(engine):
    page = client(engine, max_side=100)
    key = opened(page, picture(120, 200))["key"]
    answer = page.post(ROOT + "everything", json=asked_everything(key))
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    *steps, last = map(json.loads, answer.text.splitlines())
    shares, counts = [step["done"] for step in steps], [step["found"] for step in steps]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) == 4
    assert counts == sorted(counts) and counts[-1] >= len(last["regions"]) > 0
    areas = [decoded(region["mask"]).sum() for region in last["regions"]]
    assert areas == sorted(areas, reverse=True)
    for region in last["regions"]:
        assert (region["mask"]["width"], region["mask"]["height"]) == (100, 60)
        prompt = {"points": [region["point"]], "labels": [1], "box": None}
        masks = page.post(ROOT + "masks", json={"key": key, "keep_ratio": 0.5, "prompt": prompt}).json()
        # The same mask can be had of its point, and so at the photograph's own size.
        assert masks["ious"][region["choice"]] == pytest.approx(region["iou"], abs=1e-5)
    nothing = page.post(ROOT + "everything", json=asked_everything(key, pred_iou_thresh=1.0)).text.splitlines()
    assert json.loads(nothing[-1]) == {"regions": []} and json.loads(nothing[-2])["found"] == 0


async def ask_and_leave(app, body: bytes, stuck: bool) -> list[bytes]:
    """The lines of everything mode until the page leaves; `stuck`: while the server is sending."""
    lines: list[bytes] = []
    left = asyncio.Event()
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        lines.append(message.get("body", b""))
        if len(lines) > 3:
            left.set()
            if stuck:
                await asyncio.Event().wait()

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": ROOT + "everything", "raw_path": b"", "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"testserver")], "client": ("1.2.3.4", 5), "server": ("testserver", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return lines


@pytest.mark.parametrize("stuck", [False, True])
def test_everything_stops_when_the_page_has_gone(engine, monkeypatch, stuck):
    app, page = application(engine), client(engine)
    body = json.dumps(asked_everything(opened(page)["key"], points_per_side=64)).encode()
    ended = threading.Semaphore(0)
    real = engine.everything

    def watched(*arguments):
        try:
            return real(*arguments)
        except Stopped:
            ended.release()
            raise

    monkeypatch.setattr(engine, "everything", watched)

    async def three() -> None:
        for _ in range(3):  # more than run at a time: those that ended are not counted for ever
            lines = await asyncio.wait_for(ask_and_leave(app, body, stuck), 60)
            assert not any(b"regions" in line for line in lines)

    asyncio.run(three())
    assert all(ended.acquire(timeout=60) for _ in range(3))


def test_a_defect_is_one_line(engine, page, monkeypatch):
    key = opened(page)["key"]
    monkeypatch.setattr(engine, "everything", lambda *_: 1 / 0)
    monkeypatch.setattr(engine, "masks", lambda *_: 1 / 0)
    last = page.post(ROOT + "everything", json=asked_everything(key)).text.splitlines()[-1]
    answer = page.post(ROOT + "masks", json={"key": key, "keep_ratio": 0.5, "prompt": POINT})
    assert answer.status_code == 500 and answer.json() == json.loads(last) and "defect" in last


def test_a_photograph_that_went_is_asked_for_again(page):
    asked = {"key": "0" * 64, "keep_ratio": 0.5, "prompt": POINT, "choice": 0}
    for route in ("encode", "masks", "full_mask", "everything"):
        answer = page.post(ROOT + route, json={**asked_everything("0" * 64), **asked})
        assert answer.status_code == 410 and "open it again" in answer.json()["error"]
    assert page.get(f"{ROOT}photos/{'0' * 64}/preview").status_code == 410


def test_a_restart_loses_nothing_that_the_page_sends_again():
    prompt = {"keep_ratio": 0.5, "prompt": POINT}
    before, after = client(tiny_engine()), client(tiny_engine())
    key = opened(before)["key"]
    first = before.post(ROOT + "masks", json={"key": key, **prompt}).json()
    assert after.post(ROOT + "masks", json={"key": key, **prompt}).status_code == 410
    assert opened(after)["key"] == key
    again = after.post(ROOT + "masks", json={"key": key, **prompt}).json()
    assert again["masks"] == first["masks"] and again["ious"] == first["ious"]


def held_arrays(engine: Engine) -> int:
    """Bytes of all arrays and tensors that the store leads to, and of the files in it."""
    seen: dict[int, int] = {}
    todo = [value for value, _ in engine.store._values.values()]
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, np.ndarray):
            seen[id(value)] = value.nbytes
        elif isinstance(value, (bytes, str)):
            seen[id(value)] = len(value)
        else:
            todo += [each for each in gc.get_referents(value) if not isinstance(each, (type, type(gc)))]
    return sum(seen.values())


def test_many_users_with_many_clicks_stay_under_the_budget():
    """Sessions kept 40 decoded prompts each, three masks of a byte a pixel: 260 MB a user."""
    engine = tiny_engine(memory=400_000)
    page = client(engine)
    most = 0
    for user in range(30):
        key = opened(page, picture(100, 150, seed=user))["key"]
        for click in range(40):
            prompt = {"points": [[click, 20 + click]], "labels": [1], "box": None}
            answer = page.post(ROOT + "masks", json={"key": key, "keep_ratio": 0.5, "prompt": prompt})
            assert answer.status_code == 200
        most = max(most, held_arrays(engine))
        assert abs(held_arrays(engine) - engine.store.held) < 2000  # what it counts is what there is
    assert 200_000 < most <= 401_000
    assert {name for name in vars(engine) if isinstance(vars(engine)[name], (list, dict))} == {"_macs"}


def test_files_of_the_page(page, tmp_path, monkeypatch):
    (tmp_path / "formats").mkdir()
    (tmp_path / "app.js").write_text("export const a = 1;\n")
    (tmp_path / "formats" / "rle.js").write_text("export const b = 2;\n")
    monkeypatch.setattr(page_files, "FOLDER", tmp_path)
    asking = client(tiny_engine())
    for name in ("app.js", "formats/rle.js"):
        found = asking.get(f"{ROOT}page/{name}")
        assert found.status_code == 200 and found.headers["content-type"].startswith("text/javascript")
        assert found.headers["cache-control"] == "no-cache" and found.text.startswith("export")
    for name in ("", "none.js", "../api.py", "%2e%2e/api.py", "..%2Fapi.py", "/etc/passwd"):
        assert asking.get(f"{ROOT}page/{name}").status_code == 404


def test_what_is_not_there(page):
    for answer in (page.get(ROOT + "none"), page.get(ROOT + "masks"), page.put(ROOT + "photos"), page.get(ROOT)):
        assert answer.status_code == 404 and answer.json()["error"]
