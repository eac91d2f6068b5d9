"""Two evaluations against each other: by hand, by a slow loop, and what happens to files that cannot be compared."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_bigltl import InputError
from sam_bigltl.evaluation.compare import compare, format_comparison

HEADER = ["image_id", "annotation_id", "area", "keep_ratio", "prompt", "clicks", "iou", "predicted_iou"]
# image, annotation, area: 1024 and 9216 belong to two splits each
INSTANCES = [(4, 1, 100.5), (4, 2, 1024), (4, 3, 5000), (30, 7, 9216), (30, 8, 20000), (31, 9, 300)]


def write(
    folder: Path,
    ious: dict[tuple[str, int, float | str], dict[int, float]],
    protocol: str = "A",
    instances: list[tuple[int, int, float]] = INSTANCES,
    **settings: Any,
) -> Path:
    """An evaluation's two files; `ious` is setting (prompt, clicks, keep ratio) -> annotation -> IoU."""
    folder.mkdir(exist_ok=True)
    places = {annotation: (image, area) for image, annotation, area in instances}
    with (folder / "instances.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for (prompt, clicks, ratio), values in ious.items():
            for annotation, iou in values.items():
                image, area = places[annotation]
                writer.writerow([image, annotation, area, ratio, prompt, clicks, iou, 0.9])
    path = folder / "results.json"
    path.write_text(json.dumps({"settings": {"protocol": protocol, **settings}, "summary": []}))
    return path


BOX = ("box", 0, 1.0)
FIRST = {1: 0.5, 2: 0.6, 3: 0.7, 7: 0.8, 8: 0.9, 9: 0.4}
SECOND = {1: 0.55, 2: 0.5, 3: 0.9, 7: 0.8, 8: 0.95, 9: 0.7}


def by_split(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["split"]: row for row in rows}


def test_difference_by_hand(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: FIRST})
    # another order of rows, one instance missing here and one there
    b = write(tmp_path / "b", {BOX: {key: SECOND[key] for key in (8, 7, 3, 2, 9)}})
    rows = by_split(compare(a, b, samples=50))
    assert list(rows) == ["all", "small", "medium", "large"]
    whole = rows["all"]
    assert (whole["prompt"], whole["clicks"], whole["keep_ratio_a"], whole["keep_ratio_b"]) == ("box", 0, 1.0, 1.0)
    assert (whole["instances"], whole["images"], whole["only_a"], whole["only_b"]) == (5, 3, 1, 0)
    assert whole["a"] == pytest.approx(100 * (0.6 + 0.7 + 0.8 + 0.9 + 0.4) / 5)
    assert whole["b"] == pytest.approx(100 * (0.5 + 0.9 + 0.8 + 0.95 + 0.7) / 5)
    assert whole["difference"] == pytest.approx(whole["b"] - whole["a"])
    assert rows["small"]["difference"] == pytest.approx(100 * (-0.1 + 0.3) / 2)  # 2 and 9
    assert rows["medium"]["difference"] == pytest.approx(100 * (-0.1 + 0.2 + 0.0) / 3)  # 2, 3 and 7
    assert rows["large"]["difference"] == pytest.approx(100 * (0.0 + 0.05) / 2)  # 7 and 8, of one image
    assert [rows[name]["images"] for name in rows] == [3, 2, 2, 1]
    assert rows["large"]["low"] is None and rows["large"]["high"] is None
    assert rows["all"]["low"] <= rows["all"]["difference"] <= rows["all"]["high"]


def test_identical_files_differ_by_nothing(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: FIRST, ("point", 3, "auto"): SECOND})
    rows = compare(a, a, samples=200)
    assert len(rows) == 8
    for row in rows:
        assert row["difference"] == 0 and (row["images"] < 2 or (row["low"], row["high"]) == (0, 0))
    assert "*" not in format_comparison(rows).partition("\n\n")[0]


def test_an_empty_split_is_none(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: {1: 0.5, 9: 0.5}})
    rows = by_split(compare(a, a, samples=20))
    assert rows["small"]["instances"] == 2
    for name in ("medium", "large"):
        assert rows[name]["instances"] == rows[name]["images"] == 0
        assert all(rows[name][key] is None for key in ("a", "b", "difference", "low", "high"))
    assert " - " in format_comparison(list(rows.values()))


def random_case(seed: int, images: int) -> tuple[list, dict[int, float], dict[int, float]]:
    """Instances in clusters: images hold 1 to 6, whose differences go together."""
    rng = random.Random(seed)
    instances, first, second = [], {}, {}
    for image in range(images):
        shift = rng.gauss(0.02, 0.08)
        for _ in range(rng.randint(1, 6)):
            annotation = len(instances)
            instances.append((image, annotation, rng.choice([200, 1024, 5000, 9216, 30000])))
            first[annotation] = rng.uniform(0.3, 0.8)
            second[annotation] = first[annotation] + shift + rng.gauss(0, 0.03)
    return instances, first, second


def slow_interval(instances: list, first: dict, second: dict, chosen: Any, samples: int) -> tuple[float, float]:
    """Draw images one by one, pool the instances of those drawn, take the mean difference."""
    rng = random.Random(99)
    of_image: dict[int, list[float]] = {}
    for image, annotation, area in instances:
        differences = of_image.setdefault(image, [])
        if chosen(area):
            differences.append(100 * (second[annotation] - first[annotation]))
    pools = list(of_image.values())
    means = []
    while len(means) < samples:
        pooled = [value for _ in pools for value in rng.choice(pools)]
        if pooled:
            means.append(sum(pooled) / len(pooled))
    means.sort()
    return means[int(0.025 * samples)], means[int(0.975 * samples)]


def test_interval_is_that_of_a_slow_loop(tmp_path: Path) -> None:
    instances, first, second = random_case(seed=5, images=9)
    a = write(tmp_path / "a", {BOX: first}, instances=instances)
    b = write(tmp_path / "b", {BOX: second}, instances=instances)
    rows = by_split(compare(a, b))
    splits = {"all": lambda area: True, "small": lambda area: area <= 1024, "large": lambda area: area >= 9216}
    for name, chosen in splits.items():
        low, high = slow_interval(instances, first, second, chosen, 6000)
        near = 0.05 * (high - low)  # about five times the Monte Carlo error of a percentile
        assert rows[name]["low"] == pytest.approx(low, abs=near), name
        assert rows[name]["high"] == pytest.approx(high, abs=near), name


def test_interval_of_single_instances_is_the_normal_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first = rng.uniform(0.4, 0.6, 400)
    second = first + rng.normal(0.01, 0.05, 400)
    instances = [(number, number, 100) for number in range(400)]
    a = write(tmp_path / "a", {BOX: dict(enumerate(first))}, instances=instances)
    b = write(tmp_path / "b", {BOX: dict(enumerate(second))}, instances=instances)
    row = compare(a, b)[0]
    half = 1.96 * 100 * np.std(second - first) / 20
    assert row["low"] == pytest.approx(row["difference"] - half, abs=0.06 * half)
    assert row["high"] == pytest.approx(row["difference"] + half, abs=0.06 * half)
    assert compare(a, b, samples=99) == compare(a, b, samples=99) != compare(a, b, samples=99, seed=1)


def test_settings_are_paired(tmp_path: Path) -> None:
    point, refined = ("point", 3), ("box", 2)
    a = write(tmp_path / "a", {(*point, 1.0): FIRST, (*point, 0.5): FIRST, BOX: FIRST, (*refined, 0.5): FIRST})
    b = write(
        tmp_path / "b",
        {("box", 0, "auto"): SECOND, ("box", 0, 0.25): SECOND, (*point, 0.5): SECOND, (*point, "auto"): SECOND},
    )
    found = [tuple(row[key] for key in ("prompt", "clicks", "keep_ratio_a", "keep_ratio_b")) for row in compare(a, b)]
    # Points have two ratios on both sides: only equal ones. The box has one on one side: with every other.
    assert found[::4] == [("point", 3, 0.5, 0.5), ("box", 0, 1.0, "auto"), ("box", 0, 1.0, 0.25)]


def test_ingredients_that_only_choose_instances_may_differ(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: FIRST}, ingredients={"crowds": True, "refine": [0], "box": "json"})
    b = write(tmp_path / "b", {BOX: SECOND}, ingredients={"crowds": False, "refine": [0, 1], "box": "json"})
    assert compare(a, b, samples=20)[0]["instances"] == 6


def test_text(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: FIRST, ("point", 1, 0.5): FIRST})
    better = {key: value + 0.05 for key, value in FIRST.items() if key != 9}
    b = write(tmp_path / "b", {BOX: better, ("point", 1, 0.5): dict(list(SECOND.items())[:3])})
    text = format_comparison(compare(a, b, samples=300))
    table, _, notes = text.partition("\n\n")
    lines = table.splitlines()
    assert len(lines) == 9 and len({line.index(" all ") for line in (lines[1], lines[5])}) == 1
    assert lines[1].split() == "box 0 1.0 1.0 all 70.00 75.00 +5.00 [+5.00, +5.00] 5 2 *".split()
    assert "Paired 3 to 5 instances of 1 to 2 images. Left out: 1 to 3 only in a, 0 only in b." in notes
    assert "bootstrap over images, 300 samples" in notes


def broken(tmp_path: Path, case: str) -> tuple[Path, Path]:
    a, b = write(tmp_path / "a", {BOX: FIRST}), write(tmp_path / "b", {BOX: SECOND})
    table = tmp_path / "b" / "instances.csv"
    if case == "missing file":
        b.unlink()
    elif case == "folder":
        b = b.parent
    elif case == "no table":
        table.unlink()
    elif case == "not JSON":
        b.write_text("{\n'settings': ")
    elif case == "not results":
        b.write_text('{"images": []}')
    elif case == "other columns":
        table.write_text("a,b\n1,2\n")
    elif case == "row cut":
        table.write_text(table.read_text() + "30,8\n")
    elif case == "not a number":
        table.write_text(table.read_text().replace("0.55", "high"))
    elif case == "not text":
        table.write_bytes(b"\xff\xfe\x00")
    elif case == "no rows":
        table.write_text(",".join(HEADER) + "\n")
    elif case == "twice":
        table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    elif case == "no instances":
        b = write(tmp_path / "b", {BOX: {1: 0.5}}, instances=[(5, 1, 100.5)])
    elif case == "no settings":
        b = write(tmp_path / "b", {("point", 1, 1.0): SECOND})
    elif case == "protocols":
        b = write(tmp_path / "b", {BOX: SECOND}, protocol="C")
    elif case == "ingredients":
        a = write(tmp_path / "a", {BOX: FIRST}, ingredients={"crowds": True, "box": "json"})
        b = write(tmp_path / "b", {BOX: SECOND}, ingredients={"crowds": False, "box": "tight"})
    elif case == "areas":
        b = write(tmp_path / "b", {BOX: {1: 0.5}}, instances=[(4, 1, 999)])
    return a, b


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing file", "does not exist"),
        ("folder", "cannot be read"),
        ("no table", "instances.csv does not exist"),
        ("not JSON", "is not valid JSON"),
        ("not results", "is not a results file"),
        ("other columns", "has no column 'image_id'"),
        ("row cut", "line 8 is not an instance's row"),
        ("not a number", "line 2 is not an instance's row"),
        ("not text", "is not CSV"),
        ("no rows", "has no instances"),
        ("twice", "an instance twice at prompt box, clicks 0, keep ratio 1.0"),
        ("no instances", "no instance in common"),
        ("no settings", "no setting in common: box 0 at 1.0 against point 1 at 1.0"),
        ("protocols", 'different protocols (protocol "A" and "C")'),
        ("ingredients", 'different protocols (box "json" and "tight")'),
        ("areas", "annotation 1 of image 4 has area 100.5"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        compare(*broken(tmp_path, case), samples=20)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_samples_must_be_positive(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {BOX: FIRST})
    with pytest.raises(InputError, match="0 bootstrap samples"):
        compare(a, a, samples=0)
