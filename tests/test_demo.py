"""The demo without a browser: scenes, their history, photographs, sessions, the engine, downloads, the command line."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

pytest.importorskip("gradio")

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.cli import demo as demo_cli
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.demo import app as demo_app
from sam_bigltl.demo.engine import Engine, Stopped
from sam_bigltl.demo.photos import make_photo, open_photo
from sam_bigltl.demo.pictures import stage_pictures
from sam_bigltl.demo.scene import History, Scene, act
from sam_bigltl.demo.session import Session
from sam_bigltl.errors import InputError
from sam_bigltl.predict.segment import Prompt

SIZE = (60, 80)


def picture(seed: int = 0, shape: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A dark disc on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = rng.integers(120, 200, (*shape, 3)).astype(np.uint8)
    image[(rows - 45) ** 2 + (columns - 60) ** 2 < 25**2] = (30, 40, 90)
    return image


def encoded(image: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def huge(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    header = b"IHDR" + struct.pack(">II", side, side) + b"\x08\0\0\0\0"
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(picture())[33:]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(default_checkpoint(), torch.device("cpu"), kept=3)


@pytest.fixture
def session(engine: Engine) -> Session:
    own = Session(engine, 0.5)
    own.open(make_photo(picture(), "disc.png", 1280))
    return own


def content(file: dict[str, str]) -> bytes:
    import base64

    return base64.b64decode(file["url"].partition(",")[2])


def test_scenes_and_their_history() -> None:
    history = History()
    for action in (
        {"kind": "point", "x": 10, "y": 20.123, "label": 1}, {"kind": "point", "x": -5, "y": 1e9, "label": 0},
        {"kind": "new"}, {"kind": "box", "x0": 30, "y0": 40, "x1": 3, "y1": 4}, {"kind": "choose", "index": 2},
        {"kind": "rename", "index": 1, "name": "  red \n car "},
    ):  # fmt: skip
        history = act(history, action, SIZE)
    first, second = history.present.items
    assert first.prompt == Prompt(points=((10.0, 20.12), (0.0, 60.0)), labels=(1, 0))  # clamped to the photograph
    assert second.prompt.box == (3.0, 4.0, 30.0, 40.0) and second.choice == 2 and second.name == "red car"
    assert history.present.active == 1 and first.colour != second.colour
    scenes = [history.present]
    while history.past:
        history = act(history, {"kind": "undo"}, SIZE)
        scenes.append(history.present)
    assert scenes[-1] == Scene() and len(scenes) == 7
    for scene in reversed(scenes[:-1]):
        history = act(history, {"kind": "redo"}, SIZE)
        assert history.present == scene
    assert act(history, {"kind": "redo"}, SIZE) is history
    undone = act(history, {"kind": "undo"}, SIZE)
    assert act(undone, {"kind": "clear"}, SIZE).future == ()  # what was undone is gone after something new
    gone = act(history, {"kind": "remove", "index": 0}, SIZE).present
    assert [item.name for item in gone.items] == ["red car"] and gone.active == 0
    empty = act(History(gone), {"kind": "remove", "index": 0}, SIZE).present
    assert empty.items[0].is_empty and empty.items[0].name == "object 3"
    half = act(
        history, {"kind": "rename", "index": 0, "name": "a \ud800"}, SIZE
    ).present  # which no download could hold
    assert half.items[0].name == "a \\ud800"
    looked = act(history, {"kind": "select", "index": 0}, SIZE)
    assert looked.present.active == 0 and looked.past == history.past
    assert act(History(), {"kind": "new"}, SIZE).present == Scene()  # the empty one is new enough


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({}, "something unknown"),
        ({"kind": "format the disk"}, "something unknown"),
        ({"kind": "point", "x": 1, "y": 2}, "wrong label"),
        ({"kind": "point", "x": 1, "y": 2, "label": True}, "wrong label"),
        ({"kind": "point", "x": "1", "y": 2, "label": 1}, "wrong x"),
        ({"kind": "point", "x": 1, "y": float("nan"), "label": 1}, "wrong y"),
        ({"kind": "box", "x0": 1, "y0": 2, "x1": 1.5, "y1": 9}, "no area"),
        ({"kind": "choose", "index": 1}, "no mask to choose"),
        ({"kind": "remove", "index": 1}, "wrong index"),
        ({"kind": "select", "index": -1}, "wrong index"),
        ({"kind": "rename", "index": 0, "name": " "}, "at least one letter"),
    ],
)
def test_what_a_page_must_not_send(action: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        act(History(), action, SIZE)
    assert "\n" not in str(error.value)


def test_points_and_objects_are_bounded() -> None:
    history = History()
    with pytest.raises(InputError, match="64 points at most"):
        for _ in range(65):
            history = act(history, {"kind": "point", "x": 1, "y": 1, "label": 1}, SIZE)
    assert len(history.present.current.prompt.points) == 64
    with pytest.raises(InputError, match="64 objects already"):
        for _ in range(65):
            history = act(
                act(history, {"kind": "new"}, SIZE), {"kind": "box", "x0": 0, "y0": 0, "x1": 9, "y1": 9}, SIZE
            )


def test_photographs() -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    turned = open_photo(encoded(picture(), "JPEG", exif=exif), "C:\\photos\\a.jpg", 1280)
    assert turned.image.shape == (120, 90, 3) and turned.file_name == "a.jpg" and turned.note == "90 x 120 px"
    small = open_photo(encoded(picture()), "/etc/b.png", 60)
    assert small.image.shape == (45, 60, 3) and small.original == (90, 120) and small.file_name == "b.png"
    assert small.note == "120 x 90 px, reduced to 60 x 45"
    assert open_photo(encoded(picture()), "caf\udce9 \u56fe.png", 60).file_name == "caf\\udce9 \u56fe.png"
    again = open_photo(encoded(picture()), "c.png", 60)
    assert again.key == small.key != open_photo(encoded(picture(1)), "c.png", 60).key
    for data, message in (
        (b"", "is empty"), (b"hello", "not an image"), (encoded(picture())[:2000], "damaged"),
        (huge(9000), "megapixels"), (huge(40000), "megapixels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            open_photo(data, "x.png", 1280)
        assert "\n" not in str(error.value)


def test_masks_are_the_predictors(session: Session) -> None:
    session.act({"kind": "point", "x": 60, "y": 45, "label": 1})
    session.act({"kind": "point", "x": 5, "y": 5, "label": 0})
    scene = session.scene()
    predictor = SamPredictor(load_sam(default_checkpoint()))
    predictor.model.image_encoder.keep_ratio = 0.5
    predictor.set_image(picture())
    masks, ious, _ = predictor.predict(np.array([[60, 45], [5, 5]]), np.array([1, 0]))
    entry = scene["items"][0]
    assert entry["chosen"] == ious.argmax() and entry["ious"] == [round(float(value), 6) for value in ious]
    for url, mask in zip(entry["masks"], masks):
        shown = np.asarray(Image.open(BytesIO(content({"url": url}))).convert("RGBA"))
        assert np.array_equal(shown[..., 3] > 0, mask)
    session.act({"kind": "choose", "index": 0})
    png = content(session.download("mask"))
    assert np.array_equal(np.asarray(Image.open(BytesIO(png))) > 0, masks[0])
    cut = np.asarray(Image.open(BytesIO(content(session.download("cutout")))))
    rows, columns = np.nonzero(masks[0])
    expected = picture()[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert cut.shape == (*expected.shape[:2], 4) and np.array_equal(cut[..., :3], expected)
    assert (cut[..., 3] > 0).sum() == masks[0].sum()


def test_coco_json_and_python(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.act({"kind": "box", "x0": 30, "y0": 15, "x1": 90, "y1": 75})
    session.act({"kind": "rename", "index": 0, "name": "disc"})
    session.act({"kind": "new"})
    session.act({"kind": "point", "x": 5, "y": 5, "label": 1})
    file = session.download("coco")
    assert file["name"] == "disc_coco.json"
    found = json.loads(content(file))
    assert found["images"] == [{"id": 1, "file_name": "disc.png", "width": 120, "height": 90}]
    assert [entry["name"] for entry in found["categories"]] == ["disc", "object 2"]
    one, other = found["annotations"]
    assert one["prompt"] == {"box": [30, 15, 90, 75]} and other["prompt"]["point_coords"] == [[5, 5]]
    mask = mask_utils.decode(one["segmentation"])
    assert mask.shape == (90, 120) and mask.sum() == one["area"] > 0
    session.act({"kind": "select", "index": 0})
    text = session.download("python")["text"]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("disc.png")
    names: dict = {}
    exec(text, names)
    assert np.array_equal(names["mask"], mask.astype(bool))


def test_code_of_a_reduced_photograph(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("disc.png")
    own = Session(engine, "auto")
    own.open(open_photo(Path("disc.png").read_bytes(), "disc.png", 64))
    own.act({"kind": "point", "x": 32, "y": 24, "label": 1})
    names: dict = {}
    exec(own.download("python")["text"], names)
    assert names["mask"].shape == (48, 64) and names["sam"].image_encoder.keep_ratio == "auto"
    png = np.asarray(Image.open(BytesIO(content(own.download("mask")))))
    assert np.array_equal(names["mask"], png > 0)


def test_what_the_page_shows_of_the_encoder(session: Session) -> None:
    half = session.tokens()
    assert half["keep_ratio"] == 0.5 and half["ms"] > 0 and half["gmacs"] < half["dense_gmacs"]
    assert [stage["share"] for stage in half["stages"]] == [0.5] * len(half["stages"]) and len(half["stages"]) > 1
    route = session.encoded.route
    little = np.asarray(Image.open(BytesIO(content({"url": half["stages"][0]["tokens"]}))).convert("RGBA"))[..., 3] > 0
    assert little.shape == route.grid
    assert sorted(np.flatnonzero(~little.ravel())) == route.groups[0].indices[0].tolist()
    session.set_ratio(1.0)
    full = session.tokens()
    assert full["gmacs"] == full["dense_gmacs"] == half["dense_gmacs"] and full["stages"][0]["heat"] is None
    session.set_ratio("auto")
    assert all(0 < stage["share"] <= 1 for stage in session.tokens()["stages"])
    assert stage_pictures(None) == []


def test_beside_the_dense_model(session: Session) -> None:
    session.act({"kind": "point", "x": 60, "y": 45, "label": 1})
    session.act({"kind": "new"})
    found = session.dense()
    assert [entry["name"] for entry in found["masks"]] == ["object 1"] and 0 < found["masks"][0]["iou"] <= 1
    session.set_ratio(1.0)
    assert session.dense()["masks"][0]["iou"] == 1.0


def test_nothing_to_show_or_take(engine: Engine, session: Session) -> None:
    empty = Session(engine, 0.5)
    for call, message in (
        (empty.picture, "no photograph"), (lambda: empty.act({"kind": "undo"}), "no photograph"),
        (lambda: empty.download("mask"), "no photograph"), (lambda: session.download("mask"), "no mask yet"),
        (lambda: session.download("coco"), "nothing to download"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            call()
    assert empty.regions_picture() == {"count": 0, "url": None} and empty.scene()["items"][0]["points"] == []


def test_sessions_share_the_model_and_nothing_else(session: Session) -> None:
    session.act({"kind": "point", "x": 60, "y": 45, "label": 1})
    other = copy.deepcopy(session)  # what Gradio does for every user
    assert other.engine is session.engine and other.photo is None and other.history == History()
    assert other.lock is not session.lock


def test_embeddings_are_kept_and_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = engine.sam.image_encoder.forward
    monkeypatch.setattr(engine.sam.image_encoder, "forward", lambda x: calls.append(1) or forward(x))
    first = engine.encode("a", picture(), 0.5)
    assert engine.encode("a", picture(), 0.5) is first and len(calls) == 1
    for name in "bcd":
        engine.encode(name, picture(), 0.5)
    assert len(engine._embeddings) == 3
    engine.encode("a", picture(), 0.5)
    assert len(calls) == 5  # the oldest had gone


def test_users_at_once_get_what_they_asked_for(engine: Engine) -> None:
    ratios = (0.25, 0.5, 1.0, 0.75)
    expected = {}
    for index, ratio in enumerate(ratios):
        encoded = engine.encode(f"alone {index}", picture(index), ratio)
        expected[index] = engine.masks(encoded, Prompt(points=((60, 45),), labels=(1,))).masks
    found: dict[int, np.ndarray] = {}

    def user(index: int) -> None:
        encoded = engine.encode(f"together {index}", picture(index), ratios[index])
        found[index] = engine.masks(encoded, Prompt(points=((60, 45),), labels=(1,))).masks

    threads = [threading.Thread(target=user, args=(index,)) for index in range(len(ratios))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, masks in expected.items():
        assert np.array_equal(found[index], masks)


def test_everything_and_its_end(session: Session) -> None:
    options = dict(points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    shares = [share for share, _ in demo_app._in_background(session, options)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) >= 3
    assert session.regions and session.regions_picture()["count"] == len(session.regions)
    coco = json.loads(content(session.download("coco")))
    assert {entry["name"] for entry in coco["categories"]} == {"region"}
    assert len(coco["annotations"]) == len(session.regions)
    session.act({"kind": "clear"})
    assert session.regions == []
    stopped = []
    for share, _ in demo_app._in_background(session, options):
        stopped.append(share)
        session.stop.set()
    assert stopped[-1] == 0.0 and session.regions == []
    with pytest.raises(Stopped):
        event = threading.Event()
        event.set()
        session.engine.everything(picture(), session.encoded, options, print, event)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no photograph"), ({"data": 5}, "no photograph"), ({"data": "data:,%%%"}, "damaged photograph"),
        ({"example": "../../etc/passwd"}, "no such example"),
        ({"data": "data:image/png;base64,aGVsbG8="}, "not an image"), ({"path": "/etc/passwd"}, "no photograph"),
    ],
)  # fmt: skip
def test_photographs_that_a_page_must_not_send(data, message: str) -> None:
    with pytest.raises(InputError, match=message):
        demo_app._photo(data, {"cat": picture()}, 1280)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-ratio", "2"], "keep"), (["--keep-ratio", "1,0.5,0.5,0.5"], "one --keep-ratio"),
        (["--port", "0"], "no port"), (["--auth", "ann"], "NAME:PASSWORD"), (["--cache", "0"], "at least 1"),
        (["--checkpoint", "none.pth"], "none.pth"), (["--host", "256.0.0.1"], "cannot listen"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        demo_cli.main(options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and len(error.strip().splitlines()) == 1, error


def test_the_script_says_what_is_wrong() -> None:
    script = Path(__file__).parents[1] / "demo" / "app.py"
    done = subprocess.run([sys.executable, script, "--dtype", "float16"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "float16" in done.stderr and len(done.stderr.strip().splitlines()) == 1
