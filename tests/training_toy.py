"""Generated photographs with coloured shapes and their masks, COCO's JSON or SA-1B's shards, for tests of training."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SHAPES = ("disc", "rectangle", "ring")
COLOURS = ((230, 40, 40), (40, 200, 60), (50, 70, 230))


def shape_mask(kind: str, height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(rows - y, columns - x)
    if kind == "disc":
        return distance < radius
    if kind == "ring":
        return (distance < radius) & (distance > 0.55 * radius)
    return (abs(rows - y) < 0.7 * radius) & (abs(columns - x) < radius)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def write_shapes(folder: Path, count: int = 6, sizes: tuple[tuple[int, int], ...] = ((96, 128), (112, 80))) -> Path:
    """Photographs with three shapes each in `folder/images`, and `folder/train.json`, whose path is returned."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        photo = np.full((height, width, 3), 128, np.uint8)
        for which, (kind, colour) in enumerate(zip(SHAPES, COLOURS)):
            radius = rng.uniform(0.12, 0.22) * min(height, width)
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            mask = shape_mask(kind, height, width, x, y, radius)
            for other in annotations[len(annotations) - which :] if which else ():
                other["mask"] &= ~mask  # covered
            photo[mask] = colour
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "mask": mask})
        name = f"{number}.png"
        Image.fromarray(photo).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    visible = []
    for entry in annotations:
        mask = entry.pop("mask")
        if mask.sum() < 20:
            continue
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        entry |= {"area": int(mask.sum()), "bbox": [float(v) for v in box], "segmentation": encode(mask)}
        visible.append(entry)
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": visible}))
    return path


def write_shards(folder: Path, shards: int = 2, each: int = 3, suffix: str = ".jpg") -> list[str]:
    """The photographs of `write_shapes`, kept in `folder/shapes`, as SA-1B has them: paths of `sa_000000.tar`, ..."""
    source = write_shapes(folder / "shapes", shards * each)
    content, paths = json.loads(source.read_text()), []
    for first in range(0, shards * each, each):
        files: dict[str, bytes] = {}
        for image in content["images"][first : first + each]:
            name, photo = f"sa_{image['id']}", BytesIO()
            Image.open(source.parent / "images" / image["file_name"]).save(photo, Image.registered_extensions()[suffix])
            masks = [
                {key: entry[key] for key in ("id", "area", "bbox", "segmentation")} | {"predicted_iou": 0.9}
                for entry in content["annotations"] if entry["image_id"] == image["id"]
            ]  # fmt: skip
            entry = {"image_id": image["id"], "height": image["height"], "width": image["width"]}
            files[name + suffix] = photo.getvalue()
            files[f"{name}.json"] = json.dumps(
                {"image": entry | {"file_name": name + suffix}, "annotations": masks}
            ).encode()
        paths.append(str(folder / f"sa_{first // each:06d}.tar"))
        write_tar(paths[-1], files)
    return paths


def write_tar(path: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))


def read_tar(path: str) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def cut_tar(path: str, member: str) -> None:
    """Cut a shard off in the middle of a member's content."""
    content, wanted = Path(path).read_bytes(), read_tar(path)[member]
    Path(path).write_bytes(content[: content.index(wanted) + len(wanted) // 2])


def shapes_in(pixels: np.ndarray) -> list[np.ndarray]:
    """The masks of a photograph of `write_shapes`, from its colours."""
    masks = [(pixels == colour).all(axis=-1) for colour in COLOURS]
    return [mask for mask in masks if mask.sum() >= 20]


def edit(path: Path, change: Any) -> Path:
    """Apply `change` to the JSON's content and write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path
