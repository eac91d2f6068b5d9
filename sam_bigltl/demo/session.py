"""One user at the page: a photograph, its history, and what the page is to show."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from ..errors import InputError
from ..modeling.trunk import KeepRatio
from ..predict.segment import Prompt
from ..predict.visualize import colour
from . import downloads
from .engine import Encoded, Engine, Masks
from .photos import Photo
from .pictures import data_url, mask_url, photo_url, regions_url, stage_pictures
from .scene import History, Item, act

_MASKS = 40  # decoded prompts to keep: 5 MB each at 1280 px


class Session:
    """Everything that belongs to one user; no two users share one.

    Its methods are called from one thread at a time, under `lock`. What they return is JSON for the page.

    Attributes:
        keep_ratio: at which photographs are encoded. stop: set to end everything mode.
    """

    def __init__(self, engine: Engine, keep_ratio: KeepRatio) -> None:
        self.engine, self.keep_ratio = engine, keep_ratio if engine.routed else 1.0
        self.lock, self.stop = threading.RLock(), threading.Event()
        self.photo: Photo | None = None
        self.history = History()
        self.encoded: Encoded | None = None
        self.regions: list[dict] = []
        self._masks: OrderedDict[tuple[KeepRatio, Prompt], tuple[Masks, list[str]]] = OrderedDict()
        self._answers = 0

    def __deepcopy__(self, memo: dict) -> Session:
        """A fresh one: Gradio copies the first value of a state for every user."""
        return Session(self.engine, self.keep_ratio)

    # what the user does

    def open(self, photo: Photo) -> None:
        """Another photograph, encoded; everything about the last one is forgotten."""
        self.stop.set()
        encoded = self.engine.encode(photo.key, photo.image, self.keep_ratio)
        self.photo, self.encoded, self.history, self.regions = photo, encoded, History(), []
        self._masks.clear()

    def set_ratio(self, keep_ratio: KeepRatio) -> None:
        """Encode again with another share of big tokens."""
        self.keep_ratio = keep_ratio
        if self.photo is not None:
            self.encoded = self.engine.encode(self.photo.key, self.photo.image, keep_ratio)

    def act(self, action: dict[str, Any]) -> None:
        """A click, a box, undo and so on; see `scene.act`."""
        self.history = act(self.history, action, self._photo().image.shape[:2])
        if action.get("kind") == "clear":
            self.regions = []

    # what the page shows

    def scene(self, message: str = "") -> dict[str, Any]:
        """Objects with their masks, and the three masks of the active one."""
        present, shown, milliseconds = self.history.present, [], None
        for item in present.items:
            entry: dict[str, Any] = {
                "name": item.name, "colour": "#{:02x}{:02x}{:02x}".format(*colour(item.colour)), "box": item.prompt.box,
                "points": [[*point, label] for point, label in zip(item.prompt.points, item.prompt.labels)],
            }  # fmt: skip
            if not item.is_empty:
                masks, urls = self._decoded(item.prompt)
                index = masks.chosen(item.choice)
                entry |= {"mask": urls[index], "iou": round(float(masks.ious[index]), 6)}
                if item is present.current:
                    entry |= {"masks": urls, "ious": [round(float(v), 6) for v in masks.ious], "chosen": index}
                    milliseconds = round(masks.milliseconds, 1)
            shown.append(entry)
        return {
            "serial": self._next(), "items": shown, "active": present.active, "message": message,
            "decoder_ms": milliseconds, "undo": bool(self.history.past), "redo": bool(self.history.future),
        }  # fmt: skip

    def picture(self) -> dict[str, Any]:
        """The photograph."""
        photo = self._photo()
        height, width = photo.image.shape[:2]
        return {"serial": self._next(), "url": photo_url(photo.image), "width": width, "height": height,
                "name": photo.file_name, "note": photo.note}  # fmt: skip

    def tokens(self) -> dict[str, Any]:
        """What the encoder spent on the photograph, and on which tokens."""
        encoded, engine = self.encoded, self.engine
        assert encoded is not None
        route = encoded.route
        return {
            "serial": self._next(), "stages": stage_pictures(route) if engine.routed else [],
            "ms": round(encoded.milliseconds, 1), "gmacs": round(engine.gmacs(route), 2),
            "dense_gmacs": round(engine.gmacs(None), 2), "keep_ratio": encoded.keep_ratio,
        }  # fmt: skip

    def dense(self) -> dict[str, Any]:
        """The same prompts to the same model with every token big: masks, and their IoU with those shown."""
        photo = self._photo()
        encoded = self.engine.encode(photo.key, photo.image, 1.0)
        masks = []
        for item in self.history.present.items:
            if not item.is_empty:
                theirs, urls = self._decoded(item.prompt, encoded)
                ours, _ = self._decoded(item.prompt)
                a, b = theirs.masks[theirs.chosen(item.choice)], ours.masks[ours.chosen(item.choice)]
                union = np.logical_or(a, b).sum()
                iou = float(np.logical_and(a, b).sum() / union) if union else 1.0
                masks.append({"name": item.name, "url": urls[theirs.chosen(item.choice)], "iou": round(iou, 4)})
        return {"serial": self._next(), "masks": masks, "ms": round(encoded.milliseconds, 1)}

    def regions_picture(self) -> dict[str, Any]:
        """The result of everything mode, the largest regions lowest."""
        if self.photo is None or not self.regions:
            return {"count": 0, "url": None}
        labels = np.zeros(self.photo.image.shape[:2], np.uint16)
        ordered = sorted(self.regions, key=lambda record: -record["area"])
        for index, record in enumerate(ordered, start=1):
            labels[mask_utils.decode(record["segmentation"]).astype(bool)] = index
        hues = np.random.default_rng(0).integers(40, 230, (len(ordered), 3)).astype(np.uint8)
        return {"count": len(ordered), "url": regions_url(labels, hues)}

    # what the user takes away

    def download(self, kind: str) -> dict[str, str]:
        """ "mask", "cutout", "coco" or "python": name and data URL of a file, or text to copy. Raises InputError."""
        photo, item = self._photo(), self.history.present.current
        stem = photo.file_name.rsplit(".", 1)[0] or "photo"
        if kind == "coco":
            items = [(each, *self._result(each)) for each in self.history.present.items if not each.is_empty]
            if not items and not self.regions:
                raise InputError("there is nothing to download yet: click on an object first")
            return _file(f"{stem}_coco.json", downloads.coco_json(photo, items, self.regions), "application/json")
        if item.is_empty:
            raise InputError(f"{item.name} has no mask yet: click on it first")
        mask, _ = self._result(item)
        name = f"{stem}_{item.name.replace(' ', '_').replace('/', '_')}"
        if kind == "mask":
            return _file(f"{name}_mask.png", downloads.mask_png(mask), "image/png")
        if kind == "cutout":
            return _file(f"{name}_cutout.png", downloads.cutout_png(photo.image, mask), "image/png")
        masks, _ = self._decoded(item.prompt)
        return {"text": downloads.python_code(photo, item, masks, self.keep_ratio, self.engine)}

    def _next(self) -> int:
        """A number that no other answer of this session has: the page tells new from old by it."""
        self._answers += 1
        return self._answers

    def _photo(self) -> Photo:
        if self.photo is None:
            raise InputError("there is no photograph yet: drop one on the page, or choose an example")
        return self.photo

    def _result(self, item: Item) -> tuple[np.ndarray, float]:
        masks, _ = self._decoded(item.prompt)
        index = masks.chosen(item.choice)
        return masks.masks[index], float(masks.ious[index])

    def _decoded(self, prompt: Prompt, encoded: Encoded | None = None) -> tuple[Masks, list[str]]:
        encoded = encoded or self.encoded
        assert encoded is not None
        key = (encoded.keep_ratio, prompt)
        if key not in self._masks:
            masks = self.engine.masks(encoded, prompt)
            self._masks[key] = masks, [mask_url(mask) for mask in masks.masks]
            while len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        self._masks.move_to_end(key)
        return self._masks[key]


def _file(name: str, content: bytes, kind: str) -> dict[str, str]:
    return {"name": name, "url": data_url(content, kind)}
