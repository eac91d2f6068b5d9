"""JSON that users bring, or that lies in a folder from an earlier run: annotations, detections, results, journals."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sam_bigltl.cli.prompts import parse_keep_ratio, parse_prompts
from sam_bigltl.data.coco import check_image_files, load_coco
from sam_bigltl.data.crops import crop_objects
from sam_bigltl.data.sources import ShardSource
from sam_bigltl.evaluation import imagenet
from sam_bigltl.evaluation.compare import COLUMNS, compare, format_comparison
from sam_bigltl.evaluation.detections import average_precision, load_detections
from sam_bigltl.evaluation.journal import ImageRecord, Journal
from sam_bigltl.training.cache import EmbeddingCache
from sam_bigltl.training.data import MaskBatches, SampleConfig

from .mutate import WORDS, mutate_bytes, mutate_text

SIZE = (24, 32)  # height, width of the photograph


def _rle() -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[4:20, 5:25] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


def annotations() -> dict[str, Any]:
    """A COCO file of one photograph, which is also of LVIS's form."""
    polygon = [[4.0, 4.0, 28.0, 4.0, 28.0, 20.0, 4.0, 20.0]]
    common = {"image_id": 1, "iscrowd": 0, "category_id": 1}
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1], "neg_category_ids": [],
                    "not_exhaustive_category_ids": [2]}],
        "annotations": [
            {"id": 1, "area": 320, "bbox": [5, 4, 20, 16], "segmentation": _rle()} | common,
            {"id": 2, "area": 384.0, "bbox": [4, 4, 24, 16], "segmentation": polygon} | common,
            {"id": 3, "area": 100, "segmentation": {"size": list(SIZE), "counts": [100, 300, 368]}} | common,
        ],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal", "frequency": "r"},
                       {"id": 2, "name": "dog", "supercategory": "animal", "frequency": "f"}],
    }  # fmt: skip


DETECTIONS = [{"image_id": 1, "category_id": 1, "bbox": [5, 4, 20, 16], "score": 0.9}]


def make(folder: Path) -> Callable[[Random], None]:
    """A function that damages one document and reads it as its readers do."""
    images = folder / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "a.png")
    good, bad = folder / "good.json", folder / "bad.json"
    good.write_text(json.dumps(annotations()))

    def read_annotations(rng: Random) -> None:
        bad.write_bytes(mutate_text(rng, annotations()))
        found = load_coco(bad, crowds=rng.random() < 0.5)
        check_image_files(found, images)
        for image in found:
            for annotation in image.annotations:
                annotation.mask()

    def train_on(rng: Random) -> None:
        bad.write_bytes(mutate_text(rng, annotations()))
        MaskBatches([bad], images, SampleConfig(32, 32, prompts=2), batch_size=1, seed=0, steps=1)[0]

    def crop(rng: Random) -> None:
        bad.write_bytes(mutate_text(rng, annotations()))
        crop_objects(bad, images, folder / "crops", 16, 0.1, 1, None)

    def detect(rng: Random) -> None:
        bad.write_bytes(mutate_text(rng, DETECTIONS))
        load_detections(bad, load_coco(good, empty_images=True))

    def score(rng: Random) -> None:
        results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": _rle()}]
        bad.write_bytes(mutate_text(rng, results) if rng.random() < 0.5 else json.dumps(results).encode())
        truth = folder / "truth.json"
        truth.write_bytes(mutate_text(rng, annotations()))
        average_precision(truth, bad, rng.choice(("coco", "lvis")))

    def difference(rng: Random) -> None:
        settings = {"settings": {"protocol": "A", "ingredients": {"crowds": True}}, "summary": []}
        row = dict.fromkeys(COLUMNS, "1") | {"prompt": "box"}
        table = ",".join(COLUMNS) + "\n" + ",".join(row[name] for name in COLUMNS) + "\n"
        for side in ("a", "b"):
            (folder / side).mkdir(exist_ok=True)
            (folder / side / "results.json").write_text(json.dumps(settings))
            (folder / side / "instances.csv").write_text(table)
        if rng.random() < 0.5:
            (folder / "a" / "results.json").write_bytes(mutate_text(rng, settings))
        else:
            (folder / "a" / "instances.csv").write_bytes(mutate_bytes(rng, table.encode()))
        format_comparison(compare(folder / "a" / "results.json", folder / "b" / "results.json", samples=3))

    def shard(rng: Random) -> None:
        photo = io.BytesIO()
        Image.fromarray(pixels).save(photo, "PNG")
        masks = {"image": {"image_id": 1}, "annotations": [{"segmentation": _rle()}]}
        with tarfile.open(folder / "a.tar", "w") as tar:
            for name, content in (("a.png", photo.getvalue()), ("a.json", mutate_text(rng, masks))):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        if rng.random() < 0.5:
            (folder / "a.tar").write_bytes(mutate_bytes(rng, (folder / "a.tar").read_bytes()))
        list(ShardSource([str(folder / "a.tar")]).unit(str(folder / "a.tar")))

    def journal(rng: Random) -> None:
        result = {"image_id": 1, "annotation_id": 1, "area": 3.0, "keep_ratio": 1.0, "prompt": "box", "clicks": 0,
                  "iou": 0.5, "predicted_iou": 0.5, "counts": "04"}  # fmt: skip
        record = asdict(ImageRecord(1, [0.1], {"1.0/box/0": 0.1}, [], [(1.0, 0, 0.5, "04")])) | {"results": [result]}
        lines = [{"settings": {"seed": 0}}, record]
        damaged = rng.randrange(2)
        texts = [mutate_text(rng, line) if i == damaged else json.dumps(line).encode() for i, line in enumerate(lines)]
        (folder / "journal-0.jsonl").write_bytes(b"\n".join(texts) + b"\n")
        Journal(folder, {"seed": 0}).records()

    def counts(rng: Random) -> None:
        batch = {"rows": [[2, 1, 2, 0.1], [2, 1, 1, 0.1]], "unreadable": {"a.png": "is empty"}}
        lines = [{"ratios": [1.0, 0.5]}, batch]
        damaged = rng.randrange(2)
        texts = [mutate_text(rng, line) if i == damaged else json.dumps(line).encode() for i, line in enumerate(lines)]
        (folder / "journal.jsonl").write_bytes(b"\n".join(texts) + b"\n")
        imagenet.Journal(folder, {"ratios": [1.0, 0.5]}, restart=False).totals(2)

    def index(rng: Random) -> None:
        line = {
            "file": "embeddings_000000.safetensors",
            "sha256": "0",
            "keys": ["a"],
            "done": ["a"],
            "skipped": {"b": "c"},
        }
        texts = [json.dumps({"teacher": "t"}).encode(), mutate_text(rng, line)]
        (folder / "index.jsonl").write_bytes(b"\n".join(texts) + b"\n")
        EmbeddingCache(folder, "t").verify()

    def prompts(rng: Random) -> None:
        text = rng.choice(("1,2", "1,2,3,4", "0.5", "1,0.5", rng.choice(WORDS))) + rng.choice(
            ("", "", rng.choice(WORDS))
        )
        which = rng.randrange(3)
        if which == 0:
            parse_keep_ratio(text)
        else:
            for prompt in parse_prompts([text], []) if which == 1 else parse_prompts([], [text, "1,1"]):
                prompt.clipped(SIZE)

    readers = (
        read_annotations, read_annotations, train_on, crop, detect, score, difference, shard, journal, counts, index,
        prompts
    )  # fmt: skip
    return lambda rng: rng.choice(readers)(rng)
