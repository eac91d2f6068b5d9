"""What the demo's page exports in Chromium, where a canvas gives the pixels, and what it imports again."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import FLAGS, User, draw_disc, find_chromium, serve_page
from PIL import Image
from pycocotools.coco import COCO

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_disc(tmp_path_factory.mktemp("example") / "my disc.png")


@pytest.fixture(scope="module")
def user(example: Path) -> Iterator[User]:
    """Somebody with two objects, the first of a click, the second of the brush."""
    if (chromium := find_chromium(playwright)) is None:
        pytest.skip("needs Chromium")
    with serve_page(example) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        user = User(browser, address)
        user.open(example)
        user.click(200, 150)
        user.press("n")
        user.press("d")
        user.drag(50, 40, 120, 60)
        yield user
        user.close()
        browser.close()


def masks(user: User) -> list[np.ndarray]:
    coco = COCO()
    coco.dataset = json.loads(user.export("coco").read_text())
    coco.createIndex()
    return [coco.annToMask(each).astype(bool) for each in coco.anns.values()]


def test_masks_and_cutouts_have_the_pixels_of_the_photograph(user: User, example: Path):
    clicked, painted = masks(user)
    image = np.asarray(Image.open(example))
    assert clicked.shape == image.shape[:2] and clicked[150, 200] and painted[40, 50] and painted[60, 120]
    assert np.array_equal(np.asarray(Image.open(user.export("mask"))), painted * np.uint8(255))  # the active object
    assert np.array_equal(np.asarray(Image.open(user.export("palette"))), np.where(painted, 2, clicked))
    with zipfile.ZipFile(user.export("cutouts")) as archive:
        assert archive.namelist() == ["my disc_object 1.png", "my disc_object 2.png"]
        for name, mask in zip(archive.namelist(), (clicked, painted)):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            expected = np.dstack([image, np.full(mask.shape, 255, np.uint8)])[part] * mask[part][..., None]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(archive.read(name)))), expected)


def test_the_other_kinds_are_written(user: User):
    assert [shape["label"] for shape in json.loads(user.export("labelme").read_text())["shapes"]] == [
        "object 1", "object 2",
    ]  # fmt: skip
    for kind, name in (("yolo", "labels/my disc.txt"), ("label_studio", "tasks.json")):
        with zipfile.ZipFile(user.export(kind)) as archive:
            assert archive.testzip() is None and name in archive.namelist()


def test_a_coco_file_brings_the_masks_back(user: User, tmp_path: Path):
    before, file = masks(user), tmp_path / "coco.json"
    file.write_bytes(user.export("coco").read_bytes())
    user.press("Shift+Backspace")
    user.find("input[accept*=json]").set_input_files(file)
    user.wait("window.app.work.scene.objects.length === 2")
    user.idle()
    assert all(map(np.array_equal, before, masks(user)))
    (tmp_path / "no.json").write_text('{"images": [], "annotations": []}')
    user.find("input[accept*=json]").set_input_files(tmp_path / "no.json")
    user.wait("find('.notice-text').innerText.includes('no.json was not imported. It has no image')")
