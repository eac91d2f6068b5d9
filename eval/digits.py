"""scikit-learn's 1,797 scanned digits (8 x 8 pixels) as folders of pictures, every third one to test on.

python eval/digits.py --output digits    # digits/train, digits/test: one folder a class
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sam_bigltl.errors import ArgumentParser, InputError, run_cli


def write_digits(output: Path, side: int) -> None:
    """Write `output`/train and `output`/test, pictures of `side` x `side` pixels. Raises InputError."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    for index, (values, label) in enumerate(zip(digits.images, digits.target)):
        folder = output / ("test" if index % 3 == 2 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((values * 255 / 16).round().astype(np.uint8))
        grey.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:04}.png")
    print(f"{len(digits.images)} digits in {output}")


def run(args: argparse.Namespace) -> None:
    if args.side < 8:
        raise InputError(f"--side is at least 8, not {args.side}")
    write_digits(args.output, args.side)


if __name__ == "__main__":
    parser = ArgumentParser(prog="digits.py", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--side", type=int, default=32, help="of the pictures, pixels (32)")
    run_cli(parser.prog, run, parser.parse_args())
