"""Encoder latency: SAM's ViT, the big.LITTLE ViT and other people's encoders, measured in one run.

All cases take turns (A B A B ...), so that a clock that drifts, a machine that warms up or a busy neighbour touches
all of them alike; the first passes are warm-up and are not counted. Times are those of one forward pass of the image
encoder alone. Ratios are between medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..devices import device_name, parse_device
from ..errors import ArgumentParser, InputError, run_cli
from ..macs import Macs, count_macs
from ..precision import PRECISIONS, check_precision
from ..registry import sam_model_registry
from .cases import SAM_MODELS, Case, Settings, build, encoder_cases, peer
from .report import format_table, output_path, plot, result_rows, setting, write_csv
from .timing import gemm_peak, measure, peak_memory

EXAMPLES = """examples:
  sam-bigltl bench --models vit_mini bigltl_mini --keep-ratio 1.0 0.5 --runs 10
  python eval/latency.py
  python eval/latency.py --models sam_vit_h bigltl_h --device cuda --dtype bfloat16 --batch 1 8 32 --runs 20 --warmup 5
  python eval/latency.py --models bigltl_b --checkpoint checkpoints/x.safetensors --output docs/results
  python eval/latency.py --models bigltl_s --peer my_checkouts.py:mobile_sam@1024 --compile both
"""


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for the first option that cannot be used, before any model is built."""
    known = [*SAM_MODELS, *sam_model_registry]
    for name in args.models:
        if name not in known:
            raise InputError(f"unknown model {name!r}: choose from {', '.join(known)}")
    for ratio in args.keep_ratio:
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"--keep-ratio {ratio:g} is outside (0, 1]")
    for option, lowest in (("runs", 1), ("warmup", 0), ("threads", 1), ("batch", 1)):
        values = getattr(args, option)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < lowest:
                raise InputError(f"--{option} {value} is below {lowest}")
    if args.plot is not None and args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot} must end in .png, .svg or .pdf")
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise InputError(f"no checkpoint at {args.checkpoint}")
        if len([name for name in args.models if name not in SAM_MODELS]) != 1:
            raise InputError("--checkpoint needs exactly one model of this project in --models")


def build_cases(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """Build every model and list its cases, in the order of the options."""
    compiled = {"off": (False,), "on": (True,), "both": (False, True)}[args.compile]
    settings = Settings(
        list(dict.fromkeys(args.keep_ratio)), list(dict.fromkeys(args.dtype)), list(dict.fromkeys(args.batch)), compiled
    )
    cases = []
    for name in dict.fromkeys(args.models):
        for size in dict.fromkeys(args.image_size or [None]):
            sam, weights = build(name, size, None if name in SAM_MODELS else args.checkpoint)
            cases += encoder_cases(name, sam.image_encoder, settings, device, weights)
    for target in args.peer:
        name, encoder = peer(target)
        cases += encoder_cases(name, encoder, settings, device, "its own")
    return cases


def counted(cases: Sequence[Case]) -> dict[tuple[str, int, int, float], Macs]:
    """The products of each setting, of the cases that the counter sees: not compiled, not int8."""
    macs: dict[tuple[str, int, int, float], Macs] = {}
    for case in cases:
        if setting(case) not in macs and case.dtype != "int8" and not case.compiled:
            macs[setting(case)] = count_macs(case.call)
    return macs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--models", nargs="*", default=["sam_vit_b", "bigltl_b"], metavar="NAME",
                        help="sam_vit_b, sam_vit_l, sam_vit_h (segment_anything's own) or a key of this project's "
                        "registry; the first is the baseline (default: sam_vit_b bigltl_b)")  # fmt: skip
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:CALLABLE[@PX]",
                        help="an encoder from a checkout of yours: package.module or a .py file, and a function that "
                        "returns it; PX is the side of its input where it has no img_size; again for more")  # fmt: skip
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0, 0.5, 0.25], metavar="R",
                        help="in (0, 1] (default: 1.0 0.5 0.25)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", metavar="DTYPE",
                        help="float32, bfloat16, int8 (default: all; int8 on the CPU only, and for this project's "
                        "models)")  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images a pass (default: 1)")
    parser.add_argument("--compile", choices=("off", "on", "both"), default="off", help="torch.compile (default: off)")
    parser.add_argument("--image-size", nargs="+", type=int, metavar="PX",
                        help="sides of the input, for this project's models with random weights (default: the model's "
                        "own)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="weights of this project's model (default: random weights)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--runs", type=int, default=5, help="counted passes (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="uncounted passes before (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("out"), metavar="CSV",
                        help="a .csv file, or a folder for one named after device, torch version and threads "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw time against keep_ratio with the line of the MACs"
    )


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
    environment: dict[str, Any] = {
        "device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()
    }  # fmt: skip
    cases = build_cases(args, device)
    if not cases:
        raise InputError("nothing to measure: give --models or --peer")
    times = measure([case.call for case in cases], args.runs, args.warmup)
    memory = [peak_memory(case.call, device) for case in cases]
    peaks = {dtype: gemm_peak(dtype, device) for dtype in dict.fromkeys(case.dtype for case in cases)}
    rows = result_rows(cases, times, environment, counted(cases), peaks, memory)
    path = output_path(args.output, device, environment)
    write_csv(path, rows)
    print(f"{environment['device']} ({device.type}), torch {environment['torch']}, {environment['threads']} CPU"
          f" threads, medians of {args.runs} interleaved runs")  # fmt: skip
    print(format_table(rows))
    print("matrix products: " + ", ".join(f"{dtype} {peak:.0f} GMAC/s" for dtype, peak in peaks.items()))
    print(f"written: {path}")
    if args.plot is not None:
        plot(args.plot, rows)
        print(f"drawn: {args.plot}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/latency.py`."""
    parser = ArgumentParser(prog="latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
