"""Does a process that segments photograph after photograph stay as large as it is? Its memory, round by round."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sam_bigltl.bench.memory_growth import plot, rounds
from sam_bigltl.cli import flag_checks
from sam_bigltl.convert import load_sam
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.data.files import write_csv
from sam_bigltl.errors import ArgumentParser, InputError, run_cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/memory.py`."""
    parser.add_argument("--checkpoint", type=Path, help="weights (default: checkpoints/bigltl_mini.safetensors)")
    parser.add_argument("--rounds", type=int, default=500, help="(500)")
    parser.add_argument("--every", type=int, default=50, metavar="N", help="rounds a row (50)")
    parser.add_argument("--longest", type=int, default=1024, metavar="PX", help="longest side of a photograph (1024)")
    parser.add_argument("--csv", type=Path, default=Path("docs/results/memory.csv"), help="(%(default)s)")
    parser.add_argument("--plot", type=Path, default=Path("docs/memory.png"), help="(%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure, print a row as it comes, write the CSV and draw it. Raises InputError."""
    flag_checks.at_least_one(args, ("rounds", "every", "longest"))
    if args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot} must end in .png, .svg or .pdf")
    if not sys.platform.startswith("linux"):
        raise InputError("this reads the memory of a process from /proc, which only Linux has")
    checkpoint = args.checkpoint or default_checkpoint()
    rows = []
    measured = rounds(load_sam(checkpoint), args.rounds, args.longest)
    for number, size in enumerate(tqdm(measured, total=args.rounds, unit="round", disable=None), 1):
        if number == 1 or number % args.every == 0 or number == args.rounds:
            rows.append({"round": number, "resident_mb": round(size / 2**20, 1)})
            tqdm.write(f"round {number:>5}: {rows[-1]['resident_mb']:.1f} MB")
    write_csv(args.csv, ("round", "resident_mb"), rows)
    plot(args.plot, rows, f"{checkpoint.name}, photographs of 1 to {args.longest} px a side, float32, CPU")
    print(f"written: {args.csv}, {args.plot}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/memory.py`."""
    parser = ArgumentParser(prog="memory.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
