"""Two evaluations of the same instances against each other: the difference of their mIoU, with its uncertainty."""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import csv_text
from ..data.tables import aligned
from ..errors import InputError
from .metrics import size_splits

SPLITS = ("all", "small", "medium", "large")
COLUMNS = ("image_id", "annotation_id", "area", "keep_ratio", "prompt", "clicks", "iou")  # those that are read
# A protocol's ingredients that choose instances and settings, which are paired anyway; the others change every IoU.
CHOOSING = ("crowds", "min_area", "refine")
CHUNK = 1_000_000  # image weights held at a time: 8 MB

Setting = tuple[str, int, "float | str"]  # prompt, clicks, keep ratio


@dataclass
class _Evaluation:
    """One `results.json` with its `instances.csv`. Instances are numbered across both evaluations.

    Attributes:
        protocol: its name, and where `results.json` lists them, the ingredients that change an IoU.
        measured: setting -> the instances' numbers and their IoUs.
        areas: instance number -> area, square pixels.
    """

    protocol: dict[str, Any]
    measured: dict[Setting, tuple[array, array]] = field(default_factory=dict)
    areas: dict[int, float] = field(default_factory=dict)


def compare(first: str | Path, second: str | Path, samples: int = 10000, seed: int = 0) -> list[dict[str, Any]]:
    """The difference of mIoU between two evaluations, over the instances that both have.

    Settings with equal prompt, clicks and keep ratio are paired; where one side has a single keep ratio for a prompt
    and clicks, it is paired with every keep ratio of the other side. Instances are paired by image and annotation id.

    The interval is a paired percentile bootstrap over images: each sample draws as many images as there are, with
    replacement, every drawn image with all its instances on both sides. Instances of one photograph are not
    independent, so drawing them one by one would give too narrow an interval.

    Args:
        first, second: paths of two `results.json`; next to each lies its `instances.csv`.
        samples: of the bootstrap.
        seed: of the bootstrap; the same seed gives the same interval.

    Returns:
        One dict per pair of settings and split: prompt, clicks, keep_ratio_a, keep_ratio_b, split ("all", "small",
        "medium", "large", both ends inclusive as in `summarize`); a, b (mIoU in percent), difference (b - a), low,
        high (95 % interval of the difference), instances, images (those behind these numbers); only_a, only_b
        (instances that only one side has, left out), samples. a, b and difference are None where a split is empty,
        low and high where fewer than two images have instances of it.

    Raises:
        InputError: a file is missing or is not an evaluation's, the protocols or the annotations differ, or the two
            have no setting or no instance in common.
    """
    if samples < 1:
        raise InputError(f"{samples} bootstrap samples are too few; give at least 1, for example 10000")
    numbers: dict[tuple[str, str], int] = {}
    a, b = (_read(Path(path), numbers) for path in (first, second))
    _check_protocols(a.protocol, b.protocol, first, second)
    pairs = _pairs(a.measured, b.measured)
    if not pairs:
        raise InputError(
            f"{first} and {second} have no setting in common: {_settings_text(a)} against {_settings_text(b)}; "
            "evaluate both with the same prompts, clicks and keep ratios"
        )
    areas = _common_areas(a, b, numbers, first, second)
    splits = size_splits(areas)
    image_names = {name: index for index, name in enumerate(dict.fromkeys(image for image, _ in numbers))}
    images = np.array([image_names[image] for image, _ in numbers])

    rows: list[dict[str, Any]] = []
    differences, counts = [], []
    for setting_a, setting_b in pairs:
        iou_a, iou_b = (_ious(side.measured[s], len(areas)) for side, s in ((a, setting_a), (b, setting_b)))
        in_a, in_b = ~np.isnan(iou_a), ~np.isnan(iou_b)
        for split in SPLITS:
            used = in_a & in_b & splits[split]
            per_image = np.bincount(images[used], minlength=len(image_names))
            weights = iou_b[used] - iou_a[used]
            counts.append(per_image)
            differences.append(np.bincount(images[used], weights=weights, minlength=len(image_names)))
            some = bool(used.any())
            rows.append(
                {
                    "prompt": setting_a[0],
                    "clicks": setting_a[1],
                    "keep_ratio_a": setting_a[2],
                    "keep_ratio_b": setting_b[2],
                    "split": split,
                    "a": 100 * float(iou_a[used].mean()) if some else None,
                    "b": 100 * float(iou_b[used].mean()) if some else None,
                    "difference": 100 * float(weights.mean()) if some else None,
                    "low": None,
                    "high": None,
                    "instances": int(used.sum()),
                    "images": int(np.count_nonzero(per_image)),
                    "only_a": int(np.count_nonzero(in_a & ~in_b & splits[split])),
                    "only_b": int(np.count_nonzero(in_b & ~in_a & splits[split])),
                    "samples": samples,
                }
            )
    if not any(row["instances"] for row in rows):
        raise InputError(
            f"{first} and {second} have no instance in common (image and annotation ids); "
            "evaluate both on the same annotations"
        )
    intervals = _bootstrap(np.stack(differences, axis=1), np.stack(counts, axis=1), samples, seed)
    for row, (low, high) in zip(rows, intervals):
        if row["images"] >= 2:  # one image, drawn any number of times, always has the same mean
            row["low"], row["high"] = 100 * float(low), 100 * float(high)
    return rows


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compare` as aligned plain text; "*" marks a difference whose interval excludes 0."""
    header = "prompt,clicks,keep a,keep b,split,a,b,b - a,95 % interval,instances,images,"
    table = [tuple(header.split(","))]
    for row in rows:
        numbers = [_number(row["a"], ""), _number(row["b"], ""), _number(row["difference"], "+")]
        interval = "-" if row["low"] is None else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        mark = "*" if row["low"] is not None and (row["low"] > 0 or row["high"] < 0) else ""
        setting = [row[name] for name in ("prompt", "clicks", "keep_ratio_a", "keep_ratio_b", "split")]
        table.append((*map(str, setting), *numbers, interval, str(row["instances"]), str(row["images"]), mark))
    whole = [row for row in rows if row["split"] == "all"]
    paired, photos, only_a, only_b = (
        _span([row[name] for row in whole]) for name in ("instances", "images", "only_a", "only_b")
    )
    lines = [
        aligned(table),
        "",
        f"Paired {paired} instances of {photos} images. Left out: {only_a} only in a, {only_b} only in b.",
        "a, b: mIoU in percent over the paired instances. Interval: paired bootstrap over images, "
        f"{rows[0]['samples']} samples.",
        "* the interval excludes 0",
    ]
    return "\n".join(lines)


def _read(path: Path, numbers: dict[tuple[str, str], int]) -> _Evaluation:
    """Read one evaluation; instances not seen before get the next of `numbers`."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"results file {path} does not exist; give the results.json of an evaluation") from None
    except OSError as error:
        raise InputError(f"results file {path} cannot be read: {error.strerror}; give a results.json") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid JSON ({reason}); give the results.json of an evaluation") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict) or "summary" not in content:
        raise InputError(f"{path} is not a results file of `sam-bigltl eval`: it needs 'settings' and 'summary'")
    ingredients = content["settings"].get("ingredients")
    ingredients = ingredients if isinstance(ingredients, dict) else {}
    protocol = {name: value for name, value in ingredients.items() if name not in CHOOSING}
    evaluation = _Evaluation({"protocol": content["settings"].get("protocol"), **protocol})
    table = path.with_name("instances.csv")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            _read_instances(stream, table, evaluation, numbers)
    except FileNotFoundError:
        raise InputError(f"{table} does not exist; it belongs next to {path.name}, where `eval` wrote it") from None
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{table} is not CSV ({reason}); give an evaluation's own files") from error
    if not evaluation.measured:
        raise InputError(f"{table} has no instances; evaluate again")
    return evaluation


def _read_instances(stream: Any, table: Path, evaluation: _Evaluation, numbers: dict[tuple[str, str], int]) -> None:
    rows = csv.reader(stream)
    header = next(rows, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{table} has no column {missing[0]!r}; give the instances.csv of `sam-bigltl eval`")
    positions = [header.index(name) for name in COLUMNS]
    for row in rows:
        try:
            image, annotation, area, ratio, prompt, clicks, iou = (row[position] for position in positions)
            setting = (prompt, int(clicks), ratio if ratio == "auto" else float(ratio))
            values = float(area), float(iou)
        except (ValueError, IndexError):
            values = (math.nan, math.nan)
        if not all(map(math.isfinite, values)):
            raise InputError(f"{table} line {rows.line_num} is not an instance's row; give an evaluation's own files")
        number = numbers.setdefault((csv_text(image), csv_text(annotation)), len(numbers))
        evaluation.areas[number] = values[0]
        instances, ious = evaluation.measured.setdefault(setting, (array("q"), array("d")))
        instances.append(number)
        ious.append(values[1])
    for setting, (instances, _) in evaluation.measured.items():
        if len(set(instances)) < len(instances):
            where = "prompt {}, clicks {}, keep ratio {}".format(*setting)
            raise InputError(f"{table} has an instance twice at {where}; annotation ids must be unique in an image")


def _check_protocols(a: dict[str, Any], b: dict[str, Any], first: str | Path, second: str | Path) -> None:
    different = [name for name in a if name in b and a[name] != b[name]]
    if not different:
        return
    name = different[0]  # the protocol's own where that differs: its ingredients then follow from it
    raise InputError(
        f"{first} and {second} were measured by different protocols ({name} {json.dumps(a[name])} and "
        f"{json.dumps(b[name])}), whose numbers cannot be compared; evaluate both by one"
    )


def _pairs(a: dict[Setting, Any], b: dict[Setting, Any]) -> list[tuple[Setting, Setting]]:
    pairs = []
    for kind in dict.fromkeys(setting[:2] for setting in a):
        of_a, of_b = ([setting for setting in side if setting[:2] == kind] for side in (a, b))
        single = len(of_a) == 1 or len(of_b) == 1
        pairs += [(left, right) for left in of_a for right in of_b if single or left == right]
    return pairs


def _common_areas(
    a: _Evaluation, b: _Evaluation, numbers: dict[tuple[str, str], int], first: str | Path, second: str | Path
) -> np.ndarray:
    """Every instance's area; an instance whose two areas differ comes from two different sets of annotations."""
    for (image, annotation), number in numbers.items():
        left, right = a.areas.get(number), b.areas.get(number)
        if left is not None and right is not None and not math.isclose(left, right, rel_tol=1e-6):
            raise InputError(
                f"annotation {annotation} of image {image} has area {left:g} in {first} and {right:g} in "
                f"{second}; evaluate both on the same annotations"
            )
    return np.array([a.areas.get(number, b.areas.get(number)) for number in range(len(numbers))])


def _ious(measured: tuple[array, array], count: int) -> np.ndarray:
    """The IoUs by instance number, (count,); NaN where this setting lacks the instance."""
    ious = np.full(count, np.nan)
    ious[np.asarray(measured[0])] = measured[1]
    return ious


def _bootstrap(differences: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The 2.5th and 97.5th percentile of every column's resampled mean difference, shape (columns, 2).

    Args:
        differences, counts: (images, columns): per image the sum of the differences and the number of instances.
    """
    drawable = counts.any(axis=1)  # an image without any paired instance is not part of the sample
    differences, counts = differences[drawable], counts[drawable].astype(float)
    rng, images = np.random.default_rng(seed), len(counts)
    means = np.empty((samples, counts.shape[1]))
    step = max(1, CHUNK // images)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        drawn = rng.integers(0, images, (size, images)) + images * np.arange(size)[:, None]
        # How often each image was drawn: multinomial weights, made faster than by numpy's multinomial.
        weights = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(float)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no image of a rare split was drawn: left out below
            means[start : start + size] = (weights @ differences) / (weights @ counts)
    return np.array([_percentiles(column[~np.isnan(column)]) for column in means.T])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    return tuple(np.percentile(values, [2.5, 97.5])) if len(values) else (math.nan, math.nan)


def _settings_text(evaluation: _Evaluation) -> str:
    """Such as `box 0 at 1.0, point 1 at 0.5`: prompt, clicks and keep ratio."""
    return ", ".join(f"{prompt} {clicks} at {ratio}" for prompt, clicks, ratio in evaluation.measured)


def _number(value: float | None, sign: str) -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _span(values: Sequence[int]) -> str:
    """One number where all settings agree, else the smallest and the largest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
