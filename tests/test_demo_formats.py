"""What the demo's page exports, written by node and read by what people read it with, or as its format is specified."""

from __future__ import annotations

import ast
import base64
import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

SCRIPT = Path(__file__).parent / "page" / "write_formats.mjs"
HEIGHT, WIDTH = 210, 300
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")


def masks() -> list[np.ndarray]:
    """A ring with an island in it, two parts of which one touches the border, and a slanted band."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    r = np.hypot(x - 100, y - 100)
    ring = ((r < 80) & (r > 45)) | (r < 20)
    parts = (np.hypot(x - 290, y - 10) < 50) | ((abs(x - 230) < 20) & (abs(y - 150) < 30))
    band = abs(0.6 * x - 0.8 * y - 40) < 12
    return [ring, parts, band]


NAMES = ["cup", 'a "b": <c> & größe', "cup"]
PROMPT = {"points": [[100.5, 30.25], [100, 70]], "labels": [1, 0], "box": [20, 20, 180, 180]}
IMPORTED = [[10.3, 12.7, 150.2, 30.1, 120.9, 180.4, 30, 140], [200, 20, 280.5, 25.5, 240, 90.2]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder with all exports, what went in, and the names that the files would have."""
    folder = tmp_path_factory.mktemp("formats")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 3] = 255
    (folder / "pixels.raw").write_bytes(pixels.tobytes())
    for index, mask in enumerate(masks()):
        (folder / f"mask{index}.raw").write_bytes(mask.astype(np.uint8).tobytes())
    small = mask_utils.encode(np.asfortranarray((np.hypot(*(np.mgrid[:70, :100] - 30)) < 20).astype(np.uint8)))
    scene = {
        "photo": {"key": "k", "name": "my dog.jpg", "width": WIDTH, "height": HEIGHT, "note": ""}, "tolerance": 1,
        "objects": [{"name": name, "iou": 0.9, "prompt": PROMPT, "choice": 1} for name in NAMES],
        "regions": [{"mask": {"width": 100, "height": 70, "counts": small["counts"].decode()}, "iou": 0.8,
                     "stability": 0.95, "point": [90, 90]}],
        "info": {"model": "bigltl_mini", "checkpoint": "bigltl_mini.safetensors", "dtype": "float32",
                 "native": False, "routed": True, "keep_ratio": 0.5},
        "imported": {"images": [{"id": 1, "file_name": "my dog.png", "width": WIDTH, "height": HEIGHT}],
                     "annotations": [{"image_id": 1, "category_id": 1, "segmentation": IMPORTED}]},
    }  # fmt: skip
    (folder / "scene.json").write_text(json.dumps(scene))
    done = subprocess.run([NODE, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = json.loads((folder / "names.json").read_text())
    return SimpleNamespace(folder=folder, pixels=pixels, names=names)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def coco_of(folder: Path, name: str) -> COCO:
    coco = COCO()
    coco.dataset = json.loads((folder / name).read_text())
    coco.createIndex()
    return coco


def test_coco_is_what_pycocotools_writes(written: SimpleNamespace):
    coco = coco_of(written.folder, "out_coco")
    assert coco.imgs[1] == {"id": 1, "file_name": "my dog.jpg", "width": WIDTH, "height": HEIGHT}
    assert [each["name"] for each in coco.cats.values()] == [*NAMES[:2], "region"]
    assert [each["category_id"] for each in coco.anns.values()] == [1, 2, 1, 3]
    for mask, annotation in zip(masks(), coco.anns.values()):
        rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert annotation["segmentation"] == {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
        assert annotation["bbox"] == mask_utils.toBbox(rle).tolist() and annotation["area"] == mask_utils.area(rle)
        assert annotation["predicted_iou"] == 0.9 and annotation["prompt"]["point_labels"] == [1, 0]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    assert iou(coco.annToMask(coco.anns[4]).astype(bool), np.hypot(x - 91, y - 91) < 60) > 0.97


def test_coco_strings_of_many_masks(tmp_path: Path):
    rng = np.random.default_rng(1)
    some = []
    for share in (0, 0.001, 0.1, 0.5, 0.9, 1):
        for height, width in ((1, 1), (1, 37), (41, 1), (64, 48), (7, 300), (1200, 900)):
            some.append(rng.random((height, width)) < share)
    rows = [{"width": mask.shape[1], "height": mask.shape[0], "bits": base64.b64encode(mask.tobytes()).decode()}
            for mask in some]  # fmt: skip
    module = SCRIPT.parents[2] / "sam_bigltl" / "demo" / "page" / "formats" / "rle.js"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "encode.mjs").write_text(
        f"import {{ encode, boundsOf }} from {json.dumps(module.as_uri())};\n"
        "import { readFileSync } from 'node:fs';\n"
        "const rows = JSON.parse(readFileSync(process.argv[2]));\n"
        "console.log(JSON.stringify(rows.map(({ bits, width, height }) => {\n"
        "  const rle = encode(new Uint8Array(Buffer.from(bits, 'base64')), width, height);\n"
        "  return [rle.counts, boundsOf(rle)];\n"
        "})));\n"
    )
    command = [NODE, str(tmp_path / "encode.mjs"), str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for mask, (counts, bounds) in zip(some, json.loads(done.stdout)):
        rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert counts == rle["counts"].decode(), mask.shape
        assert bounds == mask_utils.toBbox(rle).tolist(), mask.shape


def test_coco_polygons_cover_the_masks(written: SimpleNamespace):
    coco = coco_of(written.folder, "out_coco_polygons")
    for mask, annotation in zip(masks(), coco.anns.values()):
        assert isinstance(annotation["segmentation"], list)
        assert iou(coco.annToMask(annotation).astype(bool), mask) > 0.97


def test_imported_polygons_are_those_of_pycocotools(written: SimpleNamespace):
    found = np.fromfile(written.folder / "imported0.raw", np.uint8).reshape(HEIGHT, WIDTH).astype(bool)
    rles = mask_utils.frPyObjects(IMPORTED, HEIGHT, WIDTH)
    assert iou(found, mask_utils.decode(mask_utils.merge(rles)).astype(bool)) > 0.98


def test_the_mask_and_the_palette(written: SimpleNamespace):
    with Image.open(written.folder / "out_mask") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), masks()[0] * np.uint8(255))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, mask in enumerate(masks(), 1):
        expected[mask] = number
    with Image.open(written.folder / "out_palette") as image:
        image.load()
        assert image.mode == "P" and np.array_equal(np.asarray(image), expected)
        assert image.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]  # VOC's first
        assert image.text["Description"] == "\n".join(f"{n}: {name}" for n, name in enumerate(NAMES, 1))


def test_cutouts(written: SimpleNamespace):
    def check(file: Any, mask: np.ndarray) -> None:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        expected = np.where(mask[part][..., None], written.pixels[part], 0)
        with Image.open(file) as image:
            assert image.mode == "RGBA" and np.array_equal(np.asarray(image), expected)

    check(written.folder / "out_cutout", masks()[0])
    with zipfile.ZipFile(written.folder / "out_cutouts") as archive:
        assert archive.testzip() is None
        names = ["my dog_cup.png", "my dog_a b c & größe.png", "my dog_cup (2).png"]
        assert archive.namelist() == names
        for name, mask in zip(names, masks()):
            check(io.BytesIO(archive.read(name)), mask)


def test_yolo(written: SimpleNamespace):
    with zipfile.ZipFile(written.folder / "out_yolo") as archive:
        assert archive.testzip() is None and {each.compress_type for each in archive.infolist()} == {8}
        lines = archive.read("labels/my dog.txt").decode().splitlines()
        classes = archive.read("classes.txt").decode().splitlines()
        data = archive.read("data.yaml").decode()
    assert classes == NAMES[:2]
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(data) == {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(classes))}
    assert [int(line.split()[0]) for line in lines] == [0, 1, 0]
    for line, mask in zip(lines, masks()):
        points = np.array(line.split()[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)
        drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
        # In 1/16 of a pixel, whose middle is whole in OpenCV; it draws the outline, and lines without width, one wide.
        cv2.fillPoly(drawn, [np.round((points - 0.5) * 16).astype(np.int32)], 1, shift=4)
        assert iou(drawn.astype(bool), mask) > 0.93


def test_labelme(written: SimpleNamespace):
    data = json.loads((written.folder / "out_labelme").read_text())
    assert written.names["labelme"] == "my dog.json"  # beside "my dog.jpg", where labelme looks for it
    assert (data["imagePath"], data["imageData"]) == ("my dog.jpg", None)
    assert (data["imageHeight"], data["imageWidth"]) == (HEIGHT, WIDTH) and data["version"] and data["flags"] == {}
    drawn: dict[Any, Image.Image] = {}
    for shape in data["shapes"]:
        assert shape["shape_type"] == "polygon" and shape["flags"] == {} and len(shape["points"]) >= 3
        key = (shape["label"], shape["group_id"])
        layer = drawn.setdefault(key, Image.new("1", (WIDTH, HEIGHT)))
        ImageDraw.Draw(layer).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)  # as labelme
    assert list(drawn) == [("cup", 1), (NAMES[1], 2), ("cup", None)]
    for layer, mask in zip(drawn.values(), masks()):
        assert iou(np.asarray(layer), mask) > 0.93


def brush_values(data: list[int]) -> Iterator[np.ndarray]:
    """The runs of Label Studio's brush RLE, as its converter documents the format."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    while count:
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        yield np.full(length, read(word)) if is_run else np.array([read(word) for _ in range(length)])
        count -= length


def test_label_studio(written: SimpleNamespace):
    with zipfile.ZipFile(written.folder / "out_label_studio") as archive:
        (task,) = json.loads(archive.read("tasks.json"))
        view = ET.fromstring(archive.read("labeling_interface.xml"))
    brush, picture = view.find("BrushLabels"), view.find("Image")
    assert [label.get("value") for label in brush] == NAMES[:2] and picture.get("value") == "$image"
    assert task["data"] == {"image": "my dog.jpg"}
    (annotation,) = task["annotations"]
    for name, mask, result in zip(NAMES, masks(), annotation["result"]):
        assert (result["from_name"], result["to_name"]) == (brush.get("name"), picture.get("name"))
        assert (result["original_width"], result["original_height"]) == (WIDTH, HEIGHT)
        assert result["type"] == "brushlabels" and result["value"]["brushlabels"] == [name]
        channels = np.concatenate(list(brush_values(result["value"]["rle"]))).reshape(HEIGHT, WIDTH, 4)
        assert np.array_equal(channels, np.repeat(mask[..., None] * 255, 4, axis=2))


def test_the_python_call_gives_the_mask(written: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (written.folder / "out_python").read_text()
    ast.parse(code)
    Image.fromarray(written.pixels[..., :3]).save(tmp_path / "my dog.jpg", format="PNG")
    weights = Path(__file__).parents[1] / "checkpoints" / "bigltl_mini.safetensors"
    shutil.copy(weights, tmp_path / weights.name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mask"].shape == (HEIGHT, WIDTH) and names["sam"].image_encoder.keep_ratio == 0.5
    points, labels = np.array(PROMPT["points"]), np.array(PROMPT["labels"])
    expected, _, _ = names["predictor"].predict(points, labels, box=np.array(PROMPT["box"]))
    assert np.array_equal(names["mask"], expected[1])
