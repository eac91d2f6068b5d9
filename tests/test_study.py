"""The study runs in pieces, and its tables, intervals and figure come from what it measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_cli
import torch
from research import layer_worth, rivals, study, study_report, study_times
from research.cells import CELLS, Cell
from training_toy import write_shapes

from sam_bigltl.convert import registry, save_sam
from sam_bigltl.convert.sam import LITTLE_PATH
from sam_bigltl.errors import InputError

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the study trains with Muon: torch 2.9 on")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    document = json.loads(write_shapes(folder).read_text())
    for image in document["images"]:
        image["source"] = "shapes"
    for name in ("train", "dev"):
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def teacher(tmp_path: Path):
    with tiny_cli.registered():
        torch.manual_seed(0)
        save_sam(registry.sam_model_registry["vit_tiny"](), tmp_path / "vit_tiny.safetensors")
        yield tmp_path / "vit_tiny.safetensors"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@needs_muon
def test_the_study_runs_in_pieces(tmp_path, data, teacher, monkeypatch, capsys):
    monkeypatch.setattr(study, "TRAINING", study.TRAINING | {"batch_size": 2, "warmup": 1})
    table = tmp_path / "results" / "study.csv"

    def run(names, steps):
        study.Study(teacher, data, tmp_path / "runs", table).run(study.jobs_of(names, steps, seeds=1))
        return capsys.readouterr().out

    names = ["teacher", "ours", "paper", "merging inside", "1 layers fewer"]
    monkeypatch.setitem(CELLS, "1 layers fewer", Cell(lambda material: rivals.shallow(material.teacher, (1,))))
    run(names[:2], 2)
    before = table.read_text()
    printed = run(names, 2)
    assert table.read_text().startswith(before) and "ours" not in printed  # no cell twice
    assert "ours seed 0 steps 0" in run(["ours"], 0)  # not trained: another row
    rows = rows_of(table)
    assert {row["cell"] for row in rows} == set(names)
    assert {row["keep_ratio"] for row in rows if row["cell"] == "ours"} == {"0.5", "0.25", "0.125"}
    photos = rows_of(table.with_name("study_photos.csv"))
    counts = np.array(photos[0]["sums"].split(), float)
    for row in photos[1:]:  # the sums by photograph are those of the table
        (same,) = [r for r in rows if all(r[key] == row[key] for key in study.COLUMNS[:7])]
        mean = 100 * sum(map(float, row["sums"].split())) / counts.sum()
        assert mean == pytest.approx(float(same["all"]), abs=0.01)
        agreement = 100 * sum(map(float, row["agreement_sums"].split())) / counts.sum()
        assert agreement == pytest.approx(float(same["agreement"]), abs=0.01)
        assert (agreement == 100) == (row["cell"] == "teacher")  # with itself
    # Training changed the student; the teacher is not trained.
    figures = {(r["cell"], r["steps"]) for r in rows}
    assert ("teacher", "0") in figures and ("teacher", "2") not in figures


@needs_muon
def test_what_training_leaves_alone(tmp_path, data, teacher, monkeypatch):
    monkeypatch.setattr(study, "TRAINING", study.TRAINING | {"batch_size": 2, "warmup": 1})
    whole = study.Study(teacher, data, tmp_path / "runs", tmp_path / "study.csv")
    cell = CELLS["LITTLE path trained"]
    before = whole.material(cell).student.image_encoder.state_dict()
    after = whole._trained(cell, study.Job("LITTLE path trained", 0, 2))[0].image_encoder.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(LITTLE_PATH.match(name) for name in changed)
    assert not any(".router." in name for name in changed)


def test_later_clicks_are_scored_and_not_compared(tmp_path, data, teacher):
    table = tmp_path / "study.csv"
    study.Study(teacher, data, tmp_path / "runs", table, clicks=(1, 3)).run(study.jobs_of(["teacher", "ours"], 0))
    rows = rows_of(table)
    assert {(row["prompt"], row["clicks"]) for row in rows} == {("box", "0"), ("point", "1"), ("point", "3")}
    assert all(bool(row["agreement"]) == (row["clicks"] != "3") for row in rows)
    assert len(study_report.read_results(tmp_path).of(rows[0]["teacher"])) == 4  # the teacher, and ours at three ratios


def test_a_fit_without_e_blocks_is_another_fit(tmp_path, data, teacher):
    whole = study.Study(teacher, data, tmp_path / "runs", tmp_path / "study.csv")
    students = [whole.material(CELLS[name]).student for name in ("ours", "fitted without E-blocks")]
    for block in students[1].image_encoder.little_blocks:
        assert not block.mlp.lin2.weight.any() and not block.attn.proj.weight.any()
    ours, theirs = (student.image_encoder.transitions[0].up.weight for student in students)
    assert not torch.equal(ours, theirs)


def test_layers_are_counted_down_and_explained(tmp_path, data, teacher):
    whole, path = study.Study(teacher, data, tmp_path / "runs", tmp_path / "study.csv"), tmp_path / "layers.csv"
    layer_worth.run(whole, path)
    layer_worth.run(whole, path)
    rows = rows_of(path)
    assert [(row["skipped"], len(row["layers"].split())) for row in rows] == [("0", 2), ("1", 1), ("2", 0)]
    shares = [float(row["linear_share"]) for row in rows]
    assert shares[0] == pytest.approx(1, abs=1e-3) and shares[0] > shares[1] > shares[2]


def test_times_of_every_format(tmp_path, data, teacher):
    whole, path = study.Study(teacher, data, tmp_path / "runs", tmp_path / "study.csv"), tmp_path / "times.csv"
    study_times.measure_cells(whole, ["teacher", "flat areas 0.5", "mask router"], path, runs=1)
    rows = rows_of(path)
    assert [row["cell"] for row in rows] == ["teacher"] * 3 + ["flat areas 0.5"] * 3
    assert {row["format"] for row in rows} == {"float32", "float32 in kernels", "int8 in kernels"}
    assert all(float(row["median_ms"]) > 0 and row["model"] == "vit_tiny" for row in rows)


def test_an_interval_against_its_formula():
    rng = np.random.default_rng(3)
    counts, gain = np.full(400, 2.0), rng.normal(0.02, 0.1, 400)
    low, high = study_report.interval(gain, counts)
    half = 100 * 1.96 * gain.std() / 400**0.5 / 2  # counts are equal, so the mean's normal interval holds
    middle = 100 * gain.sum() / counts.sum()
    assert low == pytest.approx(middle - half, abs=0.1 * half) and high == pytest.approx(middle + half, abs=0.1 * half)


def test_ours_is_taken_at_the_rivals_time():
    counts = np.array([1.0, 3.0])
    ours = [(100.0, np.array([0.8, 2.4])), (50.0, np.array([0.6, 2.0]))]
    middle, low, high = study_report.difference(ours, 75.0, np.array([0.7, 2.0]), counts)
    assert middle == pytest.approx(100 * (0.0 + 0.2) / 4) and low <= middle <= high
    assert study_report.difference(ours, 101.0, np.zeros(2), counts) is None


def write_results(folder: Path) -> None:
    lines, photos = [], [{"cell": "instances", "sums": "2 2"}]
    for cell, steps, seed, ratio, prompt, clicks, figure in (
        ("teacher", 0, 0, 1.0, "box", 0, 60.0), ("teacher", 0, 0, 1.0, "point", 1, 40.0),
        ("ours", 40, 0, 0.25, "box", 0, 57.0), ("ours", 40, 1, 0.25, "box", 0, 59.0),
        ("ours", 40, 0, 0.25, "point", 1, 38.0), ("448 px", 40, 0, 1.0, "box", 0, 50.0),
        ("448 px", 40, 0, 1.0, "point", 1, 30.0), ("random router", 40, 0, 0.25, "box", 0, 56.0),
        ("random router", 40, 0, 0.25, "point", 1, 36.0), ("ours", 0, 0, 0.25, "box", 0, 55.0),
    ):  # fmt: skip
        row = {"teacher": "aaa", "cell": cell, "seed": seed, "steps": steps, "keep_ratio": ratio, "prompt": prompt,
               "clicks": clicks} | dict.fromkeys(("all", "small", "medium", "large"), figure)  # fmt: skip
        lines.append(row)
        row["agreement"] = figure + 30
        photos.append(row | {"sums": f"{2 * figure / 100} {2 * figure / 100}",
                             "agreement_sums": f"{2 * (figure + 30) / 100} {2 * (figure + 30) / 100}"})  # fmt: skip
    for name, columns, rows in (
        ("study", study.COLUMNS, lines), ("study_photos", study.PHOTO_COLUMNS, photos),
        ("study_teachers", ("model", "teacher"), [{"model": "vit_a", "teacher": "aaa"}]),
        ("study_times", study_times.COLUMNS, [
            {"model": "vit_a", "cell": c, "keep_ratio": r, "format": f, "median_ms": ms}
            for c, r, f, ms in (("teacher", 1.0, "float32", 80), ("teacher", 1.0, "int8 in kernels", 40),
                                ("ours", 0.25, "float32", 50), ("ours", 0.25, "int8 in kernels", 20),
                                ("448 px", 1.0, "float32", 55), ("448 px", 1.0, "int8 in kernels", 30))
        ]),
        ("study_times_sam", study_times.COLUMNS, [
            {"model": "vit_b", "cell": "teacher", "keep_ratio": 1.0, "format": "int8 in kernels", "median_ms": 1000},
            {"model": "vit_b", "cell": "ours", "keep_ratio": 0.25, "format": "int8 in kernels", "median_ms": 250},
        ]),
        ("study_layers", layer_worth.COLUMNS, [
            {"teacher": "aaa", "skipped": 1, "layers": "0", "box": 58, "point": 39, "linear_share": 0.5}
        ]),
    ):  # fmt: skip
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def test_tables_and_the_figure_come_from_the_csvs(tmp_path: Path):
    write_results(tmp_path)
    page = tmp_path / "study.md"
    markers = ("layers", "sam", "cells vit_a rivals", "cells vit_a changes")
    blocks = [f"<!-- table {marker} -->\nold\n<!-- end -->\n" for marker in markers]
    page.write_text("Before\n" + "between\n".join(blocks) + "after\n")
    for _ in range(2):  # the second time it replaces what the first one wrote
        study_report.write_report(tmp_path, page)
        text = page.read_text()
        layers, sam, rivals, changes = text.split("between")
        assert "old" not in text and text.startswith("Before\n") and text.endswith("after\n")
        assert "| 1 | 58.0 | 39.0 | 50 % |" in layers
        assert "| ours | 0.25 | 250 | 25 % |" in sam
        line = "| teacher |  |  | 60.00 | 60.0 / 60.0 / 60.0 | 100.0 % | 40.00 | 90.00 | 70.00 | 80 | 40 | - | - | - |"
        assert line in rivals
        line = (
            "| ours | 0.25 | 40 | 58.00 ± 1.41 | 58.0 / 58.0 / 58.0 | 96.7 % | 38.00 | 88.00 ± 1.41 | 68.00 | 50 | 20 |"
        )
        assert line in rivals
        # At 30 ms ours is half-way between 58 and 60; agreement is 30 points more everywhere.
        over = "| +9.00 (+9.00 to +9.00) | +9.00 (+9.00 to +9.00) | +9.00 (+9.00 to +9.00) |"
        assert "| 448 px |  | 40 | 50.00 |" in rivals and over in rivals
        assert "random router" not in rivals and "448 px" not in changes
        line = "| random router | 0.25 | 40 | 56.00 | 56.0 / 56.0 / 56.0 | 93.3 % | 36.00 | 86.00 | 66.00 | 50 | 20 |"
        assert line in changes and "+2.00 (+2.00 to +2.00)" in changes
        assert "| ours | 0.25 | 0 | 55.00 |" in rivals
    assert (tmp_path / "study_time.png").stat().st_size > 5000
    (tmp_path / "study.csv").unlink()
    with pytest.raises(InputError, match="run the study first"):
        study_report.write_report(tmp_path, page)
