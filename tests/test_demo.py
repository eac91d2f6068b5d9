"""The demo's server behind its protocol: photographs, the engine and what it keeps, masks at any size, thresholds."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

pytest.importorskip("gradio")

from demo_toy import encoded
from PIL import Image

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.demo.engine import Engine
from sam_bigltl.demo.everything import Options, find_options
from sam_bigltl.demo.examples import examples
from sam_bigltl.demo.full_size import full_size_mask
from sam_bigltl.demo.photos import Photo, open_photo, preview
from sam_bigltl.demo.pictures import stage_pictures
from sam_bigltl.demo.rle import RunLengths, as_rle
from sam_bigltl.demo.store import Store
from sam_bigltl.errors import InputError
from sam_bigltl.predict.prompt import Prompt
from sam_bigltl.predict.thresholds import thresholds

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(seed: int = 0, shape: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A dark disc on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = rng.integers(120, 200, (*shape, 3)).astype(np.uint8)
    image[(rows - 45) ** 2 + (columns - 60) ** 2 < 25**2] = (30, 40, 90)
    return image


def huge(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    header = b"IHDR" + struct.pack(">II", side, side) + b"\x08\0\0\0\0"
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(picture())[33:]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(default_checkpoint(), torch.device("cpu"))


def photo(engine: Engine, image: np.ndarray, max_side: int = 1280) -> Photo:
    return open_photo(encoded(image), "disc.png", engine.transform, max_side)


def decoded(rle: dict) -> np.ndarray:
    return mask_utils.decode({"size": [rle["height"], rle["width"]], "counts": rle["counts"]}).astype(bool)


def test_photographs(engine):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    turned = open_photo(encoded(picture(), "JPEG", exif=exif), "a.jpg", engine.transform, 60)
    assert turned.size == (120, 90) and turned.view == (60, 45)
    assert max(turned.pixels.shape) == engine.sam.image_encoder.img_size  # no more of it is kept
    again, other = photo(engine, picture(), 60), photo(engine, picture(1))
    assert again.key == photo(engine, picture()).key != other.key and other.view == other.size == (90, 120)
    for content, message in (
        (b"", "is empty"), (b"hello", "not an image"), (encoded(picture())[:2000], "damaged"),
        (huge(9000), "megapixels"), (huge(40000), "megapixels"), (bytes(41 * 2**20), "40 MB at most"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            open_photo(content, "x.png", engine.transform, 1280)
        assert "\n" not in str(error.value)


def test_previews_of_panoramas():
    """JPEG ends at 65,535 pixels a side."""
    _, kind = preview(encoded(np.zeros((2, 66_000, 3), np.uint8)))
    assert kind == "image/png" and preview(encoded(picture()))[1] == "image/jpeg"


def test_masks_are_the_predictors(engine):
    predictor = SamPredictor(load_sam(default_checkpoint()))
    predictor.model.image_encoder.keep_ratio = 0.5
    predictor.set_image(picture())
    masks, ious, _ = predictor.predict(np.array([[60, 45], [5, 5]]), np.array([1, 0]))
    shown = photo(engine, picture())
    found = engine.masks(shown, engine.encode(shown, 0.5), Prompt(points=((60, 45), (5, 5)), labels=(1, 0)))
    assert found.ious == ious.tolist()
    assert all(np.array_equal(decoded(rle), mask) for rle, mask in zip(found.masks, masks))


def test_full_size_is_what_predict_gives_of_the_original(engine):
    """They left at the size of the view: 1280 x 948 of a photograph of 9000 x 6667."""
    image = picture(shape=(901, 1403))
    predictor = SamPredictor(engine.sam)
    engine.sam.image_encoder.keep_ratio = 0.5
    predictor.set_image(image)
    masks, ious, _ = predictor.predict(np.array([[60, 45]]), np.array([1]), np.array([20, 10, 100, 80.5]))
    small = photo(engine, image, max_side=200)
    prompt = Prompt((20, 10, 100, 80.5), ((60, 45),), (1,))
    assert masks.any()
    for choice in range(3):
        mask, iou = engine.full_mask(small, engine.encode(small, 0.5), prompt, choice)
        assert (mask["height"], mask["width"]) == (901, 1403) and iou == ious[choice]
        assert np.array_equal(decoded(mask), masks[choice])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5), (64, 64), (501, 333), (40, 5000)])
def test_full_size_of_any_shape(size):
    torch.manual_seed(0)
    low_res = torch.nn.functional.interpolate(torch.randn(1, 1, 5, 5), (32, 32), mode="bicubic")[0, 0]
    side, scale = 128, 128 / max(size)
    inside = tuple(max(1, int(each * scale + 0.5)) for each in size)
    frame = torch.nn.functional.interpolate(low_res[None, None], (side, side), mode="bilinear")
    whole = torch.nn.functional.interpolate(frame[..., : inside[0], : inside[1]], size, mode="bilinear")[0, 0]
    found = decoded(full_size_mask(low_res, side, inside, size))
    assert np.array_equal(found, (whole > 0).numpy())
    for empty in (
        full_size_mask(-low_res.abs(), side, inside, size),
        full_size_mask(low_res.abs() + 1, side, inside, size),
    ):
        assert decoded(empty).all() or not decoded(empty).any()


SIXTY = """
import json, resource, torch
from torch.nn import functional as F
from pycocotools import mask as mask_utils
from sam_bigltl.demo.full_size import full_size_mask
torch.manual_seed(0)
low_res = F.interpolate(torch.randn(1, 1, 9, 9), (160, 160), mode="bicubic")[0, 0]
full_size_mask(low_res, 640, (474, 640), (600, 800))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = full_size_mask(low_res, 640, (474, 640), (6667, 9000))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
frame = F.interpolate(low_res[None, None], (640, 640), mode="bilinear")[..., :474, :640]
whole = F.interpolate(frame, (6667, 9000), mode="bilinear")[0, 0] > 0
mask = torch.from_numpy(mask_utils.decode({"size": [6667, 9000], "counts": found["counts"]})) > 0
print(json.dumps({"kilobytes": after - before, "wrong": int((mask != whole).sum()), "inside": int(whole.sum())}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak in kilobytes")
def test_sixty_megapixels_in_bounded_memory():
    done = subprocess.run([sys.executable, "-c", SIXTY], capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout)
    assert found["wrong"] == 0 and found["inside"] > 10**6
    assert found["kilobytes"] < 120_000, found  # the logits of the whole are 240 MB, predict's three 720


def test_run_lengths_of_parts():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 12, 2)
        mask = rng.random((height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
        runs, pixels = RunLengths(), mask.T.ravel()
        for part in np.split(pixels, sorted(rng.integers(0, pixels.size + 1, 3))):
            if part.size and not part.any():
                runs.add_zeros(part.size)
            elif part.size:
                runs.add(part)
        assert runs.rle(int(height), int(width)) == as_rle(mask)


def test_the_store_lets_the_oldest_go():
    store = Store(100)
    for name in "abc":
        store.put(name, name, 30)
    assert store.get("a") == "a" and store.held == 90
    store.put("d", "d", 30)
    assert store.get("b") is None and store.get("a") == "a" and store.held == 90
    store.put("a", "A", 10)
    assert store.held == 70 and store.get("a") == "A"
    store.put("large", "large", 500)  # what was just asked for is there, whatever it takes
    assert store.get("large") == "large" and len(store) == 1 and store.held == 500


def test_an_embedding_is_computed_once_and_while_it_is_kept(engine, monkeypatch):
    calls = []
    forward = engine.sam.image_encoder.forward
    monkeypatch.setattr(engine.sam.image_encoder, "forward", lambda x: calls.append(1) or forward(x))
    first = photo(engine, picture(10))
    found = engine.encode(first, 0.5)
    monkeypatch.setattr(engine, "store", Store(2 * found.bytes + 100))
    threads = [threading.Thread(target=engine.encode, args=(first, 0.5)) for _ in range(4)]
    calls.clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and engine.kept(first, 0.5) is engine.encode(first, 0.5)
    for seed in (11, 12):
        engine.encode(photo(engine, picture(seed)), 0.5)
    assert engine.kept(first, 0.5) is None and engine.store.held <= engine.store.budget


def test_users_at_once_get_what_they_asked_for(engine):
    ratios = (0.25, 0.5, 1.0, 0.75)
    prompt = Prompt(points=((60, 45),), labels=(1,))
    shown = [photo(engine, picture(seed)) for seed in range(len(ratios))]
    expected = [engine.masks(one, engine.encode(one, ratio), prompt) for one, ratio in zip(shown, ratios)]
    engine.store = Store(2**24)  # all of them encode anew
    found = {}

    def user(index: int) -> None:
        found[index] = engine.masks(shown[index], engine.encode(shown[index], ratios[index]), prompt)

    threads = [threading.Thread(target=user, args=(index,)) for index in range(len(ratios))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index].masks for index in range(len(ratios))] == [masks.masks for masks in expected]


def test_what_the_encoder_spent(engine):
    shown = photo(engine, picture())
    half, full = engine.encode(shown, 0.5), engine.encode(shown, 1.0)
    assert half.gmacs < full.gmacs == engine.dense_gmacs and len(half.stages) > 1
    assert [stage["share"] for stage in half.stages] == [0.5] * len(half.stages)
    assert full.stages[0]["heat"] is None and half.stages[0]["heat"].startswith("data:image/png;base64,")
    assert stage_pictures(None) == []


def test_everything_mode_finds_something(engine):
    """With 0.7 and 0.85 it found next to nothing on the shipped photographs, and said nothing."""
    pytest.importorskip("skimage")
    example = examples()[0]
    found = find_options(engine.sam, [example.image])
    shown = open_photo(example.content, "a.png", engine.transform, 1280)
    counts: list[int] = []
    for options in (replace(found, points_per_side=8), Options(8, 0.7, 0.85)):
        told: list[int] = []
        regions = engine.everything(
            shown, engine.encode(shown, 0.5), options, lambda _, count, told=told: told.append(count), threading.Event()
        )
        assert told == sorted(told) and told[-1] >= len(regions)
        counts.append(len(regions))
    assert counts[0] >= 5 and counts[1] <= 2


def test_the_rule_of_thresholds():
    steps = np.arange(101) / 100
    sure, unsure = (0.9 + steps / 20, 0.96 + steps / 50), (steps * 0.6, steps * 0.8)
    assert thresholds([]) == thresholds([sure]) == (0.88, 0.95)  # SAM's own are the most
    assert thresholds([unsure, sure]) == thresholds([unsure]) == (0.45, 0.7)
    assert thresholds([(np.zeros(9), np.zeros(9))]) == (0.0, 0.0)
