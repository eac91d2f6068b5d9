"""A toy COCO set, a fake predictor and slow computations, for the tests of the evaluation."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import sam_bigltl.evaluation.cli as evaluation_cli
import sam_bigltl.evaluation.run as evaluation_run
from sam_bigltl.errors import run_cli

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 24, 32


# ---------------------------------------------------------------- a toy data set
def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Column-major run lengths that start with background, written from the format's description."""
    counts, current, run = [], False, 0
    for value in mask.flatten(order="F").tolist():
        if value != current:
            counts.append(run)
            current, run = value, 0
        run += 1
    return {"size": list(mask.shape), "counts": [*counts, run]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def holed() -> np.ndarray:
    mask = rectangle(2, 3, 20, 21)
    mask[8:14, 7:13] = False
    return mask


TARGETS = {
    1: rectangle(4, 5, 14, 15),
    2: holed(),
    3: rectangle(0, 0, 32, 6) | rectangle(20, 10, 30, 22),
    4: rectangle(16, 2, 30, 20),
    7: rectangle(10, 10, 13, 13),
}
# Areas are the JSON's own, not the masks': 1024 and 9216 belong to two splits each, 0.5 is skipped.
AREAS = {1: 1024, 2: 9216, 3: 100.5, 4: 20000, 7: 5000}


def toy() -> dict[str, Any]:
    """Two used images out of three, listed out of order, with every kind of segmentation."""
    segmentations = {
        1: [[4, 5, 14, 5, 14, 15, 4, 15]],
        2: uncompressed(TARGETS[2]),
        3: compressed(TARGETS[3]),
        4: [[1, 1, 2, 2], [16, 2, 23, 2, 23, 20, 16, 20], [23, 2, 30, 2, 30, 20, 23, 20]],
        7: compressed(TARGETS[7]),
    }
    image_of = {1: 30, 2: 4, 3: 30, 4: 4, 7: 30}
    annotations = []
    for number in (7, 3, 1, 4, 2):
        ys, xs = np.nonzero(TARGETS[number])
        box = [xs.min() + 0.25, ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        annotations.append(
            {
                "id": number,
                "image_id": image_of[number],
                "category_id": 1,
                "area": AREAS[number],
                "bbox": [float(value) for value in box],
                "iscrowd": int(number == 2),
                "segmentation": segmentations[number],
            }
        )
    annotations.append({"id": 9, "image_id": 4, "area": 0.5, "bbox": [1, 1, 1, 1], "segmentation": []})
    images = [{"id": id, "file_name": f"{id}.png", "height": HEIGHT, "width": WIDTH} for id in (30, 4, 8)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


@pytest.fixture
def data(tmp_path: Path) -> SimpleNamespace:
    """The toy set on disk: `.json`, `.images`, and `.write(content)` to replace the JSON."""
    folder = tmp_path / "images"
    folder.mkdir()
    for id in (30, 4, 8):
        pixels = np.full((HEIGHT, WIDTH, 3), id, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{id}.png")
    path = tmp_path / "toy.json"

    def write(content: Any) -> Path:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return SimpleNamespace(json=write(toy()), images=folder, write=write, out=tmp_path / "out")


# ---------------------------------------------------------------- slow and independent computations
def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    first, second = set(zip(*np.nonzero(a))), set(zip(*np.nonzero(b)))
    return len(first & second) / (len(first | second) + 1e-7)


def slow_distance(region: np.ndarray, y: int, x: int) -> int:
    """Squared distance of a pixel of the region to the nearest pixel outside it or outside the image."""
    if not region[y, x]:
        return 0
    height, width = region.shape
    return min(
        (y - v) ** 2 + (x - u) ** 2
        for v in range(-1, height + 1)
        for u in range(-1, width + 1)
        if not (0 <= v < height and 0 <= u < width) or not region[v, u]
    )


def slow_click(target: np.ndarray, prediction: np.ndarray, clicked: list[tuple[int, int]]) -> tuple[int, int, int]:
    """(x, y, label) of RITM's next click, by brute force."""
    best = {}
    for label, region in ((1, target & ~prediction), (0, ~target & prediction)):
        best[label] = (0, 0, 0)  # squared distance, x, y
        for y in range(target.shape[0]):
            for x in range(target.shape[1]):
                distance = 0 if (x, y) in clicked else slow_distance(region, y, x)
                if distance > best[label][0]:
                    best[label] = (distance, x, y)
    label = 1 if best[1][0] > best[0][0] else 0
    return best[label][1], best[label][2], label


class FakePredictor:
    """Masks that depend on the image, the keep ratio and every prompt, and a log of all calls."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.encoder = SimpleNamespace(keep_ratio=None, is_dense=False)
        self.model = SimpleNamespace(image_encoder=self.encoder)
        self.transform = SimpleNamespace(target_length=WIDTH)
        self.calls: list[tuple] = []

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        assert image.dtype == np.uint8 and image_format == "RGB"
        self.image = int(image[0, 0, 0])
        self.calls.append(("set_image", self.image, self.encoder.keep_ratio))

    def predict(self, point_coords=None, point_labels=None, box=None, mask_input=None, multimask_output=False):
        assert multimask_output and mask_input is None and (box is None) != (point_coords is None)
        prompt = tuple(box.tolist()) if box is not None else (*point_coords.ravel().tolist(), *point_labels.tolist())
        self.calls.append(("predict", *prompt))
        return fake_masks(self.image, self.encoder.keep_ratio, prompt)


def fake_masks(image: int, keep_ratio: float | str, prompt: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed = [image, int(sum((3 * i + 1) * v for i, v in enumerate(prompt)) * 4), len(str(keep_ratio))]
    rng = np.random.default_rng([abs(value) for value in seed])
    masks = np.zeros((3, HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 10)
        mask[y : y + rng.integers(6, 18), x : x + rng.integers(6, 24)] = True
    return masks, rng.random(3).astype(np.float32), np.zeros((3, 8, 8), np.float32)


def best(image: int, keep_ratio: float | str, prompt: tuple) -> tuple[np.ndarray, float]:
    masks, scores, _ = fake_masks(image, keep_ratio, prompt)
    index = max(range(3), key=lambda i: scores[i])
    return masks[index], float(scores[index])


def expected_rows(ratios: list, clicks: list[int]) -> dict[tuple, tuple[float, float]]:
    """(ratio, prompt, clicks, annotation) -> (iou, predicted iou), recomputed without the code under test."""
    content, rows = toy(), {}
    for annotation in content["annotations"]:
        number, image = annotation["id"], annotation["image_id"]
        if number not in TARGETS:
            continue
        target = TARGETS[number]
        x, y, width, height = annotation["bbox"]
        for ratio in ratios:
            mask, score = best(image, ratio, (x, y, x + width, y + height))
            rows[ratio, "box", 0, number] = (slow_iou(mask, target), score)
            mask, points, labels = np.zeros_like(target), [], []
            for count in range(1, max(clicks) + 1):
                px, py, label = slow_click(target, mask, points)
                points.append((px, py))
                labels.append(label)
                prompt = (*(float(value) for point in points for value in point), *labels)
                mask, score = best(image, ratio, prompt)
                if count in clicks:
                    rows[ratio, "point", count, number] = (slow_iou(mask, target), score)
    return rows


# ---------------------------------------------------------------- the command line
@pytest.fixture
def stub_model(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The command line with the fake predictor in place of a loaded model."""
    predictor = FakePredictor()
    monkeypatch.setattr(evaluation_run, "predictor_of_checkpoint", lambda path, device, precision, native: predictor)
    monkeypatch.setattr(evaluation_run, "sha256", lambda path: path.name)
    return predictor.encoder


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    evaluation_cli.add_arguments(parser)
    run_cli("coco_miou.py", evaluation_cli.run, parser.parse_args(arguments))


def arguments(data: SimpleNamespace, *more: str) -> list[str]:
    flags = ["--annotations", str(data.json), "--images", str(data.images), "--checkpoint", "none.safetensors"]
    return [*flags, "--output", str(data.out), *more]


def script(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "eval" / "coco_miou.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


IMAGES = 6


MODEL = """
import os, time
from pathlib import Path
import numpy as np
from types import SimpleNamespace

class Slow:
    transform = SimpleNamespace(target_length=32)
    def set_image(self, image, image_format="RGB"):
        self.image = int(image[0, 0, 0])
        with open(Path(__file__).with_name("images.log"), "a") as file:
            file.write(f"{self.image}\\n")
        time.sleep(float(os.environ.get("SLOW", 0)))
    def predict(self, point_coords=None, point_labels=None, box=None, multimask_output=True):
        x0, y0, x1, y1 = (int(v) for v in box)
        masks = np.zeros((3, 24, 32), bool)
        for i, mask in enumerate(masks):
            mask[max(0, y0 - i) : y1, max(0, x0 - self.image % 5) : x1] = True
        return masks, np.array([0.2, 0.9, 0.4]), np.zeros((3, 8, 8), np.float32)

def make(checkpoint=None):
    return Slow()

def broken():
    raise RuntimeError("no weights")

def nothing():
    return object()
"""


@pytest.fixture
def many(data: SimpleNamespace) -> SimpleNamespace:
    """The toy set on `IMAGES` images, and a file with a model that writes down every image it is given."""
    content = toy()
    template = [each for each in content["annotations"] if each["id"] in TARGETS]
    content["images"] = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(IMAGES)]
    content["annotations"] = [
        {**each, "id": 10 * i + each["id"], "image_id": i} for i in range(IMAGES) for each in template
    ]
    for i in range(IMAGES):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), i, np.uint8)).save(data.images / f"{i}.png")
    data.write(content)
    (data.out.parent / "slow_model.py").write_text(MODEL)
    return data


def results(many: SimpleNamespace, out: str) -> tuple[str, list[dict]]:
    folder = many.out.parent / out
    summary = json.loads((folder / "results.json").read_text())["summary"]
    for row in summary:
        del row["seconds"], row["encoder_ms"]
    return (folder / "instances.csv").read_text(), summary
