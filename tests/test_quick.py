"""`bench --quick`: what fits into its time, what it says of the rest, and the block to paste. No timing is asserted."""

from __future__ import annotations

import csv
import getpass
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam_bigltl.bench import quick
from sam_bigltl.bench.cases import Case
from sam_bigltl.bench.macs import Macs
from sam_bigltl.bench.quick import LARGE, MINI, RATIOS, SAM, Quick
from sam_bigltl.bench.quick_report import block, rows_of, without_paths
from sam_bigltl.bench.report import COLUMNS
from sam_bigltl.cli import main
from sam_bigltl.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
FORMATS = [("float32", False), ("float32", True), ("bfloat16", True), ("int8", True)]
SPEED = {("float32", False): 1.0, ("float32", True): 1.5, ("bfloat16", True): 4.0, ("int8", True): 8.0}
DENSE = {MINI: 0.2, SAM: 6.0, LARGE: 5.0}  # seconds of a pass in float32 at keep_ratio 1.0
START = 3.0  # of a process


class Machine:
    """A machine whose passes take the seconds above times `slowness`, on a clock of its own."""

    def __init__(self, slowness: float, dies: str = "") -> None:
        self.slowness, self.dies, self.now, self.closed = slowness, dies, 0.0, []

    def clock(self) -> float:
        return self.now

    def worker(self, job: quick.Models) -> FakeWorker:
        self.now += START * self.slowness
        return FakeWorker(self, job)


class FakeWorker:
    def __init__(self, machine: Machine, job: quick.Models) -> None:
        self.machine, self.job = machine, job
        self.cases = [
            Case(job.model, ratio, dtype, 640 if job.model == MINI else 1024, "random", native=native)
            for dtype, native in job.formats
            for ratio in job.keep_ratios
        ]

    def seconds(self, index: int) -> float:
        case = self.cases[index]
        if case.model == self.machine.dies:
            raise InputError(f"{case.model}: its process died, probably for lack of memory")
        share = (1.0 if case.keep_ratio == 1.0 else 0.4) / SPEED[case.dtype, case.native]
        taken = DENSE[case.model] * share * self.machine.slowness
        self.machine.now += taken
        return taken

    def macs(self, index: int) -> Macs:
        self.seconds(index)
        whole = 16e9 if self.job.model == MINI else 480e9
        total = int(whole * (1.0 if self.cases[index].keep_ratio == 1.0 else 0.35))
        return Macs(total, total)

    def close(self) -> None:
        self.machine.closed.append(self.job.model)


def measured(monkeypatch, slowness: float, minutes: float = 2.0, memory: float = 64e9, dies: str = "") -> Quick:
    machine = Machine(slowness, dies)
    monkeypatch.setattr(quick, "Worker", machine.worker)
    monkeypatch.setattr(quick, "peaks", lambda *_: {"float32": 100.0, "int8": 900.0})
    monkeypatch.setattr(quick, "available_memory", lambda: int(memory))
    monkeypatch.setattr(quick.choice, "formats", lambda device: FORMATS)
    found = Quick(torch.device("cpu"), minutes, clock=machine.clock)
    found.run(lambda line: None)
    assert set(machine.closed) == {row.model for row in found.rows if row.first or row.model == dies}
    return found


def done(found: Quick) -> set[tuple[str, str, float]]:
    return {(row.model, row.format, row.keep_ratio) for row in found.rows if row.seconds}


def test_everything_where_there_is_time(monkeypatch):
    found = measured(monkeypatch, 1.0)
    assert len(done(found)) == len(found.rows) == 2 * len(FORMATS) * len(RATIOS) + 1
    assert found.elapsed < 120 and found.rounds > 1
    assert {len(row.seconds) for row in found.rows} == {found.rounds}  # rounds are whole: ratios are of the same ones
    rows = rows_of(found)
    assert rows[0]["model"] == SAM and rows[0]["speedup_vs_first"] == 1
    (fast,) = [row for row in rows if (row["model"], row["dtype"], row["keep_ratio"]) == (LARGE, "int8", 0.25)]
    assert fast["speedup_vs_first"] == pytest.approx(6 / (5 * 0.4 / 8))
    assert fast["realised_over_theoretical"] == pytest.approx(0.35 / 0.4)
    assert fast["share_of_peak"] == pytest.approx(480 * 0.35 / (5 * 0.4 / 8) / 900)


@pytest.mark.parametrize("slowness", [2.0, 4.0, 10.0, 20.0])
def test_the_time_is_kept_on_slow_machines(monkeypatch, slowness):
    found = measured(monkeypatch, slowness)
    assert found.elapsed < 120 and found.rounds >= 1
    assert {row.skipped for row in found.rows if not row.seconds} <= {"time"}
    assert len(done(found)) < len(found.rows) or slowness < 4
    assert (MINI, "float32", 1.0) in done(found)
    if slowness == 2.0:  # what people will run is measured before what they will not
        assert (LARGE, "int8 native", 0.25) in done(found)


def test_a_tiny_budget_leaves_one_row(monkeypatch):
    found = measured(monkeypatch, 1.0, minutes=0.001)
    assert done(found) == {(MINI, "float32", 1.0)} and found.rounds == 1


def test_what_does_not_fit_into_memory(monkeypatch):
    found = measured(monkeypatch, 1.0, memory=2e9)
    assert {model for model, _, _ in done(found)} == {MINI}
    assert {row.skipped for row in found.rows if row.model != MINI} == {"memory"}
    found = measured(monkeypatch, 1.0, dies=SAM)
    assert {model for model, _, _ in done(found)} == {MINI, LARGE}
    assert "skipped (sam_vit_b: its process died" in block(found, rows_of(found), "1")


def test_the_block_is_complete_and_names_nobody(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = measured(monkeypatch, 10.0)
    text = block(found, rows_of(found), "1.2.3")
    lines = text.splitlines()
    assert lines[0].startswith("-----") and lines[-1] == "-" * len(lines[0])
    for part in ("sam_bigltl 1.2.3", torch.__version__, platform.machine(), "OMP_NUM_THREADS=3",
                 "auto: ", "float32 100 GMAC/s", "int8 900 GMAC/s", "skipped (time): bigltl_b "):  # fmt: skip
        assert part in text
    assert str(Path.home()) not in text and platform.node() not in text
    assert without_paths("a /" + "home/ann/x.so: no, 'C:\\Users\\ann\\k.dll' or ~/k 3 GMAC/s") == (
        "a PATH: no, 'PATH' or PATH 3 GMAC/s"
    )


def test_the_command(tmp_path):
    """With the shipped model, in as little as it can take."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "sam_bigltl.cli", "bench", "--quick", "--budget", "0.001", "--device", "cpu",
         "--runs", "1", "--output", "mine.csv"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert re.search(r"^bigltl_mini +640 +1 +float32 +[\d.]+ ", run.stdout, re.MULTILINE)
    assert "skipped (time): bigltl_b " in run.stdout and str(tmp_path) not in run.stdout
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", run.stdout)
    with open(tmp_path / "mine.csv") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == COLUMNS and row["model"] == MINI and float(row["median_s"]) > 0 and float(row["gmacs"]) > 1


@pytest.mark.parametrize(("options", "message"), [
    (["--quick", "--models", "bigltl_b"], "leave --models out"), (["--quick", "--native", "on"], "leave --native out"),
    (["--quick", "--budget", "0"], "--budget is positive"), (["--quick", "--runs", "0"], "--runs is at least 1"),
    (["--budget", "3"], "--budget is the time of --quick"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *options])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_an_output_that_cannot_be_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "sam_bigltl.cli", "bench", "--quick", "--budget", "5", "--output", "file/x"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0 and "cannot write into" in done.stderr and " s  " not in done.stderr
