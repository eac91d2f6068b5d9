"""Latency of encoders and classifiers: SAM's ViT, the big.LITTLE ViT, timm's and other people's, measured in one run.

Every encoder lives in a process of its own, as its users run it, and all of them take turns (A B A B ...), so that a
clock that drifts, a machine that warms up or a busy neighbour touches all alike; the first passes are not counted.
Times are those of one forward pass of the image encoder alone. Ratios are between medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..bench.cases import AUTOCAST
from ..bench.models import peer
from ..bench.plan import check_arguments, counted, jobs, start
from ..bench.plot import plot
from ..bench.quick import Quick
from ..bench.quick_report import block, environment, rows_of
from ..bench.report import COLUMNS, check_output, format_table, output_path, result_rows
from ..bench.timing import gemm_peak, measure
from ..data.files import write_csv
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.choice import check, formats
from ..fast.devices import device_name, parse_device
from ..fast.precision import PRECISIONS
from .flag_checks import at_least_one, flag, positive

# The options that `--quick` takes.
_OF_QUICK = ("quick", "budget", "device", "threads", "runs", "output")

EXAMPLES = """examples:
  sam-bigltl bench --quick
  sam-bigltl bench --models vit_mini bigltl_mini --keep-ratio 1.0 0.5 --runs 10 --native both
  python eval/latency.py
  python eval/latency.py --models sam_vit_h bigltl_h --device cuda --dtype bfloat16 --batch 1 8 32 --runs 20 --warmup 5
  python eval/latency.py --models bigltl_b --checkpoint checkpoints/x.safetensors --output docs/results
  python eval/latency.py --models bigltl_s --peer my_checkouts.py:mobile_sam@1024 --best
  python eval/latency.py --models vit_base_patch16_224 bigltl_base_patch16_224 --batch 1 32 --native on --best
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--quick", action="store_true",
                        help="instead of all the rest: what this machine reaches, in about two minutes, as text to "
                        "paste into an issue; takes --budget, --device, --threads, --runs and --output")  # fmt: skip
    parser.add_argument("--budget", type=float, metavar="MINUTES",
                        help="of --quick; rows that would not fit are skipped (default: 2)")  # fmt: skip
    parser.add_argument("--models", nargs="*", default=["sam_vit_b", "bigltl_b"], metavar="NAME",
                        help="sam_vit_b, sam_vit_l, sam_vit_h (segment_anything's own), a key of this project's "
                        "registry, or a classifier that timm knows; the first is the baseline "
                        "(default: sam_vit_b bigltl_b)")  # fmt: skip
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:CALLABLE[@PX]",
                        help="an encoder from a checkout of yours: package.module or a .py file, and a function that "
                        "returns it; PX is the side of its input where it has no img_size; again for more")  # fmt: skip
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0, 0.5, 0.25], metavar="R",
                        help="in (0, 1] (default: 1.0 0.5 0.25)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", metavar="DTYPE",
                        help="float32, bfloat16, int8 (on the CPU, for this project's models), autocast (float32 "
                        "weights under bfloat16 autocast, for peers) (default: of the first three those that this "
                        "machine has instructions for)")  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images a pass (default: 1)")
    parser.add_argument("--compile", choices=("off", "on", "both"), default="off", help="torch.compile (default: off)")
    parser.add_argument("--native", choices=("off", "on", "both"), default="off",
                        help="this project's C++ kernels, for its encoders on the CPU (default: off)")  # fmt: skip
    parser.add_argument("--memory", choices=("default", "kept", "both"), default="both",
                        help="whether processes of SAM's and other people's encoders keep freed memory, as optimize() "
                        "makes them do for this project's (default: both)")  # fmt: skip
    parser.add_argument("--best", action="store_true",
                        help="of each peer only the fastest of all formats: every --dtype, compiled or not, memory "
                        "kept or not, tried before")  # fmt: skip
    parser.add_argument("--image-size", nargs="+", type=int, metavar="PX",
                        help="sides of the input, for this project's models with random weights (default: the model's "
                        "own)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="weights of this project's model (default: random weights)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--runs", type=int, default=5, help="counted passes (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=1, help="uncounted passes before, at least 1 (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("out"), metavar="CSV",
                        help="a .csv file, or a folder for one named after device, torch version and threads "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw time against keep_ratio with the line of the MACs"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the CSV. Raises InputError for options that cannot be used."""
    if args.quick:
        return run_quick(args)
    if args.budget is not None:
        raise InputError("--budget is the time of --quick: give both, or neither")
    check_arguments(args)
    device = parse_device(args.device)
    native = {"off": (False,), "on": (True,), "both": (False, True)}[args.native]
    if args.dtype is None:  # a format that the processor has no instructions for would take minutes
        args.dtype = list(dict.fromkeys(dtype for dtype, kernels in formats(device) if kernels in native))
    for dtype in args.dtype:
        if dtype != AUTOCAST:
            _check_format(device, dtype, native)  # and compile the kernels once, not in every process
    for target in args.peer:
        peer(target)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    environment: dict[str, Any] = {
        "device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()
    }  # fmt: skip
    wanted = jobs(args, device)
    if not wanted:
        raise InputError("nothing to measure: give --models or --peer, and a --dtype that they have")
    check_output(args.output)
    workers = start(wanted, args.best)
    timeable = [(worker, index) for worker in workers for index in range(len(worker.cases))]
    times = measure([partial(worker.seconds, index) for worker, index in timeable], args.runs, args.warmup - 1)
    memory = [worker.memory(index) for worker, index in timeable]
    macs = counted(timeable)
    for worker in workers:
        worker.close()
    cases = [worker.cases[index] for worker, index in timeable]
    peaks = {
        dtype: gemm_peak(dtype, device) for dtype in dict.fromkeys(case.dtype for case in cases) if dtype in PRECISIONS
    }
    rows = result_rows(cases, times, environment, macs, peaks, memory)
    print(f"{environment['device']} ({device.type}), torch {environment['torch']}, {environment['threads']} CPU"
          f" threads, medians of {args.runs} interleaved runs")  # fmt: skip
    print(format_table(rows))
    print("matrix products: " + ", ".join(f"{dtype} {peak:.0f} GMAC/s" for dtype, peak in peaks.items()))
    path = output_path(args.output, "latency", device, environment)
    write_csv(path, COLUMNS, rows)
    print(f"written: {path}")
    if args.plot is not None:
        plot(args.plot, rows)
        print(f"drawn: {args.plot}")


def _check_format(device: torch.device, dtype: str, native: Sequence[bool]) -> None:
    """Raise InputError where a format runs neither in the kernels nor without them, as far as that is asked for."""
    refused = []
    for kernels in native:
        try:
            check(device, dtype, kernels)
        except InputError as error:
            refused.append(error)
    if len(refused) == len(native):
        raise refused[0]


def run_quick(args: argparse.Namespace) -> None:
    """`--quick`: measure within the budget, print what to paste into an issue, and write the CSV."""
    plain = ArgumentParser()
    add_arguments(plain)
    for name, default in vars(plain.parse_args([])).items():
        if name not in _OF_QUICK and getattr(args, name) != default:
            raise InputError(f"--quick chooses what is measured: leave {flag(name)} out, or --quick")
    minutes = 2.0 if args.budget is None else args.budget
    positive(argparse.Namespace(budget=minutes), ("budget",))
    at_least_one(args, ("runs",))
    check_output(args.output)
    device = parse_device(args.device)
    if args.threads is not None:
        at_least_one(args, ("threads",))
        torch.set_num_threads(args.threads)
    quick = Quick(device, minutes, args.threads, args.runs)
    quick.run(lambda line: print(f"{quick.elapsed:5.0f} s  {line}", file=sys.stderr, flush=True))
    rows = rows_of(quick)
    print(block(quick, rows, __version__))
    path = output_path(args.output, "quick", device, environment(device))
    write_csv(path, COLUMNS, rows)
    print(f"written: {path} (docs/results/README.md says how to send it)")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/latency.py`."""
    parser = ArgumentParser(prog="latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
