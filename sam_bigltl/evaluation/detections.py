"""A detector's boxes as prompts: reading them, writing the masks as COCO results, and their average precision."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask

from ..data.coco import Annotation, CocoImage, parse_coco, read_json
from ..data.fields import as_id, id_key, is_id, is_number
from ..data.files import load_json, whole_file
from ..data.rle import check_rle
from ..errors import InputError

MAX_DETECTIONS = {"coco": 100, "lvis": 300}  # COCO: of a category in an image; LVIS: of all categories together
FREQUENCIES = ("r", "c", "f")  # of a category in LVIS's training images: rare, common, frequent
# faster-coco-eval takes about 1.3 KB for every pair of an image and a category, whether or not it holds anything: 30 GB
# for the whole of LVIS. Categories are independent, so it gets as many at a time as keep to this many pairs.
PAIRS = 1_000_000


@dataclass(frozen=True, slots=True)
class Detection:
    """One box of a detector: `bbox` is (x, y, width, height) in pixels, as in its file; the id is the image's own."""

    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float]
    score: float


def load_detections(path: str | Path, images: Sequence[CocoImage]) -> tuple[dict[int | str, list[Detection]], int]:
    """Read a COCO results JSON: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.

    Args:
        images: all of the dataset's, those without annotations too (`load_coco(..., empty_images=True)`).

    Returns:
        The detections of each of the images by its id, in the order of the file, and the number of those left out
        because their image is not among `images`.

    Raises:
        InputError: the file is missing or not such a list, an entry is unusable (its index, from 0, is named), or not
            one is of a known image.
    """
    entries = _read_list(path)
    found: dict[int | str, list[Detection]] = {image.id: [] for image in images}
    known = {str(image.id): image.id for image in images}
    unknown = 0
    for index, entry in enumerate(entries):
        image_key, category_id = _ids(entry, where := f"{path}: detection {index}")
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise InputError(f"{where} has no 'bbox' of four finite numbers [x, y, width, height]; fix or remove it")
        if box[2] <= 0 or box[3] <= 0:
            raise InputError(f"{where} has an empty 'bbox' {box} (x, y, width, height); fix or remove it")
        image_id = known.get(str(image_key))
        if image_id is None:
            unknown += 1
        else:
            found[image_id].append(Detection(image_id, category_id, tuple(box), entry["score"]))
    if not entries:
        raise InputError(f"{path} holds no detection; give the detector's results")
    if unknown == len(entries):
        raise InputError(
            f"{path} has no detection in any image of the annotations: it seems to belong to another dataset; give the "
            "detector's results for these images"
        )
    return found, unknown


def write_results(path: str | Path, rows: Iterable[tuple[Detection, Sequence[int], str]]) -> None:
    """Write masks as a COCO results JSON, one a line, with the detector's score and box unchanged.

    Args:
        path: it appears only when it is complete.
        rows: each a detection, its mask's (height, width) and the `counts` of its compressed RLE.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_file(Path(path)) as stream:
        separator = "[\n"
        for detection, (height, width), counts in rows:
            row = {
                "image_id": detection.image_id,
                "category_id": detection.category_id,
                "bbox": detection.bbox,
                "score": detection.score,
                "segmentation": {"size": [int(height), int(width)], "counts": counts},
            }
            stream.write(separator + json.dumps(row))
            separator = ",\n"
        stream.write("[]\n" if separator == "[\n" else "\n]\n")


def average_precision(
    annotations_path: str | Path,
    results_path: str | Path,
    style: str = "coco",
    image_ids: Collection[int | str] | None = None,
    folder: str | Path | None = None,
) -> dict[str, float | None]:
    """Average precision of masks, in percent. `Truth` scores several results against the annotations read once.

    The masks' own areas decide their size class, not the detector's boxes. In LVIS style the 300 highest scores of an
    image count, an image's categories that are neither annotated in it nor listed as absent (`neg_category_ids`) are
    left out, unmatched masks of a `not_exhaustive_category_ids` one are not held against the model, and empty masks
    are dropped, as lvis-api does.

    Args:
        annotations_path: COCO-format instances with `categories`.
        results_path: what `write_results` writes; results of categories that the annotations lack do not count.
        style: "coco" or "lvis".
        image_ids: only these images count, both their annotations and their results (all).
        folder: of the images, for sizes that the annotations lack.

    Returns:
        AP, AP50, AP75, APs, APm, APl and, in LVIS style, APr, APc, APf by the categories' `frequency`. None where
        there is nothing annotated to find.

    Raises:
        InputError: a file cannot be used.
    """
    return Truth(annotations_path, style, image_ids, folder).average_precision(results_path)


class Truth:
    """Annotations as the evaluator takes them, everything numbered from 1.

    It takes an annotation of id 0 for none, and no strings for ids.

    Attributes:
        by_key: all images of the JSON by `id_key`.
        images, annotations, categories: COCO-format entries, those of the chosen images alone.
        image_number, category_number: from `id_key` of the JSON's ids to the numbers here.
        flat: how many annotations were left out because their area is 0, as lvis-api does.
    """

    def __init__(
        self, path: str | Path, style: str = "coco", image_ids: Collection[int | str] | None = None,
        folder: str | Path | None = None, ignore_exif: bool = False,
    ) -> None:  # fmt: skip
        """The arguments are those of `average_precision` and `load_coco`."""
        if style not in MAX_DETECTIONS:
            raise ValueError(f"style is {style!r}, not one of {list(MAX_DETECTIONS)}")
        content, lvis = read_json(path), style == "lvis"
        images, _ = parse_coco(
            content, path, min_area=-np.inf, empty_images=True, folder=folder, ignore_exif=ignore_exif
        )
        self.style = style
        self.by_key = {str(image.id): image for image in images}
        wanted = set(self.by_key) if image_ids is None else set(map(str, image_ids))
        chosen = [image for image in images if str(image.id) in wanted]
        if not chosen:
            raise ValueError(f"none of the image_ids is in {path}")
        entries = _categories(content, path, lvis)
        self.category_number = {id_key(entry["id"]): number for number, entry in enumerate(entries, 1)}
        self.categories: list[dict[str, Any]] = [
            {"id": number, "frequency": entry.get("frequency")} for number, entry in enumerate(entries, 1)
        ]
        self.image_number = {str(image.id): number for number, image in enumerate(chosen, 1)}
        self.images: list[dict[str, Any]] = [
            {"id": number, "height": image.size[0], "width": image.size[1]} for number, image in enumerate(chosen, 1)
        ]
        if lvis:
            lists = _federation(content["images"], path)
            for image, entry in zip(chosen, self.images):
                for key, ids in lists[str(image.id)].items():
                    entry[key] = [self.category_number.get(id_key(id), 0) for id in ids]
        self.annotations: list[dict[str, Any]] = []
        self.flat = 0
        for image in chosen:
            for annotation in image.annotations:
                if id_key(annotation.category_id) not in self.category_number:
                    raise InputError(
                        f"{path}: annotation {annotation.id} has category {annotation.category_id!r}, which is not in "
                        "'categories'; add it"
                    )
                if not lvis or annotation.area > 0:  # lvis-api drops the others
                    self._add(annotation, self.image_number[str(image.id)])
                else:
                    self.flat += 1

    def __str__(self) -> str:
        """Such as `AP: 33 annotations to find; 3 crowds, in which masks count neither way`."""
        crowds = sum(entry["iscrowd"] for entry in self.annotations)
        parts = [f"AP: {len(self.annotations) - crowds} annotations to find"]
        parts += [f"{crowds} marked as crowd, in which masks count neither way"] * (crowds > 0)
        parts += [f"{self.flat} left out with area 0"] * (self.flat > 0)
        return "; ".join(parts)

    def average_precision(self, results_path: str | Path) -> dict[str, float | None]:
        """The figures of `average_precision`."""
        found = _read_results(results_path, self)
        if self.style == "lvis":
            found = _federated(found, self)
        precision = _precision(self, found)

        parts = {"AP": precision[..., 0], "AP50": precision[:1, ..., 0], "AP75": precision[5:6, ..., 0]}
        parts.update({f"AP{size}": precision[..., index] for index, size in enumerate("sml", 1)})
        if self.style == "lvis":
            frequency = np.array([category["frequency"] for category in self.categories])
            parts.update({f"AP{letter}": precision[:, :, frequency == letter, 0] for letter in FREQUENCIES})
        # -1 stands for a category of which nothing is annotated.
        means = {name: part[part > -1].mean() if (part > -1).any() else None for name, part in parts.items()}
        return {name: None if mean is None else 100 * float(mean) for name, mean in means.items()}

    def _add(self, annotation: Annotation, image_number: int) -> None:
        rle = annotation.rle()
        counts = rle["counts"]
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_number,
                "category_id": self.category_number[id_key(annotation.category_id)],
                "area": annotation.area,
                "iscrowd": int(annotation.iscrowd),
                "segmentation": {**rle, "counts": counts.decode() if isinstance(counts, bytes) else counts},
            }
        )


def _categories(content: dict[str, Any], path: str | Path, lvis: bool) -> list[dict[str, Any]]:
    entries = content.get("categories")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} has no list 'categories', which AP needs; give a COCO instances file")
    keys = {id_key(entry.get("id")) for entry in entries}
    if None in keys or len(keys) < len(entries):
        raise InputError(f"{path}: the ids of its 'categories' are not unique integers or strings; fix them")
    for entry in entries:
        if lvis and entry.get("frequency") not in FREQUENCIES:
            raise InputError(
                f"{path}: category {entry['id']} has no 'frequency' r, c or f, which LVIS's AP needs; give an LVIS file"
            )
    return entries


def _federation(entries: list[dict[str, Any]], path: str | Path) -> dict[str, dict[str, list[int | str]]]:
    """LVIS's two lists of categories of every image, by `id_key`."""
    lists: dict[str, dict[str, list[int | str]]] = {}
    for entry in entries:
        own = lists[str(as_id(entry["id"]))] = {}
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = entry.get(key)
            if not isinstance(ids, list) or not all(map(is_id, ids)):
                raise InputError(
                    f"{path}: image {entry['id']} has no list {key!r}, which LVIS's AP needs; give an LVIS file"
                )
            own[key] = ids
    return lists


def _read_results(path: str | Path, truth: Truth) -> list[dict[str, Any]]:
    """The results in the chosen images, numbered, with category 0 for one that the annotations lack.

    Boxes are left out: the evaluator would take a result's area from its box.
    """
    found, known = [], 0
    entries = _read_list(path)
    for index, entry in enumerate(entries):
        image_id, category_id = _ids(entry, where := f"{path}: result {index}")
        image, rle = truth.by_key.get(str(image_id)), entry.get("segmentation")
        if image is None:
            raise InputError(
                f"{where} is of image {entry['image_id']!r}, which the annotations lack; give the file it was made with"
            )
        if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str):
            raise InputError(f"{where} has no compressed RLE as its 'segmentation'; write the masks anew")
        rle = check_rle(rle, image.size, where, image.id)
        category = truth.category_number.get(str(category_id), 0)
        known += category > 0
        number = truth.image_number.get(str(image.id))
        if number is not None:
            found.append({"image_id": number, "category_id": category, "score": entry["score"], "segmentation": rle})
    if entries and not known:
        raise InputError(
            f"{path} has only categories that the annotations lack, the first is {entries[0]['category_id']!r}; give "
            "results with the dataset's own category ids"
        )
    return found


def _federated(found: list[dict[str, Any]], truth: Truth) -> list[dict[str, Any]]:
    """The results that count in LVIS; see `average_precision`."""
    judged = {image["id"]: set(image["neg_category_ids"]) - {0} for image in truth.images}
    for annotation in truth.annotations:
        judged[annotation["image_id"]].add(annotation["category_id"])
    by_image = _grouped(found, "image_id")
    kept = []
    for number, entries in by_image.items():
        best = sorted(entries, key=lambda entry: entry["score"], reverse=True)[: MAX_DETECTIONS["lvis"]]
        kept += [entry for entry in best if entry["category_id"] in judged[number]]
    return [entry for entry in kept if coco_mask.area(entry["segmentation"]) > 0]


def _precision(truth: Truth, found: list[dict[str, Any]]) -> np.ndarray:
    """Precision by IoU threshold (10), recall (101), category and size (all, small, medium, large); -1 for none."""
    annotations_of, found_of = _grouped(truth.annotations, "category_id"), _grouped(found, "category_id")
    parts = []
    step = max(1, PAIRS // len(truth.images))
    for start in range(0, len(truth.categories), step):
        categories = truth.categories[start : start + step]
        annotations = [entry for category in categories for entry in annotations_of[category["id"]]]
        target = COCO({"images": truth.images, "annotations": annotations, "categories": categories})
        results = target.loadRes([entry for category in categories for entry in found_of[category["id"]]])
        evaluator = COCOeval_faster(target, results, "segm", lvis_style=truth.style == "lvis")
        evaluator.params.maxDets = [MAX_DETECTIONS[truth.style]]
        evaluator.evaluate()
        evaluator.accumulate()
        parts.append(evaluator.eval["precision"][..., 0])
    return np.concatenate(parts, axis=2)


def _grouped(entries: list[dict[str, Any]], key: str) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry[key]].append(entry)
    return groups


def _read_list(path: str | Path) -> list[Any]:
    advice = "give a COCO results JSON"
    entries = load_json(path, "detections", advice, advice)
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a list of detections; give a COCO results JSON, not the annotations")
    return entries


def _ids(entry: Any, where: str) -> tuple[int | str, int | str]:
    """The image's and the category's id of a dict with usable ids and score; else raises InputError, with `where`."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object with 'image_id', 'category_id', 'bbox' and 'score'; fix the file")
    ids = []
    for key in ("image_id", "category_id"):
        found = as_id(entry.get(key))
        if found is None:
            raise InputError(f"{where} has no integer or string {key!r}; fix or remove it")
        ids.append(found)
    if not is_number(entry.get("score")):
        raise InputError(f"{where} has no finite number 'score'; fix or remove it")
    return ids[0], ids[1]
