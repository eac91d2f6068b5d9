"""The latency benchmark: order of calls, arithmetic of the ratios, columns, bad input. No timing is asserted."""

from __future__ import annotations

import csv
import runpy
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from sam_bigltl.bench import plan
from sam_bigltl.bench.cases import AUTOCAST, Case, Job, encoder_cases
from sam_bigltl.bench.macs import Macs
from sam_bigltl.bench.models import build, peer
from sam_bigltl.bench.report import COLUMNS, format_table, output_path, result_rows
from sam_bigltl.bench.timing import gemm_peak, measure, peak_memory, timed
from sam_bigltl.bench.worker import Worker
from sam_bigltl.cli import bench as cli
from sam_bigltl.data.files import write_csv
from sam_bigltl.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"device": "Some CPU (R) @ 2 GHz", "torch": "2.6.0+cpu", "threads": 2}


class TinyEncoder(nn.Module):
    """Maps (B, 3, 32, 32) to (B, 256, 2, 2)."""

    img_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 256, 16, stride=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x)


class TinyRoutedEncoder(TinyEncoder):
    """Also records the keep_ratio and the dtype of every call in a list that its copies share."""

    seen: ClassVar[list[tuple[float, torch.dtype]]] = []
    keep_ratio = 1.0
    is_dense = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.keep_ratio, x.dtype))
        return super().forward(x)


def case(model: str, keep_ratio: float, dtype: str, batch: int = 1) -> Case:
    return Case(model, keep_ratio, dtype, 32, "random", lambda: None, batch, parameter_bytes=2_000_000)


def rows_of(
    cases: list[Case], times: list[list[float]], macs: dict | None = None, peaks: dict | None = None
) -> list[dict]:
    return result_rows(cases, times, ENVIRONMENT, macs or {}, peaks or {}, [None] * len(cases))


def test_measure_takes_turns_and_leaves_out_warmup() -> None:
    order = []

    def fake_call(name: str, seconds: list[float]):
        def call() -> float:
            order.append(name)
            return seconds.pop(0)

        return call

    calls = [fake_call("A", [100.0, 1.0, 2.0]), fake_call("B", [200.0, 3.0, 4.0])]
    times = measure(calls, runs=2, warmup=1)
    assert order == ["A", "B"] * 3
    assert times == [[1.0, 2.0], [3.0, 4.0]]


def test_rows_have_the_columns_and_the_right_ratios() -> None:
    cases = [
        case("sam_vit_b", 1.0, "float32"),
        case("sam_vit_b", 1.0, "bfloat16"),
        case("bigltl_b", 1.0, "float32"),
        case("bigltl_b", 0.25, "float32"),
        case("bigltl_b", 0.25, "bfloat16"),
    ]
    times = [[9.0, 8.0, 30.0], [4.0, 4.0, 3.0], [6.0, 6.0, 6.0], [2.0, 1.0, 3.0], [0.5, 0.5, 0.5]]
    rows = rows_of(cases, times)
    assert all(tuple(row) == COLUMNS for row in rows)
    # The baseline's faster dtype leads; the other rows keep their order.
    assert [(row["model"], row["dtype"]) for row in rows] == [
        ("sam_vit_b", "bfloat16"), ("sam_vit_b", "float32"),
        ("bigltl_b", "float32"), ("bigltl_b", "float32"), ("bigltl_b", "bfloat16"),
    ]  # fmt: skip
    assert [(row["median_s"], row["min_s"], row["max_s"]) for row in rows[:2]] == [(4.0, 3.0, 4.0), (9.0, 8.0, 30.0)]
    assert [row["speedup_vs_first"] for row in rows] == pytest.approx([1, 4 / 9, 4 / 6, 2, 8])
    assert [row["speedup_vs_own_1.0"] for row in rows] == [1, 1, 1, 3, None]
    assert all(row["runs"] == 3 for row in rows)
    assert all(row["gmacs"] is row["theoretical_speedup"] is row["share_of_peak"] is None for row in rows)


def test_what_the_counted_products_say() -> None:
    cases = [case("ours", 1.0, "int8"), case("ours", 0.25, "int8"), case("ours", 0.25, "int8", batch=2)]
    macs = {
        ("ours", 32, 1, 1.0): Macs(400_000_000_000, 300_000_000_000),
        ("ours", 32, 1, 0.25): Macs(100_000_000_000, 90_000_000_000),
    }  # fmt: skip
    rows = result_rows(cases, [[2.0], [0.8], [1.0]], ENVIRONMENT, macs, {"int8": 250.0}, [500_000_000, None, 0])
    assert [row["theoretical_speedup"] for row in rows] == [1, 4, None]
    assert [row["speedup_vs_own_1.0"] for row in rows] == [1, 2.5, None]  # no other case has its batch
    assert [row["realised_over_theoretical"] for row in rows] == [1, 0.625, None]
    assert [row["gmacs_per_s"] for row in rows] == [200, 125, None]
    assert [row["share_of_peak"] for row in rows] == [0.8, 0.5, None]
    assert [row["gmacs_without_attention"] for row in rows] == [300, 90, None]
    assert [row["images_per_s"] for row in rows] == [0.5, 1.25, 2]
    assert [row["speedup_vs_first"] for row in rows] == [1, 2.5, 4]  # images a second
    assert [row["peak_memory_mb"] for row in rows] == [502, None, 2]  # with the parameters
    table = format_table(rows).splitlines()
    assert len(table) == 4 and len({len(line) for line in table[1:]}) == 1 and "0.62" in table[2]


def test_encoder_cases_set_ratio_and_dtype() -> None:
    TinyRoutedEncoder.seen.clear()
    encoder = TinyRoutedEncoder()
    for dtype in ("float32", "bfloat16"):
        for each in encoder_cases("ours", encoder, Job("ours", dtype=dtype, keep_ratios=(1.0, 0.5))):
            each.call()
    assert TinyRoutedEncoder.seen == [
        (1.0, torch.float32), (0.5, torch.float32), (1.0, torch.bfloat16), (0.5, torch.bfloat16),
    ]  # fmt: skip
    assert encoder.project.weight.dtype == torch.float32 and encoder.keep_ratio == 1.0


class TinyDenseEncoder(TinyRoutedEncoder):
    is_dense = True


@pytest.mark.parametrize("encoder", [TinyEncoder(), TinyDenseEncoder()])
def test_an_encoder_that_computes_every_token_has_one_ratio(encoder: TinyEncoder) -> None:
    job = Job("sam", dtype="bfloat16", batches=(1, 3), keep_ratios=(0.5, 0.25), keep_memory=False)
    cases = encoder_cases("sam", encoder, job)
    assert [(each.keep_ratio, each.dtype, each.image_size, each.batch, each.memory) for each in cases] == [
        (1.0, "bfloat16", 32, 1, "default"), (1.0, "bfloat16", 32, 3, "default"),
    ]  # fmt: skip
    assert [each.parameter_bytes for each in cases] == [2 * 256 * (3 * 16 * 16 + 1)] * 2


def test_autocast_keeps_float32_weights() -> None:
    class Seen(TinyEncoder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            assert (self.project.weight.dtype, x.dtype, out.dtype) == (torch.float32, torch.float32, torch.bfloat16)
            return out

    encoder_cases("theirs", Seen(), Job("theirs", dtype=AUTOCAST))[0].call()


def formats(*options: str) -> list[str]:
    """The jobs of a command line in words."""
    parser = ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args(list(options))
    return [f"{job} {'kept' if job.keep_memory else 'default'}" for job in cli.jobs(args, torch.device("cpu"))]


def test_formats_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "check", lambda *_: None)  # on a processor that has all
    both = ["--compile", "both", "--native", "both", "--dtype", "float32", "bfloat16", "int8", "autocast"]
    assert formats("--models", "bigltl_mini", *both) == [
        "bigltl_mini float32 kept", "bigltl_mini float32 compiled kept", "bigltl_mini float32 native kept",
        "bigltl_mini bfloat16 kept", "bigltl_mini bfloat16 compiled kept", "bigltl_mini bfloat16 native kept",
        "bigltl_mini int8 kept", "bigltl_mini int8 native kept",
    ]  # fmt: skip
    assert formats("--models", "--peer", "x:theirs", "--dtype", "int8", "autocast") == [
        "theirs autocast default", "theirs autocast kept"
    ]  # fmt: skip
    assert formats("--models", "sam_vit_b", "--memory", "default", "--dtype", "float32") == [
        "sam_vit_b float32 default"
    ]  # fmt: skip


def test_output_path_names_device_torch_and_threads() -> None:
    cpu = torch.device("cpu")
    path = output_path(Path("folder"), "latency", cpu, ENVIRONMENT)
    assert path == Path("folder/latency_cpu-some-cpu-r-2-ghz-torch2.6.0-cpu-2threads.csv")
    assert output_path(Path("mine.csv"), "latency", cpu, ENVIRONMENT) == Path("mine.csv")


PEER = """
import torch

class Small(torch.nn.Conv2d):
    def forward(self, x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not in bfloat16\\nand more")
        return super().forward(x)

def small():
    return Small(3, 256, 16, stride=16)
"""


def test_main_writes_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(cli, "gemm_peak", lambda dtype, device: 100.0)
    (tmp_path / "theirs.py").write_text(PEER)
    output, picture = tmp_path / "new" / "result.csv", tmp_path / "plots" / "time.png"
    cli.main([
        "--models", "bigltl_mini", "--image-size", "64", "--keep-ratio", "0.5", "1", "--runs", "2", "--device", "cpu",
        "--output", str(output), "--plot", str(picture), "--dtype", "bfloat16", "float32",
        "--peer", f"{tmp_path / 'theirs.py'}:small@64", "--memory", "kept",
    ])  # fmt: skip
    with output.open() as file:
        every = list(csv.DictReader(file))
    printed = capsys.readouterr()
    # What a stranger's encoder cannot do is left out, and said.
    assert "left out: small@64 bfloat16: not in bfloat16\n" in printed.err and "2 interleaved runs" in printed.out
    assert [row["model"] for row in every] == ["bigltl_mini"] * 4 + ["small"]
    theirs = every[-1]
    assert (theirs["image_size"], theirs["weights"], theirs["dtype"]) == ("64", "its own", "float32")
    assert (theirs["native"], theirs["compiled"], theirs["memory"]) == ("no", "no", "kept")
    assert float(theirs["gmacs"]) == pytest.approx(256 * 3 * 256 * 16 / 1e9)
    assert float(theirs["gemm_peak_gmacs_per_s"]) == 100 and float(theirs["peak_memory_mb"]) > 0
    assert picture.stat().st_size > 5000
    rows = [row for row in every if row["keep_ratio"] == "0.5"]
    assert tuple(rows[0]) == COLUMNS and 1 < float(rows[0]["theoretical_speedup"]) < 2
    assert rows[0]["torch"] == torch.__version__ and rows[0]["speedup_vs_first"] == "1"
    assert all(float(row["speedup_vs_own_1.0"]) > 0 for row in rows)


def test_a_worker_that_cannot_build_says_so_in_one_line() -> None:
    with pytest.raises(InputError, match="^theirs float32: .*no_such_module") as error:
        Worker(Job("no_such_module:theirs", is_peer=True))
    assert "\n" not in str(error.value)


def test_timed() -> None:
    assert timed(lambda: time.sleep(0.02)) >= 0.02


def test_meters() -> None:
    cpu = torch.device("cpu")
    assert 0 < gemm_peak("float32", cpu, runs=1) < 1e6
    held = []
    megabytes = peak_memory(lambda: held.append(torch.ones(25_000_000)), cpu)
    if sys.platform.startswith("linux"):
        assert 95e6 < megabytes < 130e6
        assert peak_memory(lambda: torch.ones(25_000_000).sum(), cpu) > 95e6  # freed at once, seen all the same
        assert peak_memory(lambda: None, cpu) < 20e6


def test_models_in_other_sizes() -> None:
    encoder, weights = build("bigltl_mini", image_size=224)
    assert encoder.img_size == 224 and weights == "random"
    for options, message in (
        (dict(name="sam_vit_b", image_size=512), "takes 1024 px only"),
        (dict(name="bigltl_mini", image_size=100), "no multiple of 16"),
        (dict(name="bigltl_mini", image_size=224, checkpoint=Path("x")), "leave --checkpoint out"),
    ):
        with pytest.raises(InputError, match=message):
            build(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "is not module:callable"),
        ("missing_module:encoder", "cannot import missing_module"),
        ("torch:missing", "torch has no missing"),
        ("builtins:dict", "returned a dict, not a torch.nn.Module"),
        ("torch.nn:Identity", "has no img_size: give it as torch.nn:Identity@1024"),
        ("torch.nn:Identity@big", "'big' is no size in pixels"),
        ("torch.nn:Linear", "failed: TypeError"),
    ],
)
def test_peers_that_cannot_be_timed(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        peer(name)
    assert "\n" not in str(error.value)


def test_write_csv_rounds(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", COLUMNS, rows_of([case("a", 1.0, "float32")], [[1 / 3]]))
    assert ",1,0.333333,0.333333,0.333333,3,1,1,,,,,,,,,32,random\n" in (tmp_path / "x.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "nonsense"], "unknown model 'nonsense'"),
        (["--keep-ratio", "0.5", "0"], "--keep-ratio 0 is outside (0, 1]"),
        (["--keep-ratio", "nan"], "--keep-ratio nan is outside (0, 1]"),
        (["--dtype", "float16"], "unknown dtype 'float16'"),
        (["--device", "cuda:99"], "no such CUDA device"),
        (["--device", "nonsense"], "unknown device"),
        (["--runs", "0"], "--runs 0 is below 1"),
        (["--checkpoint", "missing.safetensors"], "no checkpoint at missing.safetensors"),
        (["--batch", "1", "0"], "--batch 0 is below 1"),
        (["--warmup", "0"], "--warmup 0 is below 1"),
        (["--plot", "picture.bmp"], "must end in .png, .svg or .pdf"),
        (["--models"], "nothing to measure"),
        (["--models", "sam_vit_b", "--checkpoint", __file__], "--checkpoint needs exactly one model"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(options)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("latency.py: error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("script", "options"),
    [("latency.py", ["--models", "nonsense"]), ("exactness.py", ["--model", "nonsense"])],
)
def test_scripts_refuse_an_unknown_model(
    script: str, options: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "eval" / script), run_name="__main__")
    assert stop.value.code == 2
    assert f"{script}: error: unknown model 'nonsense'" in capsys.readouterr().err
