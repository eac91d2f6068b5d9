"""Encoder latency: SAM's ViT and the big.LITTLE ViT, measured in one run.

All cases take turns (A B A B ...), so that a clock that drifts, a machine that warms up or a busy neighbour touches
all of them alike; the first passes are warm-up and are not counted. Times are those of one forward pass of the image
encoder alone, batch 1, at the model's own input size. Ratios are between medians.
"""

from __future__ import annotations

import argparse
import copy
import csv
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import segment_anything
import torch
from torch import nn
from tqdm import tqdm

from sam_bigltl.encoder import BigLittleEncoder
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.precision import PRECISIONS, check_precision, set_precision
from sam_bigltl.registry import sam_model_registry

SAM_MODELS = {f"sam_{key}": segment_anything.sam_model_registry[key] for key in ("vit_b", "vit_l", "vit_h")}
COLUMNS = (
    "model", "keep_ratio", "dtype", "device", "torch", "threads", "runs", "median_s", "min_s", "max_s",
    "speedup_vs_first", "speedup_vs_own_1.0", "image_size", "weights",
)  # fmt: skip
EXAMPLES = """examples:
  sam-bigltl bench --models vit_mini bigltl_mini --keep-ratio 1.0 0.5 --runs 10
  python eval/latency.py
  python eval/latency.py --models sam_vit_h bigltl_h --device cuda --dtype bfloat16 --runs 20 --warmup 5
  python eval/latency.py --models bigltl_b --checkpoint checkpoints/x.safetensors --output docs/results
"""


@dataclass(frozen=True)
class Case:
    """One thing to time: `call` runs one forward pass and returns when it has finished."""

    model: str
    keep_ratio: float
    dtype: str
    image_size: int
    weights: str  # "random", or the checkpoint's file name
    call: Callable[[], Any]


def measure(
    calls: Sequence[Callable[[], Any]], runs: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Time `calls` in turns: `warmup` uncounted passes over all of them, then `runs` counted ones.

    Returns for each call its `runs` times, in the clock's unit (seconds).
    """
    times: list[list[float]] = [[] for _ in calls]
    for index in tqdm(range(warmup + runs), desc="passes over all cases", unit="pass", disable=None):
        for call, own_times in zip(calls, times):
            start = clock()
            call()
            elapsed = clock() - start
            if index >= warmup:
                own_times.append(elapsed)
    return times


def result_rows(cases: Sequence[Case], times: Sequence[Sequence[float]], environment: dict[str, Any]) -> list[dict]:
    """One dictionary per case, with the keys COLUMNS; `environment` gives device, torch and threads.

    The dtypes of the first model (at its first keep_ratio) come fastest first: the first row, which every
    `speedup_vs_first` refers to, is the baseline at its best. `speedup_vs_own_1.0` compares with the same model and
    dtype at keep_ratio 1.0, and is None if that was not measured.
    """
    medians = {id(case): median(own_times) for case, own_times in zip(cases, times)}

    def in_first_group(case: Case) -> bool:
        return (case.model, case.keep_ratio) == (cases[0].model, cases[0].keep_ratio)

    # Stable: all but the first group keep their order.
    order = sorted(
        zip(cases, times), key=lambda pair: (0, medians[id(pair[0])]) if in_first_group(pair[0]) else (1, 0.0)
    )
    first = medians[id(order[0][0])]
    own_full = {(case.model, case.dtype): medians[id(case)] for case in cases if case.keep_ratio == 1.0}
    rows = []
    for case, own_times in order:
        own_median = medians[id(case)]
        full = own_full.get((case.model, case.dtype))
        rows.append({
            "model": case.model, "keep_ratio": case.keep_ratio, "dtype": case.dtype, **environment,
            "runs": len(own_times), "median_s": own_median, "min_s": min(own_times), "max_s": max(own_times),
            "speedup_vs_first": first / own_median,
            "speedup_vs_own_1.0": None if full is None else full / own_median,
            "image_size": case.image_size, "weights": case.weights,
        })  # fmt: skip
    return rows


def encoder_cases(
    name: str, encoder: nn.Module, keep_ratios: Sequence[float], dtypes: Sequence[str], device: torch.device,
    weights: str = "random",
) -> list[Case]:  # fmt: skip
    """The cases of one encoder: each dtype at each keep_ratio. SAM's own encoder, and a dense one of this
    project, compute every token: one case per dtype, listed as 1.0. SAM's own has no int8.

    `encoder` maps (1, 3, S, S) to (1, 256, g, g), with S its `img_size`. It is left as it was.
    """
    size = encoder.img_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    routed = hasattr(encoder, "keep_ratio") and not encoder.is_dense
    by_dtype = {}
    if not isinstance(encoder, BigLittleEncoder):
        dtypes = [dtype for dtype in dtypes if dtype != "int8"]
    for dtype in dtypes:
        module = set_precision(copy.deepcopy(encoder).eval().to(device), dtype)
        by_dtype[dtype] = (module, image.to(device, PRECISIONS[dtype]))

    def make_call(dtype: str, keep_ratio: float) -> Callable[[], None]:
        module, pixels = by_dtype[dtype]

        def call() -> None:
            if routed:
                module.keep_ratio = keep_ratio
            with torch.inference_mode():
                module(pixels)
            synchronize(device)

        return call

    return [
        Case(name, keep_ratio, dtype, size, weights, make_call(dtype, keep_ratio))
        for keep_ratio in (keep_ratios if routed else (1.0,))
        for dtype in dtypes
    ]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished: kernels are launched asynchronously on all but the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """The processor's product name where the system tells it, such as "NVIDIA H200"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def output_path(output: Path, device: torch.device, environment: dict[str, Any]) -> Path:
    """`output` itself if it ends in .csv; else a file in that folder, named after device, torch version and threads."""
    if output.suffix == ".csv":
        return output
    words = f"{device.type} {environment['device']} torch{environment['torch']} {environment['threads']}threads"
    return output / f"latency_{re.sub(r'[^a-z0-9.]+', '-', words.lower()).strip('-')}.csv"


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Write `rows` under the header COLUMNS; times and ratios with six significant digits, None as an empty field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def format_table(rows: Sequence[dict]) -> str:
    """The rows as a text table, times in milliseconds."""
    lines = [f"{'model':<14} {'px':>5} {'keep':>6} {'dtype':<9} {'median ms':>10} {'min ms':>9} {'max ms':>9}"
             f" {'vs first':>9} {'vs own 1.0':>11}"]  # fmt: skip
    for row in rows:
        own = row["speedup_vs_own_1.0"]
        own_text = "-" if own is None else f"{own:.2f}x"
        first_text = f"{row['speedup_vs_first']:.2f}x"
        lines.append(
            f"{row['model']:<14} {row['image_size']:>5} {row['keep_ratio']:>6g} {row['dtype']:<9}"
            f" {row['median_s'] * 1e3:>10.1f} {row['min_s'] * 1e3:>9.1f} {row['max_s'] * 1e3:>9.1f}"
            f" {first_text:>9} {own_text:>11}"
        )
    return "\n".join(lines)


def parse_device(text: str | None) -> torch.device:
    """The device named `text`; None: CUDA if there is one, else the CPU. Raises InputError if it cannot be used."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(f"unknown device {text!r}: choose cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no such CUDA device: {text} ({torch.cuda.device_count()} available); use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("this machine has no MPS device; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unsupported device {text!r}: choose cpu, cuda, cuda:N or mps")
    return device


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for the first option that cannot be used, before any model is built."""
    known = [*SAM_MODELS, *sam_model_registry]
    for name in args.models:
        if name not in known:
            raise InputError(f"unknown model {name!r}: choose from {', '.join(known)}")
    for ratio in args.keep_ratio:
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"--keep-ratio {ratio:g} is outside (0, 1]")
    for option, lowest in (("runs", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(args, option)
        if value is not None and value < lowest:
            raise InputError(f"--{option} {value} is below {lowest}")
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise InputError(f"no checkpoint at {args.checkpoint}")
        if len([name for name in args.models if name not in SAM_MODELS]) != 1:
            raise InputError("--checkpoint needs exactly one model of this project in --models")


def build_cases(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """Build every model in `args.models` and list its cases, in the order of the options."""
    cases = []
    for name in dict.fromkeys(args.models):
        torch.manual_seed(0)
        if name in SAM_MODELS:
            sam, weights = SAM_MODELS[name](), "random"
        else:
            sam = sam_model_registry[name](checkpoint=args.checkpoint)
            weights = "random" if args.checkpoint is None else args.checkpoint.name
        ratios, dtypes = list(dict.fromkeys(args.keep_ratio)), list(dict.fromkeys(args.dtype))
        cases += encoder_cases(name, sam.image_encoder, ratios, dtypes, device, weights)
    return cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--models", nargs="+", default=["sam_vit_b", "bigltl_b"], metavar="NAME",
                        help="sam_vit_b, sam_vit_l, sam_vit_h (segment_anything's own) or a key of this project's "
                        "registry; the first is the baseline (default: sam_vit_b bigltl_b)")  # fmt: skip
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0, 0.5, 0.25], metavar="R",
                        help="in (0, 1] (default: 1.0 0.5 0.25)")  # fmt: skip
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="DTYPE",
        help="float32, bfloat16, int8 (default: all; int8 on the CPU only, and not for SAM's own)",
    )
    parser.add_argument("--checkpoint", type=Path, help="weights of this project's model (default: random weights)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--runs", type=int, default=5, help="counted passes (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="uncounted passes before (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("out"), metavar="CSV",
                        help="a .csv file, or a folder for one named after device, torch version and threads "
                        "(default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the CSV. Raises InputError for options that cannot be used."""
    check_arguments(args)
    device = parse_device(args.device)
    if args.dtype is None:
        args.dtype = [name for name in PRECISIONS if name != "int8" or device.type == "cpu"]
    for dtype in args.dtype:
        check_precision(dtype, device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    environment = {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    cases = build_cases(args, device)
    times = measure([case.call for case in cases], args.runs, args.warmup)
    rows = result_rows(cases, times, environment)
    path = output_path(args.output, device, environment)
    write_csv(path, rows)
    print(f"{environment['device']} ({device.type}), torch {environment['torch']}, {environment['threads']} CPU"
          f" threads, batch 1, medians of {args.runs} interleaved runs")  # fmt: skip
    print(format_table(rows))
    print(f"written: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/latency.py`."""
    parser = ArgumentParser(prog="latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
