"""Does a process that segments photograph after photograph stay as large as it is? Its memory, round by round."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from segment_anything.modeling import Sam
from tqdm import tqdm

from . import flag_checks
from .convert import load_sam
from .errors import ArgumentParser, InputError, run_cli
from .latency.plot import plain, save_figure
from .latency.report import write_csv
from .latency.timing import resident_memory
from .predictor import SamPredictor
from .registry import default_checkpoint

RATIOS = (1.0, 0.5, 0.25)


def rounds(sam: Sam, count: int, longest: int, seed: int = 0) -> Iterator[int]:
    """Embed a photograph of random noise and a new size, predict from a box and from a point, and forget it.

    Args:
        sam: a big.LITTLE model takes each of RATIOS in turn.
        longest: sides are drawn from 1 to this many pixels.

    Yields:
        the resident memory of the process in bytes, after each of `count` rounds.
    """
    rng = np.random.default_rng(seed)
    predictor, encoder = SamPredictor(sam), sam.image_encoder
    for number in range(count):
        if not getattr(encoder, "is_dense", True):
            encoder.keep_ratio = RATIOS[number % len(RATIOS)]
        height, width = (int(side) for side in rng.integers(1, longest, 2, endpoint=True))
        predictor.set_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        predictor.predict(box=np.array([0, 0, width, height]))
        predictor.predict(np.array([[width / 2, height / 2]]), np.array([1]), multimask_output=False)
        yield resident_memory()


def plot(path: Path, rows: Sequence[dict[str, float]], title: str) -> None:
    """Draw resident memory over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    axes.plot([row["round"] for row in rows], [row["resident_mb"] for row in rows], marker="o")
    top = 1.1 * max(row["resident_mb"] for row in rows)
    axes.set(xlabel="rounds of set_image and predict", ylabel="resident memory, MB", ylim=(0, top))
    axes.set_title(plain(title), fontsize=9)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
    pyplot.close(figure)


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
