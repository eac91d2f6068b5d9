"""The latency benchmark: order of calls, arithmetic of the ratios, columns, bad input. No timing is asserted."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sam_bigltl import bench
from sam_bigltl.bench import Case, encoder_cases, measure, output_path, result_rows, write_csv

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

    seen: list[tuple[float, torch.dtype]] = []
    keep_ratio = 1.0
    is_dense = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.keep_ratio, x.dtype))
        return super().forward(x)


def case(model: str, keep_ratio: float, dtype: str) -> Case:
    return Case(model, keep_ratio, dtype, 32, "random", lambda: None)


def test_measure_takes_turns_and_leaves_out_warmup() -> None:
    now = 0.0
    order = []

    def fake_call(name: str, seconds: list[float]):
        def call() -> None:
            nonlocal now
            order.append(name)
            now += seconds.pop(0)

        return call

    calls = [fake_call("A", [100.0, 1.0, 2.0]), fake_call("B", [200.0, 3.0, 4.0])]
    times = measure(calls, runs=2, warmup=1, clock=lambda: now)
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
    rows = result_rows(cases, times, ENVIRONMENT)
    assert all(tuple(row) == bench.COLUMNS for row in rows)
    # The baseline's faster dtype leads; the other rows keep their order.
    assert [(row["model"], row["dtype"]) for row in rows] == [
        ("sam_vit_b", "bfloat16"), ("sam_vit_b", "float32"),
        ("bigltl_b", "float32"), ("bigltl_b", "float32"), ("bigltl_b", "bfloat16"),
    ]  # fmt: skip
    assert [(row["median_s"], row["min_s"], row["max_s"]) for row in rows[:2]] == [(4.0, 3.0, 4.0), (9.0, 8.0, 30.0)]
    assert [row["speedup_vs_first"] for row in rows] == pytest.approx([1, 4 / 9, 4 / 6, 2, 8])
    assert [row["speedup_vs_own_1.0"] for row in rows] == [1, 1, 1, 3, None]
    assert all(row["runs"] == 3 for row in rows)


def test_encoder_cases_set_ratio_and_dtype() -> None:
    TinyRoutedEncoder.seen.clear()
    encoder = TinyRoutedEncoder()
    cases = encoder_cases("ours", encoder, [1.0, 0.5], ["float32", "bfloat16"], torch.device("cpu"))
    for each in cases:
        each.call()
    assert TinyRoutedEncoder.seen == [
        (1.0, torch.float32), (1.0, torch.bfloat16), (0.5, torch.float32), (0.5, torch.bfloat16),
    ]  # fmt: skip
    assert encoder.project.weight.dtype == torch.float32 and encoder.keep_ratio == 1.0


class TinyDenseEncoder(TinyRoutedEncoder):
    is_dense = True


@pytest.mark.parametrize("encoder", [TinyEncoder(), TinyDenseEncoder()])
def test_an_encoder_that_computes_every_token_has_one_case_per_dtype(encoder: TinyEncoder) -> None:
    dtypes = ["float32", "bfloat16", "int8"]  # int8 is for this project's encoders only
    cases = encoder_cases("sam", encoder, [0.5, 0.25], dtypes, torch.device("cpu"))
    assert [(each.keep_ratio, each.dtype, each.image_size) for each in cases] == [
        (1.0, "float32", 32), (1.0, "bfloat16", 32),
    ]  # fmt: skip


def test_output_path_names_device_torch_and_threads() -> None:
    cpu = torch.device("cpu")
    path = output_path(Path("folder"), cpu, ENVIRONMENT)
    assert path == Path("folder/latency_cpu-some-cpu-r-2-ghz-torch2.6.0-cpu-2threads.csv")
    assert output_path(Path("mine.csv"), cpu, ENVIRONMENT) == Path("mine.csv")


def test_main_writes_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    class TinySam(nn.Module):
        def __init__(self, checkpoint: Path | None = None) -> None:
            super().__init__()
            self.image_encoder = TinyRoutedEncoder()

    monkeypatch.setitem(bench.sam_model_registry, "tiny", TinySam)
    output = tmp_path / "new" / "result.csv"
    bench.main(["--models", "tiny", "--keep-ratio", "0.5", "--runs", "2", "--device", "cpu", "--output", str(output)])
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and tuple(rows[0]) == bench.COLUMNS
    assert rows[0]["torch"] == torch.__version__ and rows[0]["speedup_vs_first"] == "1"
    assert rows[0]["speedup_vs_own_1.0"] == ""
    assert "2 interleaved runs" in capsys.readouterr().out


def test_write_csv_rounds(tmp_path: Path) -> None:
    rows = result_rows([case("a", 1.0, "float32")], [[1 / 3]], ENVIRONMENT)
    write_csv(tmp_path / "x.csv", rows)
    assert ",0.333333,0.333333,0.333333,1,1,32,random\n" in (tmp_path / "x.csv").read_text()


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
        (["--models", "sam_vit_b", "--checkpoint", __file__], "--checkpoint needs exactly one model"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench.main(options)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("latency.py: error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("script", "options"),
    [("latency.py", ["--models", "nonsense"]), ("exactness.py", ["--model", "nonsense"])],
)
def test_scripts_refuse_an_unknown_model(script: str, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval" / script), *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert f"{script}: error: unknown model 'nonsense'" in done.stderr and "Traceback" not in done.stderr
