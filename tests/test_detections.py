"""Detections read, masks written, and average precision against slow and independent computations."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_toy import compressed, uncompressed
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import sam_bigltl.evaluation.detections as detections
from sam_bigltl import InputError
from sam_bigltl.evaluation import CocoImage, load_coco
from sam_bigltl.evaluation.detections import Detection, average_precision, load_detections, write_results

SIZE = (130, 150)  # height, width: room for objects of every size class
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = {"AP": (0, 1e10), "APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}


def save(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- a random data set
def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[max(0, round(y)) : max(0, round(y + height)), max(0, round(x)) : max(0, round(x + width))] = True
    return mask


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations (RLEs, crowds among them) and results (jittered masks, tied scores, wrong categories, misses)."""
    rng = np.random.default_rng(seed)
    images = [{"id": id, "file_name": f"{id}.jpg", "height": SIZE[0], "width": SIZE[1]} for id in (9, 4, 7, 5)]
    annotations, results = [], []
    for image in images[:3]:  # the last one has results only
        for _ in range(7):
            side = rng.choice([12, 31, 33, 60, 97, 110]) + rng.integers(0, 8, 2)
            box = [*(rng.random(2) * (SIZE[1] - side[0], SIZE[0] - side[1])), *side]
            mask, category = rectangle(*box), int(rng.choice([1, 3]))
            segmentation = uncompressed(mask) if rng.random() < 0.5 else compressed(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                    "iscrowd": int(rng.random() < 0.15), "area": int(mask.sum()), "segmentation": segmentation,
                    "bbox": [0, 0, 1, 1],
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                jittered = rectangle(*np.add(box, rng.normal(0, 2, 4)))
                results.append((image["id"], category if rng.random() < 0.8 else 1, jittered))
    results += [(5, 3, rectangle(3, 3, 40, 40)), (9, 1, rectangle(0, 0, 0, 0)), (4, 2, rectangle(3, 3, 9, 9))]
    rng.shuffle(results)
    rows = [
        {"image_id": id, "category_id": category, "bbox": [1, 2, 3, 4], "score": float(rng.integers(1, 30) / 30)}
        | {"segmentation": compressed(mask)}
        for id, category, mask in results
    ]
    categories = [{"id": id, "name": str(id)} for id in (3, 1, 2)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


# ---------------------------------------------------------------- slow and independent computations
def decode(rle: dict[str, Any]) -> np.ndarray:
    rle = coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
    return coco_mask.decode(rle).astype(bool)


def overlap(found: np.ndarray, target: np.ndarray, crowd: bool) -> float:
    """IoU; with a crowd, the share of what was found that lies in it."""
    whole = found.sum() if crowd else (found | target).sum()
    return (found & target).sum() / whole if whole else 0.0


def decoded(content: dict, rows: list[dict]) -> dict[int, list[tuple[list, list]]]:
    """Of every category, image by image: (targets, found) = ([(mask, crowd?, area)], [(score, mask)])."""
    groups: dict[int, list[tuple[list, list]]] = {}
    for category in content["categories"]:
        for image in sorted(image["id"] for image in content["images"]):
            here = {"image_id": image, "category_id": category["id"]}.items()
            annotations = [entry for entry in content["annotations"] if here <= entry.items()]
            targets = [(decode(a["segmentation"]), bool(a["iscrowd"]), a["area"]) for a in annotations]
            found = [(row["score"], decode(row["segmentation"])) for row in rows if here <= row.items()]
            groups.setdefault(category["id"], []).append((targets, sorted(found, key=lambda item: -item[0])[:100]))
    return groups


def verdicts(found: list[tuple], targets: list[tuple], threshold: float, low: float, high: float) -> list[tuple]:
    """(score, right?) of the results of one image and category that count, best first."""
    ignored = [crowd or not low <= area <= high for _, crowd, area in targets]
    taken, judged = set(), []
    for score, mask in found:
        fits = [(overlap(mask, target, crowd), n) for n, (target, crowd, _) in enumerate(targets)]
        fits = [(iou, n) for iou, n in fits if iou >= threshold and (n not in taken or targets[n][1])]
        counted = [fit for fit in fits if not ignored[fit[1]]]
        if counted:
            taken.add(max(counted)[1])
            judged.append((score, True))
        elif fits:
            taken.add(max(fits)[1])
        elif low <= mask.sum() <= high:
            judged.append((score, False))
    return judged


def slow_ap(groups: dict, thresholds: np.ndarray, low: float, high: float) -> float | None:
    """AP in percent, written from COCO's description of it: mean of interpolated precision at 101 recalls."""
    values = []
    for images in groups.values():
        areas = [area for targets, _ in images for _, crowd, area in targets if not crowd]
        count = sum(low <= area <= high for area in areas)
        for threshold in thresholds if count else ():
            judged = [v for targets, found in images for v in verdicts(found, targets, threshold, low, high)]
            judged.sort(key=lambda item: -item[0])
            right = np.cumsum([is_right for _, is_right in judged])
            precision, recall = right / np.arange(1, len(right) + 1), right / count
            values.append(np.mean([max(precision[recall >= level], default=0) for level in RECALLS]))
    return 100 * float(np.mean(values)) if values else None


def pycocotools_ap(content: dict, rows: list[dict]) -> dict[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        target = COCO()
        target.dataset = json.loads(json.dumps(content))
        target.createIndex()
        results = target.loadRes([{key: row[key] for key in row if key != "bbox"} for row in rows])
        evaluator = COCOeval(target, results, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return {name: None if value < 0 else 100 * value for name, value in zip(names, evaluator.stats)}


# ---------------------------------------------------------------- average precision
@pytest.mark.parametrize("seed", [0, 1])
def test_ap_against_slow_computation(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content, rows = random_case(seed)
    measured = average_precision(save(tmp_path / "a.json", content), save(tmp_path / "r.json", rows))
    groups = decoded(content, rows)
    expected = {name: slow_ap(groups, IOU_THRESHOLDS, *size) for name, size in SIZES.items()}
    expected["AP50"] = slow_ap(groups, IOU_THRESHOLDS[:1], *SIZES["AP"])
    expected["AP75"] = slow_ap(groups, IOU_THRESHOLDS[5:6], *SIZES["AP"])
    assert measured == pytest.approx(expected, abs=1e-6)
    assert 5 < measured["AP"] < 95 and len({round(value, 3) for value in measured.values()}) == 6
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(2, 10))
def test_ap_against_pycocotools(seed: int, tmp_path: Path) -> None:
    content, rows = random_case(seed)
    measured = average_precision(save(tmp_path / "a.json", content), save(tmp_path / "r.json", rows))
    assert measured == pytest.approx(pycocotools_ap(content, rows), abs=1e-6)


def test_ap_of_polygons_is_pycocotools(tmp_path: Path) -> None:
    content, rows = random_case(10)
    rng = np.random.default_rng(0)
    for annotation in content["annotations"]:
        x, y, angle = *(rng.random(2) * 60 + 20), np.linspace(0, 6, 9)
        radius = rng.random(9) * 30 + 15
        points = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).ravel().tolist()
        annotation.update(segmentation=[points, [1, 1, 5, 1, 5, 7.5]], iscrowd=0, area=900.5)
    gold = {row["id"]: row for row in content["annotations"]}
    for image in load_coco(save(tmp_path / "a.json", content)):
        for annotation in image.annotations:
            mask = np.roll(annotation.mask(), 2, 1)
            row = {"image_id": image.id, "category_id": gold[annotation.id]["category_id"], "score": rng.random()}
            rows.append({**row, "bbox": [1, 1, 1, 1], "segmentation": compressed(mask)})
    measured = average_precision(tmp_path / "a.json", save(tmp_path / "r.json", rows))
    assert measured == pytest.approx(pycocotools_ap(content, rows), abs=1e-6) and measured["AP"] > 20


def test_hundred_results_of_a_category_in_an_image_count(tmp_path: Path) -> None:
    content, _ = random_case(0)
    content["annotations"] = [content["annotations"][0] | {"iscrowd": 0, "category_id": 1, "image_id": 9}]
    target = compressed(decode(content["annotations"][0]["segmentation"]))
    wrong = {"image_id": 9, "category_id": 1, "segmentation": compressed(rectangle(0, 0, 1, 1)), "bbox": [0, 0, 1, 1]}
    rows = [{**wrong, "score": 0.9} for _ in range(99)] + [{**wrong, "score": 0.5, "segmentation": target}]
    annotations, results = save(tmp_path / "a.json", content), tmp_path / "r.json"
    assert average_precision(annotations, save(results, rows))["AP"] == pytest.approx(1.0)
    assert average_precision(annotations, save(results, [{**wrong, "score": 0.6}, *rows]))["AP"] == 0


def test_ids_do_not_matter(tmp_path: Path) -> None:
    """Not even 0, which pycocotools takes for "not matched", nor strings."""
    content, rows = random_case(0)
    expected = average_precision(save(tmp_path / "a.json", content), save(tmp_path / "r.json", rows))
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    assert average_precision(save(tmp_path / "a.json", content), tmp_path / "r.json") == pytest.approx(expected)
    for entry in (*content["annotations"], *rows):
        entry.update(image_id=f"i{entry['image_id']}", category_id=f"c{entry['category_id']}")
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = ("i" if "file_name" in entry else "c") + str(entry["id"])
    renamed = average_precision(save(tmp_path / "a.json", content), save(tmp_path / "r.json", rows))
    assert renamed == pytest.approx(expected)


def test_categories_in_turns_and_some_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, rows = random_case(3)
    annotations, results = save(tmp_path / "a.json", content), save(tmp_path / "r.json", rows)
    whole = average_precision(annotations, results)
    monkeypatch.setattr(detections, "PAIRS", 1)
    assert average_precision(annotations, results) == whole

    chosen = {9, 5}
    part = {**content, "images": [image for image in content["images"] if image["id"] in chosen]}
    part["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    expected = pycocotools_ap(part, [row for row in rows if row["image_id"] in chosen])
    assert average_precision(annotations, results, image_ids=chosen) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="none of the image_ids"):
        average_precision(annotations, results, image_ids=[77])
    with pytest.raises(ValueError, match="'voc'"):
        average_precision(annotations, results, style="voc")


def test_no_result_at_all_is_zero(tmp_path: Path) -> None:
    measured = average_precision(save(tmp_path / "a.json", random_case(0)[0]), save(tmp_path / "r.json", []))
    assert set(measured) == {"AP", "AP50", "AP75", "APs", "APm", "APl"} and set(measured.values()) == {0.0}


# ---------------------------------------------------------------- reading and writing
IMAGES = [CocoImage(id, f"{id}.jpg", SIZE) for id in (4, 9, "x")]
GOOD = {"image_id": 4, "category_id": 18, "bbox": [1.25, 2, 30, 4.5], "score": 0.75}


def test_detections_by_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    entries = [GOOD, {**GOOD, "image_id": "x"}, {**GOOD, "score": 0.875}, {**GOOD, "image_id": 5}, {**GOOD, "extra": 1}]
    found, unknown = load_detections(save(tmp_path / "d.json", entries), IMAGES)
    first = Detection(4, 18, (1.25, 2, 30, 4.5), 0.75)
    assert found == {4: [first, Detection(4, 18, (1.25, 2, 30, 4.5), 0.875), first], 9: [], "x": [
        Detection("x", 18, (1.25, 2, 30, 4.5), 0.75)
    ]}  # fmt: skip
    assert unknown == 1


BAD = {
    "not JSON": ("[{", "is not valid JSON"),
    "annotations": ({"images": [], "annotations": []}, "is not a list of detections"),
    "empty": ([], "holds no detection"),
    "numbers": ([1], "detection 0 is not an object"),
    "no image": ([GOOD, {**GOOD, "image_id": None}], "detection 1 has no integer or string 'image_id'"),
    "no category": ([{**GOOD, "category_id": 1.5}], "detection 0 has no integer or string 'category_id'"),
    "no score": ([GOOD, GOOD, {"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4]}], "detection 2 has no finite"),
    "score NaN": ([{**GOOD, "score": float("nan")}], "detection 0 has no finite number 'score'"),
    "no box": ([{**GOOD, "bbox": None}], "detection 0 has no 'bbox' of four finite numbers"),
    "short box": ([{**GOOD, "bbox": [1, 2, 3]}], "detection 0 has no 'bbox' of four finite numbers"),
    "infinite box": ([{**GOOD, "bbox": [1, 2, 3, float("inf")]}], "detection 0 has no 'bbox' of four finite numbers"),
    "flat box": ([GOOD, {**GOOD, "bbox": [1, 2, 3, 0]}], "detection 1 has an empty 'bbox' [1, 2, 3, 0]"),
    "bad in an unknown image": ([GOOD, {**GOOD, "image_id": 5, "score": "1"}], "detection 1 has no finite number"),
    "other images": ([{**GOOD, "image_id": 5}], "seems to belong to another dataset"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_detections_are_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    with pytest.raises(InputError) as error:
        load_detections(save(tmp_path / "d.json", content), IMAGES)
    assert message in one_line(error) and "d.json" in one_line(error)


def test_missing_detections_are_one_line(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.json", "no.json does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError) as error:
            load_detections(path, IMAGES)
        assert message in one_line(error)


def test_written_results(tmp_path: Path) -> None:
    path, detection = tmp_path / "results.json", Detection(4, 18, (1.25, 2, 30, 4.5), 0.1234567890123)
    rle = compressed(rectangle(3, 4, 50, 60))
    write_results(path, ((detection, SIZE, rle["counts"]) for _ in range(2)))
    row = {"image_id": 4, "category_id": 18, "bbox": [1.25, 2, 30, 4.5], "score": 0.1234567890123, "segmentation": rle}
    assert json.loads(path.read_text()) == [row, row]
    assert load_detections(path, IMAGES)[0][4] == [detection] * 2  # the results are detections, too
    write_results(path, [])
    assert json.loads(path.read_text()) == [] and [entry.name for entry in tmp_path.iterdir()] == ["results.json"]

    def interrupted() -> Any:
        yield detection, SIZE, rle["counts"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(path, interrupted())
    assert json.loads(path.read_text()) == [] and (tmp_path / "results.json.part").exists()
    with pytest.raises(InputError) as error:
        write_results(tmp_path / "no" / "results.json", [])
    assert "cannot write" in one_line(error)


ROW = {**GOOD, "category_id": 1, "segmentation": compressed(rectangle(1, 1, 9, 9))}
BAD_RESULTS = {
    "annotations": ({"images": []}, "is not a list"),
    "other image": ([ROW, {**ROW, "image_id": 77}], "result 1 is of image 77"),
    "no mask": ([{**ROW, "segmentation": None}], "result 0 has no compressed RLE"),
    "polygon": ([{**ROW, "segmentation": [[1, 2, 3, 4, 5, 6]]}], "result 0 has no compressed RLE"),
    "other size": ([{**ROW, "segmentation": compressed(np.eye(6) > 0)}], "result 0 has a segmentation of size [6, 6]"),
    "cut": ([{**ROW, "segmentation": {"size": [*SIZE], "counts": "0" * 50}}], "counts do not fill 130 x 150"),
    "other categories": ([{**ROW, "category_id": 90}], "only categories that the annotations lack, the first is 90"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_results_are_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD_RESULTS[case]
    annotations = save(tmp_path / "a.json", random_case(0)[0])
    with pytest.raises(InputError) as error:
        average_precision(annotations, save(tmp_path / "r.json", content))
    assert message in one_line(error)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("categories", None, "no list 'categories'"),
        ("categories", [{"id": 1}, {"id": 1}], "not unique"),
        ("categories", [{"id": 1}], "has category 3, which is not in 'categories'"),
    ],
)
def test_bad_categories_are_one_line(key: str, value: Any, message: str, tmp_path: Path) -> None:
    annotations = save(tmp_path / "a.json", {**random_case(0)[0], key: value})
    with pytest.raises(InputError) as error:
        average_precision(annotations, save(tmp_path / "r.json", [ROW]))
    assert message in one_line(error)
